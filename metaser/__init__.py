"""Meta-learning for speech emotion recognition in languages with few labelled clips."""

__version__ = "0.1.0"
