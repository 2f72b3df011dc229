"""What a cluster's replicas get from `args`, and what from the environment that `hindcast node-env` reads too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import serve_app
from serve_app.errors import InvalidInput
from serve_app.running import switches
from serve_app.served import NODE_SETTINGS, check_code, cluster_settings
from serve_app.settings import Settings, load_settings

ARGUMENTS: dict[str, Any] = {
    "data": "/mnt/x", "http": {"host": "0.0.0.0", "port": 8100}, "security": {"keys_file": "/mnt/x/keys.json"},
}  # fmt: skip


def test_replicas_get_what_nodes_read_from_the_same_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HINDCAST_HTTP__UNDER_WAY_PER_INGRESS", "30")
    monkeypatch.setenv("HINDCAST_TRACING__TO", "file:///tmp/spans")
    settings = cluster_settings(ARGUMENTS)
    assert (settings.http.port, settings.http.places_of_one_surface) == (8100, 15)
    assert settings.tracing.to == "file:///tmp/spans"


def node(settings: Settings, folder: Path) -> tuple[dict[str, str], str]:
    """A node's switches, and the script that stands for HAProxy there."""
    made = switches.node_switches(settings, folder)
    script = folder / "haproxy"
    return made, script.read_text() if script.exists() else ""


def test_args_may_say_what_no_node_reads_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(switches, "free_port", lambda: 5)
    settings = load_settings(tracing={"to": "file:///a"})
    before, read = node(settings, tmp_path), set()
    for group in ("http", "tracing"):
        own = getattr(settings, group)
        for name in type(own).model_fields:
            value = {bool: False, int: 7, str: "file:///b", float: 0.5}[type(getattr(own, name))]
            changed = settings.model_copy(update={group: own.model_copy(update={name: value})})
            if node(changed, tmp_path) != before:
                read.add((group, name))
    assert read == {(group, name) for group, names in NODE_SETTINGS.items() for name in names}


def test_code_that_the_file_names_is_the_code_that_runs(tmp_path: Path) -> None:
    here = Path(serve_app.__file__).parents[1]
    (tmp_path / "serve_app").mkdir()
    (tmp_path / "policies").mkdir()
    for uris in ([], [f"local://{here}"], [f"local://{tmp_path}/policies", "https://somewhere/else.zip"]):
        check_code({"py_modules": uris})
    check_code({})
    with pytest.raises(InvalidInput, match=f"{tmp_path} is passed over for {here}"):
        check_code({"py_modules": [f"local://{tmp_path}"]})
