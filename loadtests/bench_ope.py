"""How fast estimates are made over Ray Data: IPS and SNIPS with user-clustered intervals and diagnostics.

Rows are written in buckets of users, as a log of ours lies, and read in one pipeline; then a smaller file in no order, where
rows must first meet by user. That file also goes through RLlib's importance sampling, in a Ray that is up and warm in both:
``make bench-peers`` makes the environment it needs. Run: ``python -m loadtests.bench_ope``.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from loadtests.hardware import hardware, hardware_line
from serve_app.noise import hash_key
from simulators.estimators import Per, Suite
from simulators.estimators.dataset import RowColumns, estimate_dataset

PEER = Path(__file__).with_name("bench_ope_peer.py")
COLUMNS = RowColumns("p", {"new": "pi_new"}, {"click": "click"}, user="user")
_PER_USER, _FEATURES, _ACTIONS = 20, 4, 4
F64 = npt.NDArray[np.float64]


def weights() -> tuple[F64, F64]:
    """(logged, target) f64[features, actions]: softmax policies over linear scores."""
    rng = np.random.default_rng(5)
    logged = rng.normal(size=(_FEATURES, _ACTIONS))
    return logged, logged + 0.5 * rng.normal(size=(_FEATURES, _ACTIONS))


def drawn(rows: int, seed: int) -> dict[str, Any]:
    """Columns of one bucket: users u64, contexts, actions, both policies' probabilities, clicks that resemble each other."""
    rng = np.random.default_rng(seed)
    users = np.sort(hash_key(seed, np.arange(max(rows // _PER_USER, 1))))
    user = np.sort(users[rng.integers(0, len(users), rows)])
    obs = rng.normal(size=(rows, _FEATURES))
    logged, target = (_softmax(obs @ one) for one in weights())
    action = (rng.random(rows)[:, None] > np.cumsum(logged, axis=1)).sum(axis=1).clip(0, _ACTIONS - 1)
    taste = (hash_key(7, user) >> np.uint64(11)).astype(np.float64) * 2.0**-53
    click = rng.random(rows) < 0.02 + 0.1 * taste * (action == 1)
    at = np.arange(rows), action
    return {
        "user": user, "obs": obs, "action": action, "p": logged[at], "click": click.astype(float),
        # As RLlib sees it: its evaluation takes a policy's logarithms of probabilities in single precision.
        "pi_new": np.exp(np.log(target[at]).astype(np.float32)).astype(np.float64),
    }  # fmt: skip


def _softmax(scores: F64) -> F64:
    odds = np.exp(scores - scores.max(axis=1, keepdims=True))
    return odds / odds.sum(axis=1, keepdims=True)


def write_buckets(folder: Path, rows: int, each: int) -> None:
    """Files of `each` rows: rows of a user together in one file."""
    folder.mkdir(parents=True)
    for number in track(range(-(-rows // each)), f"writing {rows:,} rows"):
        found = drawn(min(each, rows - number * each), number)
        table = pa.table({name: found[name] for name in ("user", "p", "pi_new", "click")})
        pq.write_table(table, folder / f"bucket-{number:04d}.parquet", compression="zstd", row_group_size=131_072)


def write_shuffled(file: Path, rows: int) -> None:
    """One file in no order, with the columns of both: as RLlib wants them, each value in a list of one time step."""
    found = drawn(rows, 10_000)
    order = np.random.default_rng(1).permutation(rows)
    found = {name: values[order] for name, values in found.items()}
    step = pa.array(np.arange(rows + 1).astype(np.int32))

    def in_list(values: Any) -> pa.Array:
        return pa.ListArray.from_arrays(step, values)

    vectors = pa.ListArray.from_arrays(step.to_numpy() * np.int32(_FEATURES), found["obs"].ravel())
    theirs = {"obs": in_list(vectors), "actions": in_list(found["action"]), "action_prob": in_list(found["p"])}
    ours = {name: found[name] for name in ("user", "p", "pi_new", "click")}
    pq.write_table(pa.table({**ours, **theirs, "rewards": in_list(found["click"])}), file, row_group_size=50_000)


def timed(source: Path, *, grouped: bool) -> tuple[Suite, float]:
    """The sums, and the seconds of wall time."""
    start = time.perf_counter()
    suite = estimate_dataset(source, COLUMNS, grouped=grouped)
    return suite, time.perf_counter() - start


def answers(suite: Suite) -> dict[str, Any]:
    """Value a decision with its interval, by estimator; and what the diagnostics say."""
    out: dict[str, Any] = {}
    for label in suite.labels:
        value, interval = suite[label].interval("new", "click", Per.decision)
        out[label] = {"value": value, "low": interval.low, "high": interval.high}
    seen = suite.weights_of("ips", "new")
    return {**out, "users": seen.users, "rows": seen.rows, "ess_rows": seen.ess_rows, "ess_users": seen.ess_users}


def peer(python: Path, file: Path, cpus: int) -> dict[str, Any]:
    """RLlib's answers and seconds."""
    asked = [str(python), str(PEER), str(file), json.dumps(weights()[1].tolist()), str(cpus)]
    done = subprocess.run(asked, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"RLlib's part failed:\n{done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def measure(rows: int, small: int, each: int, cpus: int, repeats: int, work: Path, python: Path) -> dict[str, Any]:
    """Everything; Ray is up before any clock starts, and down before RLlib's starts."""
    import ray

    report: dict[str, Any] = {"hardware": hardware(cpus)}
    write_buckets(work / "buckets", rows, each)
    write_shuffled(work / "shuffled.parquet", small)
    ray.init(num_cpus=cpus, log_to_driver=False, logging_level="error", include_dashboard=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    write_buckets(work / "warm", 20_000, 10_000)
    timed(work / "warm", grouped=True)
    for name, source, grouped, count in (
        ("bucketed", work / "buckets", True, rows), ("shuffled", work / "shuffled.parquet", False, small)
    ):  # fmt: skip
        runs = [timed(source, grouped=grouped) for _ in range(repeats)]
        seconds = [one for _, one in runs]
        report[name] = {"rows": count, "seconds": seconds, "rows_per_second": count / min(seconds), **answers(runs[0][0])}
    ray.shutdown()
    if python.is_file():
        found = peer(python, work / "shuffled.parquet", cpus)
        report["rllib"] = {**found, "times_faster": found["is"]["seconds"] / min(report["shuffled"]["seconds"])}
        ours, theirs = report["shuffled"]["ips"]["value"], found["is"]["v_target"]
        if abs(ours - theirs) > 1e-9 * abs(theirs):
            raise RuntimeError(f"the same rows, two values: {ours!r} and RLlib's {theirs!r}")
    return report


def show(report: dict[str, Any], console: Console) -> None:
    """A table of it."""
    table = Table("what", "rows", "seconds", "rows/s", "IPS a decision")
    for name in ("bucketed", "shuffled"):
        one = report[name]
        table.add_row(f"hindcast, {name}", f"{one['rows']:,}", ", ".join(f"{s:.2f}" for s in one["seconds"]),
                      f"{one['rows_per_second']:,.0f}", f"{one['ips']['value']:.9f}")  # fmt: skip
    for name in ("is", "wis") if "rllib" in report else ():
        one, rows = report["rllib"][name], report["shuffled"]["rows"]
        table.add_row(f"RLlib, {name.upper()}", f"{rows:,}", f"{one['seconds']:.2f}", f"{rows / one['seconds']:,.0f}",
                      f"{one['v_target']:.9f}")  # fmt: skip
    console.print(table)
    if "rllib" in report:
        console.print(f"RLlib took {report['rllib']['times_faster']:.0f} times as long on the same file")
    console.print(hardware_line(report))


def main(
    rows: Annotated[int, typer.Option(min=1000, help="in buckets")] = 20_000_000,
    small: Annotated[int, typer.Option(min=1000, help="in no order, for both")] = 400_000,
    each: Annotated[int, typer.Option(min=1000, help="rows a bucket file")] = 1_000_000,
    cpus: Annotated[int, typer.Option(min=1, help="CPUs Ray may use")] = 2,
    repeats: Annotated[int, typer.Option(min=1, help="the best counts; all are kept")] = 3,
    peers: Annotated[Path, typer.Option(help="Python with RLlib; absent: left out")] = Path(".venv-peers-rllib/bin/python"),
    out: Annotated[Path, typer.Option(help="results, JSON")] = Path("bench-results/ope.json"),
    work: Annotated[Path | None, typer.Option(help="folder for the rows; default: a temporary one")] = None,
) -> None:
    """Off-policy estimates over Ray Data, and the same rows through RLlib."""
    folder = Path(tempfile.mkdtemp(prefix="hindcast-ope-", dir=work))
    try:
        report = measure(rows, small, each, cpus, repeats, folder, peers.absolute())
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(report, indent=1))
    show(report, Console())


if __name__ == "__main__":
    typer.run(main)
