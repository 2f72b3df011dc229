"""Lists without ranking: the order of retrieval."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from serve_app.batch import Batch
from serve_app.stages.extend import extended
from serve_app.vocabulary import DropReason

__all__ = ["unranked"]

I32 = npt.NDArray[np.int32]


def unranked(batch: Batch, page: I32 | None) -> Batch:
    """The fall-back of ranking: retrieval's order of the kept candidates, certain (p = 1), no item twice on a page."""
    rows = batch.candidates.rows
    slot, p_slot = np.full(rows, -1, np.int32), np.full(rows, np.nan)
    kind = "item" if "item" in batch.candidates else "widget" if "widget" in batch.candidates else "review"
    things, kept = batch.candidates[kind], batch.candidates["drop_reason"] == DropReason.kept
    score = batch.candidates["retrieval_score"]
    shown: dict[int, set[int]] = {}
    for row, wanted in enumerate(batch.requests["slots"].tolist()):
        start, stop = int(batch.offsets[row]), int(batch.offsets[row + 1])
        taken = shown.setdefault(int(page[row]), set()) if page is not None and page[row] >= 0 else set()
        order = start + np.lexsort((np.arange(stop - start), -score[start:stop]))
        free = [at for at in order.tolist() if kept[at] and int(things[at]) not in taken][:wanted]
        slot[free], p_slot[free] = np.arange(len(free)), 1.0
        taken |= {int(things[at]) for at in free}
    return extended(batch, {}, slot=slot, p_slot=p_slot, value=np.full(rows, np.nan))
