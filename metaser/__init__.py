"""Meta-learning for speech emotion recognition in languages with few labelled clips."""


def __getattr__(name: str) -> object:
    if name == "__version__":
        from metaser.version import version

        return version()
    raise AttributeError(f"module 'metaser' has no attribute {name!r}")
