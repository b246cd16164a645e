"""``python -m metaser`` is the command ``metaser``."""

from metaser.cli import app

if __name__ == "__main__":
    app(prog_name="metaser")
