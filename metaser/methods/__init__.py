"""Methods: how a model learns and adapts. ``METHODS`` maps names to constructors with presets.

A method has ``adapt(support) -> predictor`` and, if it learns by gradient steps over episodes,
``loss(episode) -> scalar``; if it only looks at the source clips, ``fit(sources)``.
"""

from functools import partial

from metaser.methods.baselines import Constant, LogisticRegression
from metaser.methods.maml import MAML
from metaser.methods.multitask import Multitask
from metaser.methods.transfer import Transfer

METHODS = {
    "metaser": MAML,
    "metaser_second_order": partial(MAML, second_order=True),
    "multiser": Multitask,
    "transser": partial(Transfer, order="sequential", trainable="head"),
    "fine_tuning": Transfer,
    "zero_shot": partial(Transfer, steps=0),
    "from_scratch": partial(Transfer, pretrain=False),
    "logistic_regression": LogisticRegression,
    "logistic_regression_sources": partial(LogisticRegression, use_sources=True),
    "majority": partial(Constant, guess="majority"),
    "chance": partial(Constant, guess="chance"),
}
