"""How well the speaker alone tells the emotion, which decides whether voices may be known."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

TELLS = 0.25
"""Share of the way from chance to 1 from which a speaker tells the emotion."""


@dataclass(frozen=True)
class SpeakerAlone:
    """How well a clip's emotion can be guessed from who speaks, without listening.

    Attributes
    ----------
    uar : float
        Of guessing a clip's emotion from its speaker's other clips, in [0, 1]; NaN without clips.
    chance : float
        UAR of guessing blindly.
    single, speakers : int
        Speakers of one emotion, and all.
    """

    uar: float
    chance: float
    single: int
    speakers: int

    @property
    def tells(self) -> bool:
        """Whether who speaks gives the emotion away."""
        return self.chance < 1 and self.uar >= self.chance + TELLS * (1 - self.chance)

    @property
    def suspicious(self) -> bool:
        """Whether that is so, or most speakers show one emotion."""
        return self.tells or (self.chance < 1 and 2 * self.single > self.speakers)

    def sentence(self) -> str:
        """Return the finding in words."""
        found = (
            f"the speaker alone tells the emotion in {100 * self.uar:.0f} of 100 clips (chance "
            f"{100 * self.chance:.0f}); {self.single} of {self.speakers} speakers show one emotion"
        )
        verdict = ": normalising by voice is not safe here" if self.suspicious else ""
        proof = ", and a split that shares speakers proves nothing" if self.tells else ""
        return found + verdict + proof


def speaker_alone(table: pd.DataFrame) -> SpeakerAlone:
    """Guess each clip's emotion from the other clips of its speaker.

    The guess is the emotion of which the speaker's other clips hold the largest share of all
    other clips of that emotion, so that frequent emotions have no advantage. Ties are drawn by lot,
    and the expected value is returned; so a speaker with one clip is guessed at chance. Where all
    speakers show all emotions equally, the clip that is left out makes its own emotion the rarest,
    and the UAR is below chance.

    Parameters
    ----------
    table : DataFrame
        One row per clip: ``speaker``, ``emotion`` and ``clique``. Of declared copies in one
        clique, the first counts.
    """
    clips = table.drop_duplicates("clique")
    counts = pd.crosstab(clips["speaker"], clips["emotion"]).to_numpy()
    classes = counts.shape[1]
    left_out = np.eye(classes, dtype=int)
    # (speakers, emotion of the clip that is left out, emotions)
    others = counts[:, None, :] - left_out
    shares = others / np.maximum(counts.sum(axis=0) - left_out, 1)
    best = np.isclose(shares, shares.max(axis=2, keepdims=True), rtol=1e-9, atol=0)
    right = np.diagonal(best, axis1=1, axis2=2) / best.sum(axis=2)
    recall = (counts * right).sum(axis=0) / counts.sum(axis=0)
    single = int(((counts > 0).sum(axis=1) == 1).sum())
    uar = float(recall.mean()) if classes else float("nan")
    return SpeakerAlone(uar, 1 / max(classes, 1), single, len(counts))
