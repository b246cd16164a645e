"""How well the speaker alone tells the emotion, against designs whose answer is known."""

import numpy as np
import pandas as pd
import pytest

from metaser.tasks.speakers import speaker_alone


def table(emotions, speakers, clique=None):
    cliques = range(len(emotions)) if clique is None else clique
    return pd.DataFrame({"emotion": list(emotions), "speaker": list(speakers), "clique": cliques})


def by_hand(clips):
    """Clip by clip; sample weights make classes equal, ties are split."""
    hits = []
    for row, clip in clips.iterrows():
        others = clips.drop(row)
        own = others[others["speaker"] == clip["speaker"]]["emotion"].value_counts()
        shares = {
            name: own.get(name, 0) / max((others["emotion"] == name).sum(), 1)
            for name in sorted(set(clips["emotion"]))
        }
        best = [name for name, share in shares.items() if share == max(shares.values())]
        hits.append((clip["emotion"] in best) / len(best))
    return pd.Series(hits, clips.index).groupby(clips["emotion"]).mean().mean()


@pytest.mark.parametrize(
    "clips, uar, single, suspicious, words",
    [
        (table("aabb" * 3, sorted("xyz" * 4)), 0.0, 0, False, "0 of 100 clips (chance 50)"),
        (table("aaaabbbbcccc", sorted("xyz" * 4)), 1.0, 3, True, "shares speakers proves nothing"),
        (table("abcabc", "uvwxyz"), 1 / 3, 6, True, "6 speakers show one emotion: normalising by"),
        (table("aaab", "xxxx"), 0.25, 0, False, "0 of 1 speakers"),
        (table("aaaa", "xxyy"), 1.0, 2, False, "chance 100"),
        (table("aabb", "xxxx"), 0.5, 0, False, "50 of 100 clips (chance 50)"),
        # A speaker's clip and its declared copy are one clip, which tells nothing about itself.
        (table("aabb", "xxyy", [0, 0, 1, 1]), 0.5, 2, True, "50 of 100"),
    ],
)
def test_known_designs(clips, uar, single, suspicious, words):
    found = speaker_alone(clips)
    assert (found.uar, found.single, found.suspicious) == (pytest.approx(uar), single, suspicious)
    assert words in found.sentence()
    assert ("proves nothing" in found.sentence()) == found.tells


def test_it_is_what_guessing_clip_by_clip_gives():
    rng = np.random.default_rng(0)
    clips = table(rng.choice(list("abc"), 60, p=[0.6, 0.3, 0.1]), rng.choice(list("tuvwxyz"), 60))
    assert speaker_alone(clips).uar == pytest.approx(by_hand(clips))
