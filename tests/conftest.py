"""Fixtures of all tiers."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of public data sets: HINDCAST_SHARED_DATA, or shared/data beside the project."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("HINDCAST_SHARED_DATA", default))
    if not folder.is_dir():
        pytest.skip("no public data here: set HINDCAST_SHARED_DATA to their folder")
    return folder
