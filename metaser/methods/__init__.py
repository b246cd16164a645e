"""Methods: how a model learns and adapts. ``METHODS`` maps names to constructors with presets.

Every method has ``adapt(support)``, which returns a predictor. A method that learns by gradient
steps over episodes also has ``loss(episode)``, a scalar. A method that needs the source clips also
has ``fit(sources)``.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from metaser.methods.baselines import Constant, LogisticRegression
from metaser.methods.by_evidence import ByEvidence
from metaser.methods.gan_augmentation import GANAugmentation
from metaser.methods.gaussian_process import GaussianProcess
from metaser.methods.maml import MAML
from metaser.methods.mldg import MLDG
from metaser.methods.multitask import Multitask
from metaser.methods.multitask_released import MultitaskReleased
from metaser.methods.protonet import ProtoNet
from metaser.methods.reptile import Reptile
from metaser.methods.ridge import Ridge
from metaser.methods.transfer import Transfer

METHODS: dict[str, Callable[..., Any]] = {
    "metaser": MAML,
    "metaser_second_order": partial(MAML, second_order=True),
    "maml": partial(MAML, second_order=True),
    "fomaml": MAML,
    "anil": partial(MAML, second_order=True, adapts="head"),
    "boil": partial(MAML, second_order=True, adapts="backbone"),
    "meta_sgd": partial(MAML, second_order=True, rates="element"),
    "maml_plus_plus": partial(
        MAML, second_order=True, rates="step", first_order_share=0.5, multi_step_share=0.15
    ),
    "proto_maml": partial(MAML, second_order=True, head="prototypes"),
    "protonet": ProtoNet,
    "ridge": Ridge,
    "reptile": Reptile,
    "mldg": MLDG,
    "multiser": Multitask,
    "transser": partial(Transfer, order="sequential", trainable="head"),
    "transser_released": partial(
        Transfer, trainable="head", steps=2500, rate=2e-5, cycle="released", fresh_head=True
    ),
    "multiser_released": MultitaskReleased,
    "fine_tuning": Transfer,
    "head_tuning": partial(Transfer, trainable="head"),
    "zero_shot": partial(Transfer, steps=0),
    "from_scratch": partial(Transfer, pretrain=False),
    "adversarial": partial(Transfer, terms={"adversary": 0.1}),
    "contrastive": partial(Transfer, terms={"contrast": 0.1}),
    "metaser_adversarial": partial(MAML, terms={"adversary": 0.1}),
    "metaser_contrastive": partial(MAML, terms={"contrast": 0.1}),
    "logistic_regression": LogisticRegression,
    "logistic_regression_sources": partial(LogisticRegression, use_sources=True),
    "metaser_by_evidence": ByEvidence,
    "gaussian_process": GaussianProcess,
    "gan_augmentation": GANAugmentation,
    "majority": partial(Constant, guess="majority"),
    "chance": partial(Constant, guess="chance"),
}
