"""The command ``metaser``; ``python -m metaser`` is the same."""

import os
import signal
import sys
import threading
from types import FrameType
from typing import Any


def main() -> None:
    """Run the command. Ctrl+C ends it by one line and exit code 130, wherever it comes.

    In compiled code an interrupt may come out as any other error, or be reported and ignored. Some
    packages crash if it comes while they are imported; nothing is written then, so it ends at once.
    """
    pressed = False
    tell, tell_of_thread = sys.unraisablehook, threading.excepthook

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal pressed
        pressed = True
        if _is_importing(frame):
            os.write(2, b"stopped\n")
            os._exit(130)
        signal.default_int_handler(number, frame)

    def ignored(what: Any) -> None:
        if not pressed:
            tell(what)

    def in_thread(what: Any) -> None:
        if not pressed:
            tell_of_thread(what)

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, interrupt)
    sys.unraisablehook, threading.excepthook = ignored, in_thread
    try:
        from metaser.cli import app

        app(prog_name="metaser")
    except SystemExit as end:
        if pressed and end.code:
            raise SystemExit(130) from None
        raise
    except BaseException:
        if not pressed:
            raise
        print("stopped", file=sys.stderr)
        raise SystemExit(130) from None


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False


if __name__ == "__main__":
    main()
