"""Settings: documented, bounded, closed by default, errors that name the setting."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from serve_app.errors import InvalidInput, ResourceShortage
from serve_app.running.checks import check_port, folder_lock
from serve_app.settings import Settings, load_settings


def test_every_setting_is_documented_and_frozen() -> None:
    def walk(model: type[BaseModel], path: str) -> None:
        assert model.model_config["frozen"]
        assert model.model_config["extra"] == "forbid"
        for name, field in model.model_fields.items():
            inner = field.annotation
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                walk(inner, f"{path}{name}.")
            else:
                assert field.description, f"{path}{name} has no description"

    walk(Settings, "")


@pytest.mark.parametrize(
    ("overrides", "field"),
    [
        ({"http": {"host": "0.0.0.0"}}, "http.host"),
        ({"http": {"port": 70_000}}, "http.port"),
        ({"http": {"prot": 1}}, "http.prot"),
        ({"topology": "ring"}, "topology"),
        ({"ledger": {"backend": "redis"}}, "ledger.redis_url"),
        ({"deployments": {"ranking": {"min_replicas": 3, "max_replicas": 2}}}, "deployments.ranking"),
        ({"deployments": {"ledger": {"min_replicas": 1, "max_replicas": 2}}}, "deployments.ledger.max_replicas"),
        ({"budgets": {"ranking_ms": 0}}, "budgets.ranking_ms"),
    ],
)
def test_a_wrong_setting_is_named(overrides: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidInput) as error:
        load_settings(**overrides)
    assert error.value.field == field
    assert error.value.hint


def test_the_environment_sets_nested_values_and_a_misspelt_name_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HINDCAST_HTTP__PORT", "8123")
    assert load_settings().http.port == 8123
    monkeypatch.setenv("HINDCAST_TOPLOGY", "fused")
    with pytest.raises(InvalidInput) as error:
        load_settings()
    assert error.value.field == "HINDCAST_TOPLOGY"


@pytest.mark.parametrize(
    "name",
    [
        "HINDCAST_TOPOLOGY__X",
        "HINDCAST_DATA__X",
        "HINDCAST_API_KEY__X",
        "hindcast_htpp__port",
        "hindcast_api_key",
    ],
)
def test_a_name_that_would_be_passed_over_is_an_error(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "1")
    with pytest.raises(InvalidInput, match="no such setting") as error:
        load_settings()
    assert error.value.field == name


def test_names_in_any_case_and_the_key_of_load_tests_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HINDCAST_API_KEY", "k")
    monkeypatch.setenv("hindcast_http__port", "8123")
    monkeypatch.setenv("HINDCAST_DEPLOYMENTS__INGRESS", '{"max_replicas": 2}')
    settings = load_settings()
    assert (settings.http.port, settings.deployments.ingress.max_replicas) == (8123, 2)


def test_strangers_need_keys(tmp_path: Path) -> None:
    keys = tmp_path / "keys.json"
    assert load_settings(http={"host": "0.0.0.0"}, security={"keys_file": keys}).security.keys_file == keys
    assert load_settings(http={"host": "::1"}).http.loopback


def test_a_port_in_use_is_one_clear_line() -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ResourceShortage, match=r"in use.*--port"):
            check_port("127.0.0.1", taken.getsockname()[1])


def test_a_data_folder_has_one_server(tmp_path: Path) -> None:
    from serve_app.errors import NotReady

    with folder_lock(tmp_path), pytest.raises(NotReady, match="another server"), folder_lock(tmp_path):
        raise AssertionError("two servers on one folder")
    with folder_lock(tmp_path):
        pass


def test_micro_batchers_are_full_before_ray_serve_would_refuse() -> None:
    settings = load_settings()
    own = settings.batching
    assert settings.deployments.ingress.max_ongoing > 5 * (own.max_queued + 8 * own.max_requests)


def test_an_ingress_that_could_never_count_as_busy_is_refused() -> None:
    growing = {"ingress": {"max_replicas": 4, "target_ongoing": 8}}
    with pytest.raises(InvalidInput, match=r"deployments\.ingress\.target_ongoing: an ingress is sent 8 requests"):
        load_settings(http={"under_way_per_ingress": 8}, deployments=growing)
    assert load_settings(http={"under_way_per_ingress": 9}, deployments=growing).deployments.ingress.target_ongoing == 8


def test_a_deployment_keeps_its_own_defaults_for_what_is_not_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HINDCAST_DEPLOYMENTS__INGRESS__MAX_REPLICAS", "4")
    settings = load_settings(deployments={"ledger": {"threads": 2}})
    assert settings.deployments.ingress.max_ongoing == 4_000
    assert settings.deployments.ingress.max_replicas == 4
    assert (settings.deployments.ledger.max_queued, settings.deployments.ledger.threads) == (10_000, 2)
