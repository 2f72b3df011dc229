"""The scenarios as Locust runs them: users, a shape, and what workers tell the master.

``hindcast load`` calls this; ``locust -f loadtests/locustfile.py --headless --scenario baseline --rate 200 --audience FILE
--host URL --out DIR`` does the same by hand, and takes Locust's own options: ``--processes 2`` for more cores, ``--master``,
``--worker``, ``--expect-workers`` for more machines (audience and trace must lie at the same path on each).

In an open loop every worker runs one `Stream`, which makes its share of all arrivals. In a closed loop there are as many
`Client` users as asked for. Each worker sends its measurements once, when its last answer is in; the master adds them up.
"""

from __future__ import annotations

import json
import logging
import os
import time
from pathlib import Path
from typing import Any

from geventhttpclient.client import HTTPClientPool
from locust import FastHttpUser, LoadTestShape, constant, events, task
from locust.env import Environment
from locust.exception import StopUser
from locust.runners import WorkerRunner

from loadtests.scenarios.audience import read_audience
from loadtests.scenarios.driver import Run
from loadtests.scenarios.errors import LoadError
from loadtests.scenarios.options import API_KEY, add_options, plan_of
from loadtests.scenarios.plan import Plan
from loadtests.scenarios.recording import Recording
from loadtests.scenarios.results import result_of
from loadtests.scenarios.server_facts import facts_of, openapi_of
from loadtests.scenarios.trace import plan_seconds

__all__ = ["OpenLoop", "Shape", "WaitingUser"]

_LOG = logging.getLogger("hindcast.load")
_RESULT = "hindcast_result"
_GRACE_S = 60.0


class _State:
    """What this process knows of the run. A worker has a `run`; the master, or the only process, collects."""

    def __init__(self) -> None:
        self.run: Run | None = None
        self.plan: Plan | None = None
        self.results: list[dict[str, Any]] = []
        self.failures: list[str] = []
        self.before: dict[str, Any] = {}
        self.started_at = 0.0


STATE = _State()


class OpenLoop(FastHttpUser):
    """One per worker: sends this worker's share of the requests at their times."""

    wait_time = constant(0)

    @task
    def all_of_it(self) -> None:
        """The whole run."""
        run = _run(self)
        run.open_loop(self.client)
        self.environment.runner.send_message(_RESULT, run.result())
        raise StopUser


class WaitingUser(FastHttpUser):
    """One of many who wait for their answers. The last one to finish sends what all of this worker measured."""

    wait_time = constant(0)
    under_way = 0

    def on_start(self) -> None:
        """One more."""
        WaitingUser.under_way += 1

    @task
    def visits(self) -> None:
        """Until the time is over."""
        run = _run(self)
        run.closed_loop(self.client)
        WaitingUser.under_way -= 1
        if WaitingUser.under_way == 0:
            self.environment.runner.send_message(_RESULT, run.result())
        raise StopUser


def _run(user: FastHttpUser) -> Run:
    if STATE.run is None:
        user.environment.runner.quit()
        raise StopUser
    return STATE.run


class Shape(LoadTestShape):
    """Starts the users once, and ends when every worker has sent its result or is given up."""

    def tick(self) -> tuple[int, float, list[type[FastHttpUser]]] | None:
        """See LoadTestShape."""
        environment = self.runner.environment
        plan = STATE.plan or plan_of(environment.parsed_options)
        workers = environment.parsed_options.expect_workers or 1
        limit = plan_seconds(plan) + plan.timeout_s + _GRACE_S
        if len(STATE.results) + len(STATE.failures) >= workers or self.get_run_time() > limit:
            return None
        if plan.open_loop:
            return workers, workers, [OpenLoop]
        return plan.users or 1, plan.users or 1, [WaitingUser]


@events.init_command_line_parser.add_listener
def _options(parser: Any) -> None:
    add_options(parser)


@events.init.add_listener
def _collect(environment: Environment, **_: Any) -> None:
    """The master, or the only process, takes results."""
    if isinstance(environment.runner, WorkerRunner):
        return

    def take(msg: Any, **_: Any) -> None:
        if "failure" in msg.data:
            STATE.failures.append(msg.data["failure"])
        else:
            STATE.results.append(msg.data)

    environment.runner.register_message(_RESULT, take)


@events.test_start.add_listener
def _begin(environment: Environment, **_: Any) -> None:
    """Read what the run needs. A worker that cannot says so to the master: errors in listeners are only logged."""
    runner, options = environment.runner, environment.parsed_options
    try:
        STATE.plan = plan = plan_of(options)
        if not isinstance(runner, WorkerRunner):
            STATE.started_at, STATE.before = time.time(), facts_of(environment.host)
        if getattr(options, "master", False):
            return
        for user in (OpenLoop, WaitingUser):
            user.network_timeout = user.connection_timeout = plan.timeout_s
        OpenLoop.client_pool = HTTPClientPool(
            concurrency=plan.connections, network_timeout=plan.timeout_s, connection_timeout=plan.timeout_s
        )
        audience = read_audience(plan.audience) if plan.audience else None
        STATE.run = Run(
            plan, openapi_of(environment.host), audience,
            worker=max(runner.worker_index, 0), workers=options.expect_workers or 1, key=os.environ.get(API_KEY),
        )  # fmt: skip
    except LoadError as error:
        runner.send_message(_RESULT, {"failure": str(error)})


@events.quitting.add_listener
def _end(environment: Environment, **_: Any) -> None:
    """Write what was measured."""
    options = environment.parsed_options
    if isinstance(environment.runner, WorkerRunner) or STATE.plan is None:
        return
    for failure in STATE.failures:
        _LOG.error("%s", failure)
    whole = Recording()
    for one in STATE.results:
        whole.add_wire(one)
    missing = (options.expect_workers or 1) - len(STATE.results)
    if STATE.failures or not STATE.results:
        environment.process_exit_code = 2
        return
    result = result_of(
        STATE.plan, whole, missing=missing, started_at=STATE.started_at, before=STATE.before,
        after=facts_of(environment.host), host=environment.host,
    )  # fmt: skip
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    (out / "result.json").write_text(json.dumps(result))
    # Whether it is a pass is for the judge to say; Locust's own view (any failure at all) is not asked.
    environment.process_exit_code = 0
