"""Log lines name the calls and requests they are about, and never a secret."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from serve_app.errors import InvalidInput
from serve_app.ingress.batcher import MicroBatcher
from serve_app.ingress.call_log import call_log
from serve_app.running.logs import JsonLines, secrets_of
from serve_app.serving import scope
from serve_app.serving.stages import in_pool
from serve_app.settings import load_settings


class Lines(logging.Handler):
    def __init__(self, secrets: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.setFormatter(JsonLines("ingress-1", secrets))
        self.lines: list[dict[str, object]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(json.loads(self.format(record)))


@pytest.fixture
def lines() -> Lines:
    return Lines(("the-secret-token", "password-of-redis"))


@pytest.fixture
def log(lines: Lines) -> logging.Logger:
    logger = logging.Logger("hindcast.test")
    logger.addHandler(lines)
    return logger


def test_a_line_names_process_call_and_requests(log: logging.Logger, lines: Lines) -> None:
    with scope.of_call("abc"):
        scope.note_request(0x1234)
        log.warning("something %s", "happened")
    log.info("and nobody's")
    first, second = lines.lines
    assert first["message"] == "something happened"
    assert (first["process"], first["level"], first["calls"]) == ("ingress-1", "warning", ["abc"])
    assert first["request_ids"] == ["0000000000001234"]
    assert str(first["at"]).endswith("Z")
    assert "calls" not in second
    assert "request_ids" not in second


async def test_a_micro_batch_speaks_for_all_its_calls_and_for_no_other(log: logging.Logger, lines: Lines) -> None:
    async def run(batch: Sequence[int]) -> list[int]:
        await in_pool(None, lambda: log.warning("batch of %d", len(batch)))  # type: ignore[arg-type]
        return list(batch)

    batcher: MicroBatcher[int, int] = MicroBatcher(run, max_requests=2, lanes=1, max_queued=10)

    async def call(number: int) -> None:
        with scope.of_call(f"call-{number}"):
            scope.note_request(number)
            loop = asyncio.get_running_loop()
            await batcher.submit(number, key=0, leave_by_s=loop.time() + 30)

    await asyncio.gather(*(call(number) for number in range(1, 6)))
    told = [set(line["calls"]) for line in lines.lines]  # type: ignore[call-overload]
    assert sorted(map(len, told)) == [1, 2, 2]
    assert set.union(*told) == {f"call-{number}" for number in range(1, 6)}
    for line in lines.lines:
        calls = [int(str(one).split("-")[1]) for one in line["calls"]]  # type: ignore[attr-defined]
        assert line["request_ids"] == [f"{one:016x}" for one in calls]


def test_work_in_another_process_is_named_by_its_requests(log: logging.Logger, lines: Lines) -> None:
    with scope.of_requests(np.arange(1, 100, dtype=np.uint64)):
        log.error("late")
    assert lines.lines[0]["request_ids"] == [f"{one:016x}" for one in range(1, 9)]


def test_a_secret_is_blacked_out_wherever_it_turns_up(log: logging.Logger, lines: Lines) -> None:
    log.warning("calling redis://user:password-of-redis@host with %s", {"Authorization": "Bearer the-secret-token"})
    try:
        raise ConnectionError("redis://user:password-of-redis@host refused")
    except ConnectionError:
        log.exception("failed")
    text = json.dumps(lines.lines)
    assert "password-of-redis" not in text
    assert "the-secret-token" not in text
    assert text.count("[hidden]") >= 3


def test_every_secret_of_the_settings_is_known() -> None:
    settings = load_settings(
        ledger={"backend": "redis", "redis_url": "rediss://u:hunter22@h:1/0"},
        outbox={"webhook_url": "https://hook.example", "secret": "Bearer abcdefgh"},
    )
    assert set(secrets_of(settings, "operators-token")) == {"hunter22", "Bearer abcdefgh", "abcdefgh", "operators-token"}


def test_secrets_of_files_and_addresses_are_known_however_they_are_written(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text('Bearer quo"ted-secret\n')
    settings = load_settings(
        ledger={"backend": "redis", "redis_url": "rediss://u:p%40ssword@h:1/0"},
        outbox={"webhook_url": "https://me:hook-password@hook.example", "secret_file": str(file)},
    )
    found = set(secrets_of(settings))
    assert {'quo"ted-secret', 'quo\\"ted-secret', "p%40ssword", "p@ssword", "hook-password"} <= found
    file.unlink()
    assert "hook-password" in secrets_of(settings)


def test_a_secret_that_no_header_can_carry_is_refused_without_being_told() -> None:
    outbox = {"webhook_url": "https://hook.example"}
    assert load_settings(outbox={**outbox, "secret": "abcdefgh\n"}).outbox.read_secret() == "abcdefgh"
    for wrong in ("two\nlines-of-secret", "n\u00f6-ascii-secret", " \n"):
        with pytest.raises(InvalidInput) as caught:
            load_settings(outbox={**outbox, "secret": wrong})
        assert caught.value.field == "outbox.secret"
        assert "secret" not in caught.value.message


@pytest.mark.parametrize(("which", "told"), [("none", []), ("failed", [429, 503]), ("all", [200, 429, 503])])
def test_calls_are_told_as_wanted(which: str, told: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    lines = Lines()
    logger = logging.getLogger("hindcast.calls")
    monkeypatch.setattr(logger, "handlers", [lines])
    monkeypatch.setattr(logger, "level", logging.INFO)
    monkeypatch.setattr(logger, "propagate", False)
    logger.manager._clear_cache()  # type: ignore[attr-defined]
    tell = call_log(which)  # type: ignore[arg-type]
    with scope.of_call("c") as own:
        own.caller = "shop"
        for status in (200, 429, 503):
            tell("GET", "/v1/decisions/{id}", status, 0.0123, own)
    assert [line["status"] for line in lines.lines] == told
    for line in lines.lines:
        assert (line["path"], line["ms"], line["caller"]) == ("/v1/decisions/{id}", 12.3, "shop")
