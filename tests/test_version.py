"""The version names the release and, in a checkout, the commit."""

import subprocess

import pytest

from metaser import version as library
from metaser.version import RELEASE, release


@pytest.mark.parametrize(
    "described, expected",
    [
        ("1a2b3c4", f"{RELEASE}.dev0+g1a2b3c4"),
        ("1a2b3c4-dirty", f"{RELEASE}.dev0+g1a2b3c4.dirty"),
        (f"v{RELEASE}-0-g1a2b3c4", RELEASE),
        (f"v{RELEASE}-3-g1a2b3c4", f"{RELEASE}.dev0+g1a2b3c4"),
        (f"v{RELEASE}-0-g1a2b3c4-dirty", f"{RELEASE}.dev0+g1a2b3c4.dirty"),
        ("", f"{RELEASE}.dev0"),
    ],
)
def test_what_git_describes_becomes_a_version(monkeypatch, described, expected):
    monkeypatch.setattr(library, "_git", lambda *_: described)
    library.version.cache_clear()
    try:
        assert library.version() == expected
    finally:
        library.version.cache_clear()
    assert release(expected) == RELEASE


def test_a_checkout_names_its_commit():
    if not (library.CHECKOUT / ".git").exists():
        pytest.skip("needs a checkout: this is an installed copy")
    command = ["git", "-C", str(library.CHECKOUT), "rev-parse", "HEAD"]
    head = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    commit = library.version().partition("+g")[2].removesuffix(".dirty")
    assert library.version() == RELEASE or head.startswith(commit)
