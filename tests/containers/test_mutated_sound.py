"""No mutated audio ends in a traceback, hangs, or takes more than 1 GiB."""

import subprocess
import sys
from pathlib import Path

import pytest

FUZZ = Path(__file__).with_name("fuzz.py")


@pytest.mark.skipif(sys.platform != "linux", reason="bounds memory as Linux does")
@pytest.mark.parametrize("tries, seed", [(500, 0), pytest.param(10_000, 1, marks=pytest.mark.slow)])
def test_mutated_audio_is_read_or_refused(tries, seed):
    done = subprocess.run(
        [sys.executable, str(FUZZ), str(tries), str(seed)],
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        timeout=60 + tries,
    )
    last = done.stderr.splitlines()[-1:]
    assert done.returncode == 0, (done.stdout, last)
    *wrong, end = done.stdout.splitlines()
    assert not wrong and end.startswith(f"tried {tries} ")
