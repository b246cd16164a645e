"""``python -m metaser`` is the command ``metaser``."""

from metaser.cli import app

app(prog_name="metaser")
