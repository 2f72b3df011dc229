"""`hindcast evaluate reviews`: does the review model tell reviews that readers found helpful from those they did not?"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import numpy.typing as npt
import typer

from serve_app.errors import InvalidInput

if TYPE_CHECKING:
    from rich.console import Console

    from serve_app.reviews import ReviewTable

__all__ = ["evaluate", "read_reviews", "register"]

F64 = npt.NDArray[np.float64]
U64 = npt.NDArray[np.uint64]
Bool = npt.NDArray[np.bool_]

_RESAMPLES = 1_000
_LABEL = "has helpful votes"


def register(group: typer.Typer) -> None:
    """Add the subcommand."""
    group.command("reviews")(reviews_command)


def reviews_command(
    source: Annotated[Path, typer.Option("--from", help="Folder with *.json.gz in the form of Amazon review data (2018).")],
    out: Annotated[Path | None, typer.Option("--out", help="Also write everything as JSON.", dir_okay=False)] = None,
    repeats: Annotated[int, typer.Option("--repeats", min=1, max=100, help="Splits into folds; figures are means.")] = 3,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Fixes folds, training and resamples.")] = 7,
) -> None:
    """AUC for "has helpful votes", each text once, five folds by reviewer, with and without the review's age."""
    from rich.console import Console

    console = Console()
    with console.status("reading reviews") as status:
        reviews = read_reviews(source)
        status.update(f"{len(reviews):,} reviews: training five folds, {repeats} times")
        result = evaluate(reviews, seed=seed, repeats=repeats)
    _print(console, result)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(result, indent=1) + "\n")
        console.print(f"written: {out}")


@dataclass(frozen=True, slots=True)
class _Interval:
    """AUC with the 95 % interval of a bootstrap over reviewers."""

    auc: float
    low: float
    high: float

    def to_json(self) -> dict[str, float]:
        return {"auc": round(self.auc, 4), "low": round(self.low, 4), "high": round(self.high, 4)}


def evaluate(reviews: ReviewTable, *, seed: int = 7, repeats: int = 3) -> dict[str, Any]:
    """All figures, as the JSON holds them. Raises InvalidInput where no text, or every text, has a vote."""
    from serve_app.reviews import out_of_fold
    from serve_app.reviews.features import review_features

    rows = reviews.distinct_texts()
    helpful, users = reviews.votes[rows] > 0, reviews.user[rows]
    if not 0 < helpful.sum() < len(rows):
        raise InvalidInput("some texts need helpful votes and some none", field="vote")
    length = np.array([len(reviews.text[row]) for row in rows.tolist()], np.float64)
    figures = {"length_alone": _with_interval(helpful, [length], users, seed)}
    for name, with_age in (("with_age", True), ("without_age", False)):
        matrix = review_features(reviews, with_age=with_age)[rows]
        scores = [out_of_fold(matrix, helpful, users, seed=seed + repeat) for repeat in range(repeats)]
        figures[name] = _with_interval(helpful, scores, users, seed)
    return {
        "label": _LABEL,
        "reviews": len(reviews),
        "texts": len(rows),
        "helpful": int(helpful.sum()),
        "reviewers": len(np.unique(users)),
        "folds": "5, by reviewer",
        "repeats": repeats,
        "seed": seed,
        "auc": {name: figure.to_json() for name, figure in figures.items()},
    }


def _with_interval(helpful: Bool, scores: list[F64], users: U64, seed: int) -> _Interval:
    """Mean AUC over the score vectors; all are resampled together, reviewer by reviewer."""
    from serve_app.stages.ranking.metrics import area_under_curve

    _, reviewer = np.unique(users, return_inverse=True)
    count = int(reviewer.max()) + 1
    rng = np.random.default_rng(seed)
    drawn = []
    for _ in range(_RESAMPLES):
        weight = np.bincount(rng.integers(0, count, count), minlength=count)[reviewer].astype(np.float64)
        drawn.append(np.mean([area_under_curve(helpful, one, weight) for one in scores]))
    low, high = np.nanpercentile(drawn, [2.5, 97.5])
    auc = float(np.mean([area_under_curve(helpful, one) for one in scores]))
    return _Interval(auc, float(low), float(high))


def read_reviews(folder: Path) -> ReviewTable:
    """Every *.json.gz of `folder`, one JSON object a line, with the fields of Amazon review data (2018): reviewText,
    reviewerID, asin, overall, unixReviewTime, and optionally verified, vote, summary, image. InvalidInput names file, line
    and field."""
    from serve_app.ids import hash_ids
    from serve_app.reviews import ReviewTable

    files = sorted(folder.glob("*.json.gz"))
    if not files:
        raise InvalidInput("holds no *.json.gz", field=str(folder), hint="name a folder of Amazon review data")
    rows = [row for path in files for row in _lines(path)]
    return ReviewTable(
        hash_ids(row["asin"] for row in rows),
        hash_ids(row["reviewerID"] for row in rows),
        np.array([row["unixReviewTime"] for row in rows], np.int64) * 1_000_000,
        np.array([row["overall"] for row in rows], np.float32),
        np.array([row.get("verified", False) for row in rows], np.bool_),
        [row.get("reviewText") or "" for row in rows],
        np.array([int(str(row.get("vote") or 0).replace(",", "")) for row in rows], np.int32),
        [row.get("summary") or "" for row in rows],
        np.array([len(row.get("image") or ()) for row in rows], np.int32),
    )


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    try:
        with gzip.open(path, "rt", encoding="utf-8") as stream:
            for number, line in enumerate(stream, 1):
                row = json.loads(line)
                for name in ("asin", "reviewerID", "unixReviewTime", "overall"):
                    if name not in row:
                        raise InvalidInput(f"line {number} lacks {name}", field=str(path))
                yield row
    except (OSError, EOFError, ValueError) as error:
        raise InvalidInput(f"cannot be read: {error}", field=str(path)) from error


def _print(console: Console, result: dict[str, Any]) -> None:
    from rich.table import Table

    table = Table(title=f"AUC for “{result['label']}”, {result['texts']:,} texts, {result['folds']}")
    for heading in ("features", "AUC", "95 % interval"):
        table.add_column(heading)
    for name, figure in result["auc"].items():
        interval = f"{figure['low']:.3f} to {figure['high']:.3f}"
        table.add_row(name.replace("_", " "), f"{figure['auc']:.3f}", interval)
    console.print(table)
