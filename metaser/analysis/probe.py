"""What can be read from embeddings: a classifier predicts speaker, corpus and emotion."""

from functools import partial

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from metaser.metrics import uar

READ = ("speaker", "corpus", "emotion")
"""The labels that are read."""

FOLDS = 3
"""Folds of the cross-validation."""

READERS = {"linear": partial(LogisticRegression, max_iter=1000), "kernel": partial(SVC, C=10.0)}
"""Logistic regression, and a support vector machine with a Gaussian kernel, which also finds what
is not linear."""


def probe(
    embeddings: np.ndarray,
    speaker: np.ndarray,
    corpus: np.ndarray,
    emotion: np.ndarray,
    reader: str = "linear",
) -> dict[str, dict[str, float]]:
    """Return how well each label is read from embeddings of clips the reader has not learnt from.

    Corpus and emotion are read from speakers that the reader has not learnt from. The speaker is
    read from other clips of the same speakers.

    Parameters
    ----------
    embeddings : ndarray
        (clips, dim); they are standardised for the reader.
    speaker, corpus, emotion : ndarray
        (clips,) labels; a speaker belongs to one corpus.
    reader : {"linear", "kernel"}
        The classifier, see ``READERS``.

    Returns
    -------
    dict of str to dict of str to float
        UAR in [0, 1] by what is read (``READ``) and by corpus. What has one label only is left out.
    """
    uars = {}
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
        uars[name] = {
            str(part): uar(labels[corpus == part], predicted[corpus == part])
            for part in np.unique(corpus)
        }
    return uars
