"""What can be read from embeddings: a classifier tells speaker, corpus and emotion."""

from functools import partial

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from metaser.metrics import uar

READ = ("speaker", "corpus", "emotion")
FOLDS = 3

READERS = {"linear": partial(LogisticRegression, max_iter=1000), "kernel": partial(SVC, C=10.0)}
"""Logistic regression, and a support vector machine with a Gaussian kernel, which finds what lies
on no line."""


def probe(
    embeddings: np.ndarray,
    speaker: np.ndarray,
    corpus: np.ndarray,
    emotion: np.ndarray,
    reader: str = "linear",
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
    reader : {"linear", "kernel"}
        What reads, see ``READERS``.

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
            make_pipeline(StandardScaler(), READERS[reader]()),
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
