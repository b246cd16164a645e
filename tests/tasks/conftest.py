"""Fixtures of the tests of tasks."""

import pytest


@pytest.fixture(autouse=True)
def no_data_root(monkeypatch):
    """No data root is set where a test sets none."""
    monkeypatch.delenv("METASER_DATA", raising=False)
