"""The Serve config file, read strictly, and what we ship and write passing that reading."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from hindcast import cli
from serve_app.elasticity import DEPLOYMENTS, deployment_options
from serve_app.errors import InvalidInput
from serve_app.running.limits import request_limit_s
from serve_app.running.serve_file import check_serve_file, check_serve_text, serve_document
from serve_app.settings import load_settings

SHIPPED = Path(__file__).resolve().parents[2] / "serve.yaml"


@pytest.fixture(autouse=True)
def _address_of_the_ledger(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HINDCAST_LEDGER__REDIS_URL", "rediss://user:password@ledger.internal:6379/0")


def shipped() -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load(SHIPPED.read_text())
    return document


def changed(path: str, value: Any) -> str:
    """The shipped file with one place set; None takes it out."""
    document = shipped()
    place: Any = document
    *way, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    for part in way:
        place = place[part]
    if value is None:
        del place[last]
    else:
        place[last] = value
    return yaml.safe_dump(document)


def test_the_shipped_file_holds_and_every_deployment_is_bounded() -> None:
    found = check_serve_file(SHIPPED)
    assert set(found.options) == set(DEPLOYMENTS)
    for options in found.options.values():
        assert options["max_ongoing_requests"] > 0
        assert options["max_queued_requests"] > 0
    assert found.options["Ingress"]["autoscaling_config"]["min_replicas"] == 2
    assert found.options["Ledger"]["num_replicas"] == 1
    assert found.options["Ledger"]["max_surge_percent"] == 0
    assert found.options["Ranking"]["max_surge_percent"] == 100


ARGS = "applications.1.args"
FIRST = "applications.1.deployments.0"


@pytest.mark.parametrize(
    ("path", "value", "field", "said"),
    [
        ("proxy_locations", "HeadOnly", "proxy_locations", "did you mean proxy_location?"),
        ("http_options.prot", 1, "http_options.prot", "did you mean port?"),
        ("applications.1.import_paht", "x", "applications.1.import_paht", "import_path"),
        (f"{FIRST}.max_ongoing_request", 5, f"{FIRST}.max_ongoing_request", "max_ongoing_requests"),
        (f"{FIRST}.autoscaling_config.max_replica", 5, f"{FIRST}.autoscaling_config.max_replica", "max_replicas"),
        (f"{FIRST}.ray_actor_options.num_cpu", 5, f"{FIRST}.ray_actor_options.num_cpu", "num_cpus"),
        ("logging_config", {"log_levle": "INFO"}, "logging_config.log_levle", "log_level"),
        ("tracing_config", {"enabld": True}, "tracing_config.enabld", "enabled"),
        (f"{FIRST}.name", "Ingres", f"{FIRST}.name", "did you mean Ingress?"),
        (f"{FIRST}.max_ongoing_requests", 0, f"{FIRST}", ""),
        (f"{ARGS}.topolgy", "chain", f"{ARGS}.topolgy", ""),
        (f"{ARGS}.http.prot", 1, f"{ARGS}.http.prot", ""),
        (f"{ARGS}.budgets", {"ranking_ms": 0}, f"{ARGS}.budgets.ranking_ms", ""),
        (f"{ARGS}.security", None, f"{ARGS}.http.host", "keys"),
        (f"{ARGS}.security.keys_file", "keys.json", f"{ARGS}.security.keys_file", "root"),
        (f"{ARGS}.data", None, f"{ARGS}.data", "data folder"),
        (f"{ARGS}.data", "shop", f"{ARGS}.data", "root"),
        (f"{ARGS}.ledger.redis_url", "redis://u:secret@h:1/0", f"{ARGS}.ledger.redis_url", "password"),
        (f"{ARGS}.outbox", {"secret": "Bearer x"}, f"{ARGS}.outbox.secret", "secret_file"),
        (f"{ARGS}.ledger.backend", "sqlite", f"{ARGS}.ledger.backend", "one host"),
        ("http_options.host", "127.0.0.1", "http_options.host", "both places"),
        ("http_options.port", None, "http_options.port", "both places"),
        ("http_options.request_timeout_s", 10, "http_options.request_timeout_s", "125"),
        ("http_options.request_timeout_s", None, "http_options.request_timeout_s", "125"),
        ("applications.1.import_path", "other:app", "applications", "serve_app.served:application"),
        ("applications.0.deployments", [{"name": "Ledger", "num_replicas": 2}], "applications.0.deployments.0",
         "one process"),
        ("applications.0.deployments", [{"name": "Ledger", "max_surge_percent": 100}], "applications.0.deployments.0",
         "one process"),
        ("applications.0.args.data", "/elsewhere", "applications.0.args.data", "other application's"),
        ("applications.0.args.topology", "fused", "applications.0.args.topology", "remove it"),
        ("applications.0.route_prefix", "/state", "applications.0.route_prefix", "null"),
        ("applications.0.import_path", "other:app", "applications", "serve_app.served:state"),
        ("applications.0.name", "state", "applications.0.name", "hindcast-state"),
        (f"{FIRST}.name", "Ledger", f"{FIRST}.name", "no deployment Ledger"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(path: str, value: Any, field: str, said: str) -> None:
    with pytest.raises(InvalidInput) as error:
        check_serve_text(changed(path, value))
    assert str(error.value.field).startswith(field)
    assert said in str(error.value)
    assert "secret@" not in str(error.value)


def test_a_number_said_twice_and_differently_is_named() -> None:
    document = shipped()
    document["applications"][1]["args"]["deployments"]["ingress"] = {"max_ongoing": 100}
    document["applications"][1]["deployments"][0]["max_ongoing_requests"] = 200
    with pytest.raises(InvalidInput, match="say it in one place"):
        check_serve_text(yaml.safe_dump(document))
    document["applications"][1]["deployments"][0]["max_ongoing_requests"] = 100
    assert check_serve_text(yaml.safe_dump(document)).options["Ingress"]["max_ongoing_requests"] == 100


@pytest.mark.parametrize("text", ["", "[]", "a: [", "applications: []", "3"])
def test_what_is_no_serve_config_is_one_clear_error(text: str) -> None:
    with pytest.raises(InvalidInput):
        check_serve_text(text)


@pytest.mark.parametrize("topology", ["chain", "fused"])
def test_a_written_file_passes_and_says_what_the_graph_runs_under(topology: str) -> None:
    growing = {"ranking": {"min_replicas": 2, "max_replicas": 6, "target_ongoing": 3, "drain_s": 20, "threads": 7}}
    settings = load_settings(
        data=Path("/mnt/x"), topology=topology, http={"host": "0.0.0.0"}, security={"keys_file": Path("/mnt/keys.json")},
        deployments=growing,
    )  # fmt: skip
    found = check_serve_text(yaml.safe_dump(serve_document(settings)))
    assert found.settings.topology == topology
    assert found.settings.deployments.ranking.threads == 7
    for name, options in found.options.items():
        assert options == deployment_options(settings, name)


def test_serve_waits_longer_than_we_do() -> None:
    settings = load_settings()
    assert request_limit_s(settings) * 1000 > settings.budgets.decide_batch_ms


def test_the_command_checks_and_writes(tmp_path: Path) -> None:
    cli._register()
    runner = CliRunner()
    done = runner.invoke(cli.app, ["serve-config", "check", str(SHIPPED)])
    assert done.exit_code == 0, done.output
    assert "2 to 16" in done.output
    arguments = ["serve-config", "write", "--data", "/mnt/hindcast", "--keys", "/mnt/hindcast/keys.json"]
    written = runner.invoke(cli.app, arguments, env={"HINDCAST_LEDGER__REDIS_URL": ""})
    assert written.exit_code == 0, written.output
    assert yaml.safe_load(written.stdout)["applications"][1]["args"]["data"] == "/mnt/hindcast"
