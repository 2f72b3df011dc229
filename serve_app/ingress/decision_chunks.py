"""Rows that were decided together, put back beside those that could not be, in the order they were asked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from serve_app.decide import DecideStatus
from serve_app.ingress.asked import AskedRows
from serve_app.ingress.decision_answers import ANSWER_SCHEMA, answer_rows, answer_table, more_sends, problems_of
from serve_app.ingress.decision_explained import explained_candidates
from serve_app.ingress.decisions import PreparedDecisions
from serve_app.ingress.problems import problem_of
from serve_app.ingress.stored import stored_row
from serve_app.serving.deciding import Decided
from serve_app.serving.library import Edition

__all__ = ["Answer", "Chunk", "cuts", "rows_of", "table_of"]

Answer = dict[str, Any] | Exception


@dataclass(slots=True)
class Chunk:
    """Rows, what was prepared of them, and what was decided on the good ones (None: nothing to decide)."""

    rows: AskedRows
    prepared: PreparedDecisions
    made: Decided | None
    edition: Edition

    @classmethod
    def failed(cls, rows: AskedRows, error: Exception, edition: Edition) -> Chunk:
        """All rows share one problem, but for those that had one of their own."""
        problems = {row: rows.problems.get(row, error) for row in range(len(rows))}
        return cls(rows, PreparedDecisions(None, np.empty(0, np.int64), None, None, problems), None, edition)

    def replayed(self) -> dict[int, dict[str, Any]]:
        """Answers of repeated idempotency keys, by position among the good rows: the first decision's."""
        if self.made is None:
            return {}
        decided = self.made.decided
        return {
            row: stored_row(decided.stored[row], self.rows.users[int(self.prepared.good[row])], self.edition)
            for row in np.flatnonzero(decided.status == DecideStatus.duplicate).tolist()
        }


def cuts(rows: AskedRows, edition: Edition, *, most_rows: int, most_candidates: int) -> list[tuple[int, int]]:
    """(start, stop) of runs of rows, in order, each of at most so many rows and, but for a single row, candidates. A row
    that leaves channels or candidates open is taken for as many as it could have."""
    channels = edition.campaigns.channels.lengths
    widest, everything = int(channels.max(initial=1)), int(channels.sum())
    each = np.r_[0, np.cumsum(np.where(rows.channel >= 0, 1, widest))]
    named = each[rows.offsets[1:]] - each[rows.offsets[:-1]]
    ends = np.cumsum(np.where(rows.named, named, everything))
    out, start = [], 0
    while start < len(rows):
        before = int(ends[start - 1]) if start else 0
        fits = int(np.searchsorted(ends, before + most_candidates, side="right"))
        stop = max(start + 1, min(start + most_rows, fits))
        out.append((start, stop))
        start = stop
    return out


def rows_of(chunk: Chunk, *, explain: bool = False) -> list[Answer]:
    """Every row's answer or problem."""
    answers: list[Any] = [chunk.prepared.problems.get(row) for row in range(len(chunk.rows))]
    if chunk.made is None:
        return answers
    good = chunk.prepared.good.tolist()
    own: list[Any] = answer_rows(chunk.made, [chunk.rows.users[row] for row in good], chunk.edition)
    for place, answer in chunk.replayed().items():
        own[place] = answer
    for place, row in enumerate(good):
        answers[row] = own[place]
        if explain and isinstance(own[place], dict) and not own[place]["replayed"]:
            own[place]["explain"] = explained_candidates(chunk.made.decided.batch, place, chunk.edition)
    return answers


def table_of(chunk: Chunk) -> pa.Table:
    """Every row's answer or problem, with the schema of `answer_table`."""
    others: dict[int, dict[str, Any]] = {row: _problem(why) for row, why in chunk.prepared.problems.items()}
    if chunk.made is None:
        return pa.Table.from_pylist([others[row] for row in range(len(chunk.rows))], schema=ANSWER_SCHEMA)
    good = chunk.prepared.good
    others |= {int(good[place]): _problem(why) for place, why in problems_of(chunk.made).items()}
    others |= {int(good[place]): _replayed(answer) for place, answer in chunk.replayed().items()}
    decided = answer_table(chunk.made, chunk.edition)
    if not others:
        return decided
    places = np.empty(len(chunk.rows), np.int64)
    places[good] = np.arange(len(good))
    places[list(others)] = len(good) + np.arange(len(others))
    return pa.concat_tables([decided, pa.Table.from_pylist(list(others.values()), schema=ANSWER_SCHEMA)]).take(places)


def _problem(error: Exception) -> dict[str, Any]:
    said = problem_of(error).problem
    return {"status": said.status, "detail": said.detail}


def _replayed(answer: dict[str, Any]) -> dict[str, Any]:
    send = answer["sends"][0] if answer["sends"] else {}
    fields = {name: answer[name] for name in ("decision_id", "action", "reason", "until")}
    fields |= {name: send.get(name) for name in ("campaign", "item", "channel")}
    return {"status": 200, **fields, "delivery": send.get("status"), "more": more_sends(answer["sends"])}
