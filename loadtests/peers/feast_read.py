"""Feast's local online store: 100 entities x 50 features. Runs in the peers' environment.

``python loadtests/peers/feast_read.py ENTITIES FEATURES ROUNDS`` prints microseconds a read as JSON.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

__all__ = ["main"]

_ROWS = 5_000
_CONFIG = """project: bench
provider: local
registry: {folder}/registry.db
online_store:
  type: sqlite
  path: {folder}/online.db
entity_key_serialization_version: 3
"""


def main(entities: int, features: int, rounds: int) -> dict[str, Any]:
    """Times of `get_online_features(...).to_dict()`."""
    from feast import Entity, FeatureStore, FeatureView, Field, FileSource
    from feast.types import Float32
    from feast.value_type import ValueType

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "feature_store.yaml").write_text(_CONFIG.format(folder=folder))
        names = [f"f{n}" for n in range(features)]
        rng = np.random.default_rng(0)
        frame = pd.DataFrame(rng.normal(size=(_ROWS, features)).astype(np.float32), columns=names)
        frame["item"], frame["at"] = np.arange(_ROWS), pd.Timestamp(datetime.now(UTC))
        frame.to_parquet(folder / "source.parquet")
        item = Entity(name="item", join_keys=["item"], value_type=ValueType.INT64)
        view = FeatureView(
            name="facts", entities=[item], ttl=timedelta(days=1), schema=[Field(name=one, dtype=Float32) for one in names],
            source=FileSource(path=str(folder / "source.parquet"), timestamp_field="at"),
        )  # fmt: skip
        store = FeatureStore(repo_path=str(folder))
        store.apply([item, view])
        store.write_to_online_store("facts", frame)
        wanted = [f"facts:{one}" for one in names]
        took = []
        for number in range(-5, rounds):
            rows = [{"item": int(one)} for one in rng.integers(0, _ROWS, entities)]
            began = time.perf_counter()
            got = store.get_online_features(features=wanted, entity_rows=rows).to_dict()
            if number >= 0:
                took.append((time.perf_counter() - began) * 1e6)
        assert len(got["f0"]) == entities
        assert got["f0"][0] is not None
    from importlib.metadata import version

    return {"p50_us": float(np.percentile(took, 50)), "p99_us": float(np.percentile(took, 99)), "version": version("feast")}


if __name__ == "__main__":
    print(json.dumps(main(*map(int, sys.argv[1:4]))))
