"""cluster.yaml holds, as `ray up` reads it, and its start commands really set the switches."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config
from typer.testing import CliRunner

from hindcast import cli
from serve_app.errors import InvalidInput
from serve_app.running.switches import node_switches
from serve_app.settings import load_settings

FILE = Path(__file__).resolve().parents[2] / "cluster.yaml"
STARTS = ("head_start_ray_commands", "worker_start_ray_commands")


@pytest.fixture(scope="module")
def cluster() -> dict[str, Any]:
    """As `ray up` prepares it, Ray's own defaults filled in."""
    prepared: dict[str, Any] = prepare_config(yaml.safe_load(FILE.read_text()))
    return prepared


@pytest.fixture
def home() -> Iterator[Path]:
    """Short: the paths of sockets end early."""
    with tempfile.TemporaryDirectory(prefix="h", dir="/tmp") as name:
        yield Path(name)


def test_ray_up_would_take_it(cluster: dict[str, Any]) -> None:
    validate_config(cluster)
    head = cluster["available_node_types"][cluster["head_node_type"]]
    worker = cluster["available_node_types"]["worker"]
    assert head["max_workers"] == 0
    assert 0 < worker["min_workers"] < worker["max_workers"] <= cluster["max_workers"]


def test_a_misspelt_key_is_refused(cluster: dict[str, Any]) -> None:
    with pytest.raises(Exception, match="idle_timeout_minuts"):
        validate_config({**cluster, "idle_timeout_minuts": 5})


@pytest.mark.parametrize("group", STARTS)
def test_the_start_commands_put_every_switch_before_ray(cluster: dict[str, Any], group: str, home: Path) -> None:
    """They run, as written, in a home where `ray` is a program that shows what it was started with."""
    programs = home / "venv" / "bin"
    programs.mkdir(parents=True)
    (programs / "hindcast").write_text(f'#!/bin/sh\nexec {sys.executable} -m hindcast "$@"\n')
    (programs / "ray").write_text("#!/bin/sh\necho ARGUMENTS \"$@\"; ulimit -n | sed 's/^/FILES /'; env\n")
    for program in programs.iterdir():
        program.chmod(0o755)
    (home / ".hindcast").mkdir()
    (home / ".hindcast" / "env").write_text("HINDCAST_LEDGER__REDIS_URL=redis://somewhere:6379/0\n")
    command = cluster[group][-1].replace("65536", "1024")
    environment = {"PATH": os.environ["PATH"], "HOME": str(home), "RAY_HEAD_IP": "10.0.0.1"}
    done = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, timeout=120, check=True, env=environment, cwd=FILE.parent
    )
    shown = dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line and not line.startswith("ARGUMENTS"))
    folder = home / "hindcast-node"
    expected = node_switches(load_settings(), folder)
    assert expected.keys() <= shown.keys()
    for name in ("RAY_SERVE_ENABLE_HA_PROXY", "RAY_SERVE_THROUGHPUT_OPTIMIZED", "RAY_SERVE_HAPROXY_BINARY_PATH"):
        assert shown[name] == expected[name]
    assert shown["RAY_AUTH_MODE"] == "token"
    assert shown["HINDCAST_LEDGER__REDIS_URL"] == "redis://somewhere:6379/0"
    assert folder.stat().st_mode & 0o777 == 0o700
    arguments = next(line for line in done.stdout.splitlines() if line.startswith("ARGUMENTS"))
    assert ("--head" in arguments) == (group == STARTS[0])
    assert "--address=10.0.0.1:6379" in arguments or group == STARTS[0]


def test_nothing_of_ray_is_open_to_the_world(cluster: dict[str, Any]) -> None:
    rules = cluster["provider"]["security_group"]["IpPermissions"]
    assert {rule["FromPort"] for rule in rules} == {8000}
    assert all(group["CidrIp"] != "0.0.0.0/0" for rule in rules for group in rule["IpRanges"])
    assert "--dashboard-host=127.0.0.1" in cluster["head_start_ray_commands"][-1]


def test_every_node_gets_its_settings_and_nothing_large(cluster: dict[str, Any]) -> None:
    mounted = {Path(there).name: here for there, here in cluster["file_mounts"].items()}
    assert mounted["env"] == "~/.hindcast/env"
    assert mounted["auth_token"] == "~/.ray/auth_token"
    made_here = {".git", ".venv*", "bench-results", "load-result", "data", "demo"}
    assert {f"**/{name}/**" for name in made_here} <= set(cluster["rsync_exclude"])


def test_a_folder_too_long_for_sockets_is_refused_at_once(tmp_path: Path) -> None:
    cli._register()
    with pytest.raises(InvalidInput, match="no room for the names of sockets"):
        CliRunner().invoke(cli.app, ["node-env", "--folder", str(tmp_path / ("x" * 30))], catch_exceptions=False)
    assert not (tmp_path / ("x" * 30)).exists()
