"""What `hindcast simulate` found, read for a report: a model's word beside the log's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson

from serve_app.errors import DamagedArtifact, InvalidInput

__all__ = ["load_simulated"]

_HINT = "give the file that `hindcast simulate --out` wrote"
_NUMBERS = ("fatigue", "value", "baseline", "difference", "low", "high")


def load_simulated(path: Path, policies: Sequence[str]) -> dict[str, Any]:
    """Of the named policies alone. Raises DamagedArtifact where it is no such file, InvalidInput where it knows none of
    them."""
    try:
        said = orjson.loads(path.read_bytes())
        rows = [dict(one) for one in said["differences"]]
        out = {"kind": said["kind"], "users": int(said["users"]), "days": int(said["days"])}
        for one in rows:
            one.update({name: float(one[name]) for name in _NUMBERS})
        known = sorted({str(one["policy"]) for one in rows})
        mine = [one for one in rows if one["policy"] in policies and str(one["metric"])]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedArtifact(f"holds no simulation: {error}", field=str(path), hint=_HINT) from None
    if out["kind"] != "model":
        raise DamagedArtifact(f"is of kind {out['kind']!r}", field=str(path), hint=_HINT)
    if not mine:
        hint = f"it knows {', '.join(known)}; files are named by their stem in both commands"
        raise InvalidInput("knows none of the policies", field="simulated", hint=hint)
    return {**out, "differences": mine}
