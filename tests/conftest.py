"""Fixtures of all tiers."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# No example is timed: how long one takes says more of the machine's other work than of ours.
# `pytest --hypothesis-profile=deep` looks an hour for what the quick tier looks seconds for.
settings.register_profile("quick", deadline=None, print_blob=True)
settings.register_profile("deep", max_examples=5000, deadline=None, print_blob=True)
settings.load_profile("quick")


def pytest_configure(config: pytest.Config) -> None:
    """Ray 2.60 uses pydantic in a way that pydantic 2 warns about, dozens of times a session."""
    config.addinivalue_line("filterwarnings", "ignore::pydantic.warnings.PydanticDeprecatedSince20")


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What needs the session's Ray is marked so."""
    for item in items:
        if "ray_cluster" in getattr(item, "fixturenames", ()):
            item.add_marker("ray")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of public data sets: HINDCAST_SHARED_DATA, or shared/data beside the project."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("HINDCAST_SHARED_DATA", default))
    if not folder.is_dir():
        pytest.skip("no public data here: set HINDCAST_SHARED_DATA to their folder")
    return folder


@pytest.fixture(scope="session")
def demo_release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with a small world's log and a promoted release built from it. Do not write to it: copy what you need.

    HINDCAST_DEMO_RELEASE may name a folder made by the same commands, to save the minute they take.
    """
    given = os.environ.get("HINDCAST_DEMO_RELEASE")
    if given:
        return Path(given)
    data = tmp_path_factory.mktemp("demo") / "data"
    world = ["world", "--users", "400", "--items", "300", "--days", "10", "--seed", "7"]
    for arguments in (world, ["build", "--local", "--promote"]):
        command = [sys.executable, "-m", "hindcast", *arguments, "--data", str(data)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
        assert done.returncode == 0, f"{' '.join(arguments)}: {done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return data


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[int]:
    """One private Ray with Serve for the whole session, with the switches the server runs under; gives its HTTP port."""
    from serve_app.running.instance import end_leftovers, private_ray, start_serve
    from serve_app.running.switches import free_port, set_switches
    from serve_app.settings import load_settings

    port = free_port()
    settings = load_settings(http={"port": port})
    with tempfile.TemporaryDirectory(prefix="hindcast-test-") as name:
        folder = Path(name)
        before = dict(os.environ)
        os.environ["RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S"] = "0"
        set_switches(settings, folder)
        try:
            with private_ray(folder, free_port()):
                start_serve(settings)
                yield port
        finally:
            end_leftovers(folder)
            os.environ.clear()
            os.environ.update(before)
