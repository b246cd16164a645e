"""What can be read from embeddings: a logistic regression tells speaker, corpus and emotion."""

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from metaser.metrics import uar

READ = ("speaker", "corpus", "emotion")
FOLDS = 3


def probe(
    embeddings: np.ndarray, speaker: np.ndarray, corpus: np.ndarray, emotion: np.ndarray
) -> dict[str, dict[str, float]]:
    """How well each label is read from the embeddings of clips that the reader has not learnt from.

    Corpus and emotion are read from other speakers than those that the reader has learnt from; the
    speaker has to be known to it.

    Parameters
    ----------
    embeddings : ndarray
        (clips, dim), standardised for the reader.
    speaker, corpus, emotion : ndarray
        (clips,) labels; a speaker belongs to one corpus.

    Returns
    -------
    dict of str to dict of str to float
        For ``READ``, the mean recall (UAR) over the labels of each corpus, by corpus; in [0, 1].
        The corpus is left out where there is only one.
    """
    found = {}
    for name, labels in zip(READ, (speaker, corpus, emotion)):
        if len(np.unique(labels)) < 2:
            continue
        folds = StratifiedKFold if name == "speaker" else StratifiedGroupKFold
        predicted = cross_val_predict(
            make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)),
            embeddings,
            labels,
            groups=None if name == "speaker" else speaker,
            cv=folds(FOLDS, shuffle=True, random_state=0),
        )
        found[name] = {
            str(own): uar(labels[corpus == own], predicted[corpus == own])
            for own in np.unique(corpus)
        }
    return found
