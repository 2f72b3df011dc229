"""What happened to the shop is in the log: promotions, switches, availability, stretches of fall-backs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa

from serve_app.log.compaction import compact
from serve_app.log.filling import fill
from serve_app.log.journal import Journal
from serve_app.log.reader import read_log
from serve_app.log.surroundings import availability, environment_rows, outages, promotion, switches
from serve_app.vocabulary import StageBit

MINUTE = 60_000_000
T = 1_700_000_000 * 1_000_000 // MINUTE * MINUTE


def requests(minutes: list[int], degraded: list[int]) -> pa.RecordBatch:
    n = len(minutes)
    ids = np.arange(1, n + 1, dtype=np.uint64)
    columns = {
        "user": ids,
        "request_id": ids,
        "ts": T + np.array(minutes) * MINUTE,
        "degraded": np.array(degraded, np.uint8),
    }
    return fill("requests", n, columns)


def test_minutes_that_follow_each_other_are_one_outage() -> None:
    ranking, log = int(StageBit.ranking), int(StageBit.log)
    table = pa.Table.from_batches([requests([0, 1, 1, 5, 6, 2], [ranking, ranking, 0, ranking | log, ranking, ranking])])
    assert outages(table) == [
        (T, "outage", {"stage": "ranking", "from": T, "to": T + 3 * MINUTE, "requests": 3}),
        (T + 5 * MINUTE, "outage", {"stage": "ranking", "from": T + 5 * MINUTE, "to": T + 7 * MINUTE, "requests": 2}),
        (T + 5 * MINUTE, "outage", {"stage": "log", "from": T + 5 * MINUTE, "to": T + 6 * MINUTE, "requests": 1}),
    ]


def test_compaction_logs_the_outages_it_sees_once(tmp_path: Path) -> None:
    with Journal(tmp_path, "w") as journal:
        journal.append({"requests": requests([0, 1], [int(StageBit.features)] * 2)})
        journal.append(
            {"environment": environment_rows([promotion(T, "policy", "new", "old"), switches(T, "new", {"all": True})])}
        )
        journal.append({"environment": environment_rows([availability(T + 1, "mug", False, 7)])})
    compact(tmp_path, now_us=1)
    compact(tmp_path, now_us=2)
    rows = [(row["kind"], json.loads(row["payload"])) for row in read_log(tmp_path, "environment").to_pylist()]
    assert sorted(kind for kind, _ in rows) == ["availability", "outage", "promotion", "switch"]
    told = dict(rows)
    assert told["promotion"] == {"policy_revision": "new", "replaced": "old"}
    assert told["availability"] == {"item_id": "mug", "available": False, "sequence": 7}
    assert told["outage"]["requests"] == 2
