"""Feature tables: what they refuse, and that they survive the disk."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from serve_app.errors import DamagedArtifact, InvalidInput
from serve_app.stages.features import Entity, FeaturePlan, FeatureSpec, FeatureTable

SPECS = (FeatureSpec("price", Entity.item), FeatureSpec("is_new", Entity.item, "bool", default=0.0, max_age_s=60))


def table(rows: int = 3) -> FeatureTable:
    values = np.stack([np.arange(rows), np.arange(rows) % 2], axis=1).astype(np.float32)
    return FeatureTable(Entity.item, SPECS, np.arange(rows, dtype=np.uint64), values, np.arange(rows, dtype=np.int64))


@pytest.mark.parametrize("rows", [0, 1, 5])
def test_a_saved_table_comes_back_the_same(tmp_path: Path, rows: int) -> None:
    table(rows).save(tmp_path / "item")
    back = FeatureTable.load(tmp_path / "item")
    assert back.specs == SPECS
    assert back.entity is Entity.item
    for name in ("keys", "values", "as_of"):
        assert getattr(back, name).tobytes() == getattr(table(rows), name).tobytes()


def test_a_moved_folder_still_loads(tmp_path: Path) -> None:
    table().save(tmp_path / "here")
    (tmp_path / "here").rename(tmp_path / "there")
    assert len(FeatureTable.load(tmp_path / "there")) == 3


def test_changing_a_loaded_table_in_memory_leaves_the_file_alone(tmp_path: Path) -> None:
    table().save(tmp_path / "item")
    FeatureTable.load(tmp_path / "item").values[:] = 9
    assert FeatureTable.load(tmp_path / "item").values.tobytes() == table().values.tobytes()


@pytest.mark.parametrize("name", ["values.npy", "keys.npy", "as_of.npy", "table.json"])
@pytest.mark.parametrize("keep", [0, 0.5, 0.98])
def test_a_truncated_file_is_named(tmp_path: Path, name: str, keep: float) -> None:
    table(50).save(tmp_path)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: int(len(whole) * keep)])
    with pytest.raises(DamagedArtifact, match=name):
        FeatureTable.load(tmp_path)


@pytest.mark.parametrize("name", ["values", "keys", "as_of"])
def test_an_array_of_the_wrong_dtype_is_refused(tmp_path: Path, name: str) -> None:
    table().save(tmp_path)
    np.save(tmp_path / f"{name}.npy", np.load(tmp_path / f"{name}.npy").astype(np.float64))
    with pytest.raises(DamagedArtifact, match="float64"):
        FeatureTable.load(tmp_path)


def test_a_pickled_array_is_never_loaded(tmp_path: Path) -> None:
    table().save(tmp_path)
    np.save(tmp_path / "keys.npy", np.array([{"a": 1}], object), allow_pickle=True)
    with pytest.raises(DamagedArtifact, match=r"keys\.npy"):
        FeatureTable.load(tmp_path)


def test_another_schema_version_is_refused(tmp_path: Path) -> None:
    table().save(tmp_path)
    head = json.loads((tmp_path / "table.json").read_text())
    (tmp_path / "table.json").write_text(json.dumps({**head, "schema_version": 99}))
    with pytest.raises(DamagedArtifact, match="schema version"):
        FeatureTable.load(tmp_path)


@pytest.mark.parametrize(("column", "value", "says"), [(0, np.inf, "infinite"), (1, 0.5, "0 or 1")])
def test_a_value_that_does_not_fit_its_declaration_is_not_saved(
    tmp_path: Path, column: int, value: float, says: str
) -> None:
    bad = table()
    bad.values[1, column] = value
    with pytest.raises(InvalidInput, match=says):
        bad.save(tmp_path)


@pytest.mark.parametrize(
    "arguments",
    [
        {"name": "no spaces"},
        {"name": "x", "dtype": "f8"},
        {"name": "x", "default": float("nan")},
        {"name": "x", "max_age_s": 0},
        {"name": "x", "entity": "planet"},
    ],
)
def test_a_nonsensical_declaration_is_refused(arguments: dict[str, object]) -> None:
    with pytest.raises(InvalidInput):
        FeatureSpec(**{"entity": Entity.item, **arguments})  # type: ignore[arg-type]


def test_a_plan_names_the_feature_nobody_provides() -> None:
    with pytest.raises(InvalidInput, match="clicks_7d"):
        FeaturePlan.compile(["price", "clicks_7d"], SPECS)


def test_a_plan_refuses_a_feature_with_two_writers() -> None:
    with pytest.raises(InvalidInput, match="price"):
        FeaturePlan.compile(["price"], (*SPECS, SPECS[0]))


def test_a_plan_keeps_the_models_order_and_always_knows_the_position() -> None:
    plan = FeaturePlan.compile(["is_new", "position", "price"], SPECS, position=2.0)
    assert plan.names == ("is_new", "position", "price")
    assert plan.defaults()[1] == 2.0
