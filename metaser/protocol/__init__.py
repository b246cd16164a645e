"""A protocol: which methods are compared on which tasks, and how, as a TOML file of values."""

from metaser.protocol.schema import (
    BUNDLED,
    Protocol,
    Setup,
    Training,
    TrainingPlan,
    read_protocol,
    validated,
)

__all__ = [
    "BUNDLED",
    "Protocol",
    "Setup",
    "Training",
    "TrainingPlan",
    "read_protocol",
    "validated",
]
