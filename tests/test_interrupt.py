"""Ctrl+C, as compiled code hands it on."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import os, signal, sys, types
import metaser.__main__ as main

signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it

def app(prog_name):
    try:
        os.kill(os.getpid(), signal.SIGINT)
    except KeyboardInterrupt as error:
        raise {what}
    raise AssertionError("no interrupt")

sys.modules["metaser.cli"] = types.SimpleNamespace(app=app)
main.main()
"""


@pytest.mark.parametrize(
    ("what", "code"),
    [("error", 130), ("SystemError('bad call') from error", 130), ("SystemExit(2)", 130)]
    + [("SystemExit(0)", 0)],
)
def test_an_interrupt_ends_the_command_without_a_traceback(what, code):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", PROGRAM.format(what=what)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert (done.returncode, "Traceback" in done.stderr) == (code, False), done


def test_an_error_of_another_kind_is_told():
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    program = PROGRAM.replace("os.kill(os.getpid(), signal.SIGINT)", "raise ValueError('mine')")
    command = [sys.executable, "-c", program.format(what="error")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 1 and "mine" in done.stderr
