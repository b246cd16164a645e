"""Which MetaSER this is: the release that is worked towards and, in a checkout, the commit."""

import functools
import subprocess
from importlib.metadata import PackageNotFoundError, PathDistribution
from importlib.metadata import version as installed_version
from pathlib import Path

RELEASE = "0.2.0"
"""The newest release, or the next one; raised when the changelog opens a new section."""

CHECKOUT = Path(__file__).resolve().parents[1]


@functools.cache
def version() -> str:
    """Return the version: ``0.2.0``, or ``0.2.0.dev0+g1a2b3c4`` for a commit that is no release.

    ``.dirty`` at the end says that files differ from the commit. An installed copy has the version
    that it was built with. Git is asked each time the program runs, because an installation in
    development mode stays the same while commits come and go.
    """
    if (CHECKOUT / ".git").exists() and (CHECKOUT / "setup.cfg").is_file():
        return _of_commit(
            _git("describe", "--always", "--dirty", "--long", "--match", f"v{RELEASE}")
        )
    if (CHECKOUT / "PKG-INFO").is_file():  # an unpacked source distribution
        return PathDistribution(CHECKOUT).version
    try:
        return installed_version("metaser")
    except PackageNotFoundError:
        return _of_commit("")


def release(version: str) -> str:
    """Return the release part of a version.

    Checkpoints and caches compare releases, so that a commit does not outdate them.

    >>> release("0.2.0.dev0+g1a2b3c4.dirty")
    '0.2.0'
    """
    return version.partition(".dev")[0].partition("+")[0]


def _of_commit(described: str) -> str:
    """Return the version for what ``git describe`` printed; nothing if git is not there."""
    if not described:
        return f"{RELEASE}.dev0"
    # With a tag in sight it is v0.2.0-3-g1a2b3c4 (3 commits after the tag), else 1a2b3c4.
    place, dirty, _ = described.partition("-dirty")
    tag, _, commit = place.rpartition("-g")
    if tag == f"v{RELEASE}-0" and not dirty:
        return RELEASE
    return f"{RELEASE}.dev0+g{commit}{'.dirty' if dirty else ''}"


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(CHECKOUT), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()
