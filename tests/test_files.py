"""Files on disks that are full, cannot be written or have no locks."""

import errno
import fcntl
import multiprocessing
import os
import shutil
import subprocess
import sys
from collections import namedtuple

import pytest

from metaser import files


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), RuntimeError])
def test_a_full_disk_is_told_with_the_path_and_leaves_nothing(tmp_path, monkeypatch, error):
    usage = namedtuple("usage", "total used free")
    free = 10**9 if isinstance(error, OSError) else 0
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9 - free, free))
    path = tmp_path / "x.csv"
    files.write_text(path, "before")
    with pytest.raises(OSError, match=f"{path} must be written, but its disk is full: free some"):
        with files.whole(path) as part:
            part.write_text("half of it")
            raise error
    assert [p.name for p in tmp_path.iterdir()] == ["x.csv"]
    assert path.read_text() == "before"


@pytest.mark.skipif(sys.platform != "linux" or os.getuid() != 0, reason="needs to mount a disk")
def test_model_files_and_tables_on_a_disk_that_is_really_full(tmp_path):
    """A disk of 64 KiB, seen by one process alone."""
    program = (
        "import sys; from pathlib import Path; import pandas as pd, torch\n"
        "from metaser import files; from metaser.features import store\n"
        "place = Path(sys.argv[1]); long = 'x' * 200_000\n"
        "from safetensors.torch import save\n"
        "def model():\n"
        "    with files.whole(place / 'm.safetensors') as part:\n"
        "        part.write_bytes(save({'a': torch.zeros(50_000)}))\n"
        "tasks = [lambda: files.write_text(place / 'x.txt', long), model,\n"
        "    lambda: files.write_table(place / 'x.csv', pd.DataFrame({'a': [long]})),\n"
        "    lambda: store.append(place, {'c': torch.zeros(50_000, 1).numpy()}, {})]\n"
        "for task in tasks:\n"
        "    try: task()\n"
        "    except OSError as error: print(error)\n"
        "print(sorted(p.name for p in place.iterdir() if '.part' in p.name))\n"
    )
    mounted = f'mount -t tmpfs -o size=64k tmpfs {tmp_path} && exec "$@"'
    command = ["unshare", "-m", "sh", "-c", mounted, "sh", sys.executable, "-c", program, tmp_path]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if "permitted" in done.stderr or "not found" in done.stderr:
        pytest.skip("needs to mount a disk")
    told = done.stdout.splitlines()
    assert [f"{tmp_path}" in line and "disk is full" in line for line in told] == [True] * 4 + [
        False
    ], done
    assert told[-1] == "[]"


@pytest.mark.parametrize("number", [None, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK])
def test_a_lock_is_waited_for_and_the_path_is_named(tmp_path, monkeypatch, caplog, number):
    """The first holds it in another process, as flock does not tell threads apart."""
    path = tmp_path / "cache" / "lock"
    if number is not None:

        def without(*arguments):
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(fcntl, "flock", without)
    monkeypatch.setattr(files, "SILENT_WAIT", 0.1)
    with files.lock(path):
        pass
    fork = multiprocessing.get_context("fork")
    held, go = fork.Event(), fork.Event()

    def hold():
        with files.lock(path):
            held.set()
            go.wait(20)

    other = fork.Process(target=hold)
    other.start()
    try:
        assert held.wait(20)
        with pytest.raises(TimeoutError, match=f"the lock {path}.* must be free within 0.3 s"):
            with files.lock(path, 0.3):
                pass
        assert "waiting for the lock" in caplog.text
    finally:
        go.set()
        other.join()
    with files.lock(path, 5):
        pass


def test_files_of_the_system_are_told_from_the_users(tmp_path):
    ours = ["a/01.wav", "notes.txt"]
    theirs = ["a/.DS_Store", "a/._01.wav", "Thumbs.db", "Desktop.ini", "__MACOSX/a/02.wav"]
    for name in ours + theirs + [".ipynb_checkpoints/01.wav", "~$labels.xlsx", "@eaDir/x"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    found = files.users_files(tmp_path)
    assert [path.relative_to(tmp_path).as_posix() for path in found] == ours


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_toml_is_read_as_editors_save_it(tmp_path, encoding):
    (tmp_path / "x.toml").write_bytes('name = "é"\r\n'.encode(encoding))
    assert files.read_toml(tmp_path / "x.toml") == {"name": "é"}
    (tmp_path / "x.toml").write_bytes(b'a = 1\nname = "\xe9"\n')
    with pytest.raises(ValueError, match="line 2 is not"):
        files.read_toml(tmp_path / "x.toml")
