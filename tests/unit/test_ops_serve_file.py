"""The Serve config file, read strictly, and what we ship and write passing that reading."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from ray.serve._private.config import DeploymentConfig
from typer.testing import CliRunner

from hindcast import cli
from serve_app.elasticity import CALLED_NEAR, DEPLOYMENTS, deployment_options
from serve_app.errors import InvalidInput
from serve_app.running.limits import request_limit_s
from serve_app.running.serve_file import check_serve_file, check_serve_text, serve_document
from serve_app.scaling import NEAR, POLICY
from serve_app.served import NODE_SETTINGS
from serve_app.settings import load_settings

SHIPPED = Path(__file__).resolve().parents[2] / "serve.yaml"


@pytest.fixture(autouse=True)
def _address_of_the_ledger(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HINDCAST_LEDGER__REDIS_URL", "rediss://user:password@ledger.internal:6379/0")


def shipped() -> dict[str, Any]:
    document: dict[str, Any] = json.loads(json.dumps(yaml.safe_load(SHIPPED.read_text())))  # aliases become copies
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
SERVES_OWN = "ray.serve.autoscaling_policy:replica_queue_length_autoscaling_policy"
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
        ("applications.1.logging_config", {"log_level": "DEBUG"}, "applications.1.logging_config", "deployments"),
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
        ("applications.1.runtime_env", {"py_modules": ["/mnt/x/code/0.2.0"]}, "applications.1.runtime_env", "local://"),
        ("applications.1.import_path", "other:app", "applications", "serve_app.served:application"),
        ("applications.0.deployments", [{"name": "Ledger", "num_replicas": 2}], "applications.0.deployments.0",
         "one process"),
        ("applications.0.deployments", [{"name": "Ledger", "max_surge_percent": 100}], "applications.0.deployments.0",
         "one process"),
        ("applications.0.args.data", "/elsewhere", "applications.0.args.data", "other application's"),
        ("applications.0.args.topology", "fused", "applications.0.args.topology", "give it to the application hindcast"),
        ("applications.0.args.logs", {"levle": "INFO"}, "applications.0.args.logs.levle", ""),
        (f"{ARGS}.ledger.redis_url", "redis://h/0?db=1&pass%77ord=secret", f"{ARGS}.ledger.redis_url", "password"),
        (f"{ARGS}.outbox", {"webhook_url": "https://u:secret@h"}, f"{ARGS}.outbox.webhook_url",
         "HINDCAST_OUTBOX__WEBHOOK_URL"),
        (f"{ARGS}.ledger", 3, f"{ARGS}.ledger", ""),
        (f"{ARGS}.http", 3, f"{ARGS}.http", ""),
        (f"{FIRST}.autoscaling_config.min_replicas", "few", f"{FIRST}.autoscaling_config.min_replicas", "integer"),
        (f"{FIRST}.autoscaling_config.min_replicas", 99, f"{FIRST}.autoscaling_config", "max_replicas"),
        (f"{FIRST}.autoscaling_config.target_ongoing_requests", 48, f"{FIRST}.autoscaling_config.target_ongoing_requests",
         "set it to 24 or so"),
        (f"{FIRST}.autoscaling_config.target_ongoing_requests", [], f"{FIRST}.autoscaling_config.target_ongoing_requests",
         ""),
        (f"{FIRST}.autoscaling_config.policy", "mine", f"{FIRST}.autoscaling_config.policy", ""),
        (f"{FIRST}.autoscaling_config.policy", {"policy_function": "serve_app.scaling:mine"}, "file", "no attribute 'mine'"),
        ("applications.1.autoscaling_policy", {"policy_function": "a:b"}, "applications.1.autoscaling_policy", "remove it"),
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


@pytest.mark.parametrize("number", [1, 2, 3, 4])
@pytest.mark.parametrize("value", [None, {"policy_function": SERVES_OWN}])
def test_a_stage_that_would_not_see_its_calls_is_named(number: int, value: Any) -> None:
    place = f"applications.1.deployments.{number}.autoscaling_config.policy"
    with pytest.raises(InvalidInput, match=r"never grow.*serve_app\.scaling:replicas_wanted") as error:
        check_serve_text(changed(place, value))
    assert error.value.field == place


def test_a_stage_that_grows_by_serves_own_numbers_is_named() -> None:
    stage = {"name": "Ranking", "num_replicas": "auto"}
    with pytest.raises(InvalidInput, match="never grow"):
        check_serve_text(changed("applications.1.deployments.3", stage))


@pytest.mark.parametrize("name", sorted(CALLED_NEAR))
def test_the_shipped_stages_grow_by_all_their_calls(name: str) -> None:
    options = check_serve_file(SHIPPED).options[name]
    scaling = DeploymentConfig(autoscaling_config=options["autoscaling_config"]).autoscaling_config  # as Serve does
    assert scaling.policy.policy_function == POLICY
    context = SimpleNamespace(
        current_num_replicas=2, total_num_requests=2.0, aggregated_metrics={NEAR: {"a": 10.0}}, config=scaling
    )
    assert scaling.policy.get_policy()(context) == (3.0, {})


@pytest.mark.parametrize(("group", "name"), [(group, name) for group, names in NODE_SETTINGS.items() for name in names])
def test_what_only_a_nodes_environment_sets_is_refused_in_args(group: str, name: str) -> None:
    default = getattr(getattr(load_settings(), group), name)
    document = shipped()
    arguments = document["applications"][1]["args"]
    arguments[group] = {**arguments.get(group, {}), name: default}
    with pytest.raises(InvalidInput, match=f"HINDCAST_{group}__{name} ".upper()):
        check_serve_text(yaml.safe_dump(document))


def test_what_a_nodes_environment_sets_is_left_out_of_a_written_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HINDCAST_HTTP__HEADER_TIMEOUT_S", "5")
    monkeypatch.setenv("HINDCAST_TRACING__TO", "http://collector:4318")
    monkeypatch.setenv("HINDCAST_OUTBOX__WEBHOOK_URL", "https://u:secret@h/hook")
    monkeypatch.setenv("HINDCAST_OUTBOX__CONCURRENCY", "7")
    monkeypatch.setenv("HINDCAST_LEDGER__REDIS_URL", "redis://h/0?password=secret")
    settings = load_settings(data=Path("/mnt/x"), http={"host": "0.0.0.0"}, security={"keys_file": Path("/mnt/keys.json")})
    document = serve_document(settings)
    arguments = document["applications"][1]["args"]
    assert arguments["http"] == {"host": "0.0.0.0", "port": 8000}
    assert "tracing" not in arguments
    assert arguments["outbox"] == {"concurrency": 7}
    assert "secret" not in yaml.safe_dump(document)
    assert check_serve_text(yaml.safe_dump(document)).settings.http.header_timeout_s == 5


def test_an_ingress_is_checked_against_what_the_environment_lets_haproxy_send(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HINDCAST_HTTP__UNDER_WAY_PER_INGRESS", "20")
    with pytest.raises(InvalidInput, match="an ingress is sent 20 requests at once"):
        check_serve_file(SHIPPED)
    monkeypatch.setenv("HINDCAST_HTTP__HAPROXY", "false")
    check_serve_file(SHIPPED)


def test_an_ingress_without_a_target_would_never_count_as_busy() -> None:
    document = shipped()
    document["applications"][1]["deployments"][0]["autoscaling_config"]["target_ongoing_requests"] = None
    with pytest.raises(InvalidInput, match="never count as busy"):
        check_serve_text(yaml.safe_dump(document))


@pytest.mark.parametrize(
    ("own", "override", "key"),
    [
        ({"min_replicas": 3, "max_replicas": 16}, {}, "autoscaling_config.min_replicas"),
        ({"max_replicas": 4}, {}, "autoscaling_config.max_replicas"),
        ({"target_ongoing": 3}, {}, "autoscaling_config.target_ongoing_requests"),
        ({"upscale_delay_s": 1}, {}, "autoscaling_config.upscale_delay_s"),
        ({"downscale_delay_s": 1}, {}, "autoscaling_config.downscale_delay_s"),
        ({"look_back_s": 1}, {}, "autoscaling_config.look_back_period_s"),
        ({"cpus": 2}, {}, "ray_actor_options.num_cpus"),
        ({"cpus": 1}, {"ray_actor_options": {"num_gpus": 1}}, "ray_actor_options.num_cpus"),
        ({"max_ongoing": 5}, {"max_ongoing_requests": 6}, "max_ongoing_requests"),
        ({"max_queued": 5}, {"max_queued_requests": 6}, "max_queued_requests"),
        ({"drain_s": 5}, {"graceful_shutdown_timeout_s": 6}, "graceful_shutdown_timeout_s"),
        ({"max_replicas": 4}, {"autoscaling_config": None, "num_replicas": 2}, "num_replicas"),
        ({"max_replicas": 4}, {"autoscaling_config": None}, "autoscaling_config.max_replicas"),
        ({"upscale_delay_s": 1}, {"autoscaling_config": {"max_replicas": 2, "policy": {"policy_function": POLICY}}},
         "autoscaling_config.upscale_delay_s"),
    ],
)  # fmt: skip
def test_what_args_and_the_file_say_differently_is_named(own: Any, override: Any, key: str) -> None:
    document = shipped()
    application = document["applications"][1]
    application["args"]["deployments"]["ranking"] = own
    application["deployments"][3] |= override
    with pytest.raises(InvalidInput, match=r"args\.deployments\.ranking\..* says") as error:
        check_serve_text(yaml.safe_dump(document))
    assert error.value.field == f"applications.1.deployments.3.{key}"


def test_what_args_and_the_file_say_alike_holds() -> None:
    document = shipped()
    stages, written = document["applications"][1]["args"]["deployments"], document["applications"][1]["deployments"]
    stages["ranking"] = {"min_replicas": 2, "max_replicas": 16, "target_ongoing": 4.0, "look_back_s": 10, "cpus": 1}
    stages["features"] = {"min_replicas": 3, "max_replicas": 3, "target_ongoing": 9}
    written[2] = {"name": "Features", "num_replicas": 3, "autoscaling_config": None}
    document["applications"][0]["args"]["deployments"] = {"ledger": {"max_queued": 70}}
    options = check_serve_text(yaml.safe_dump(document)).options
    assert options["Features"]["num_replicas"] == 3
    assert options["Ledger"]["max_queued_requests"] == 70


def test_a_key_said_twice_is_named_with_its_lines() -> None:
    text = SHIPPED.read_text()
    line = "          max_replicas: 16\n"
    number = text[: text.index(line)].count("\n") + 1
    with pytest.raises(InvalidInput, match=rf"max_replicas: is said in line {number} and again in line {number + 1},"):
        check_serve_text(text.replace(line, line + line.replace("16", "2")))


def test_what_a_merge_brings_is_not_said_twice() -> None:
    scaling = check_serve_file(SHIPPED).options["Decision"]["autoscaling_config"]
    assert (scaling["max_replicas"], scaling["target_ongoing_requests"]) == (16, 4)


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
