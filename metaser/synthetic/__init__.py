"""The made-up languages: synthetic emotional speech for the demo and the tests."""

from metaser.synthetic.corpus import generate

__all__ = ["generate"]
