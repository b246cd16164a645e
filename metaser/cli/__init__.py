"""The `metaser` command."""

from metaser.cli.main import app

__all__ = ["app"]
