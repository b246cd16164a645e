"""A page in the browser for users without a terminal."""

from metaser.page.desk import Desk, adapt_desk, hear_recording
from metaser.page.server import application, serve

__all__ = ["Desk", "adapt_desk", "application", "hear_recording", "serve"]
