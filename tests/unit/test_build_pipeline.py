"""A build: the same files from the same log, restartable, and able to cope with shops that lack nearly everything."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from serve_app.batch import Batch, Ragged
from serve_app.errors import DamagedArtifact, InvalidInput
from serve_app.release.build import steps as build_steps
from serve_app.release.load import load_release
from serve_app.release.manifest import read_manifest
from serve_app.release.registry import current_release, promote
from serve_app.stages.features import COMPUTED, Features, ItemFacts, source_specs
from serve_app.stages.retrieval.evidence import EVIDENCE
from serve_app.stages.retrieval.stage import Retrieval
from serve_app.stages.stage import Context
from serve_app.vocabulary import Surface
from tests.unit.release_support import TINY, build, make_shop


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with one release built."""
    data = tmp_path_factory.mktemp("shop")
    make_shop(data)
    build(data)
    return data


def answer(folder: Path, surface: Surface, anchor: int) -> np.ndarray:
    """Item rows answered by the stages over a release folder, best first."""
    release = load_release(folder)
    none = Ragged.empty(1, np.int32)
    batch = Batch.of_requests(
        request_id=np.ones(1, np.uint64),
        surface=np.full(1, surface, np.int8),
        policy=np.zeros(1, np.int16),
        decided_at=np.full(1, release.manifest.lineage.log_to or 0, np.int64),
        user_row=np.full(1, -1, np.int32),
        region=np.full(1, -1, np.int16),
        anchor=np.full(1, anchor, np.int32),
        recents=none,
        bought=none,
        excluded=none,
        categories=none,
        width=np.full(1, 50, np.int32),
    )
    batch = Retrieval(release.retrieval).run(batch, Context())
    batch = batch.select(batch.candidates["drop_reason"] == 0)
    rows = release.catalogue
    provided = [*(spec for table in release.features for spec in table.specs), *COMPUTED, *source_specs(EVIDENCE)]
    stage = Features(release.models.plans(provided), release.features, ItemFacts(rows.item_category, rows.item_price))
    batch = stage.run(batch, Context())
    score = release.models[surface].predict(batch.candidates["features"])[:, 0]
    return np.asarray(batch.candidates["item"][np.argsort(-score, kind="stable")])


def test_a_release_answers_with_items_of_the_anchors_kind_first(shop: Path) -> None:
    folder = next((shop / "releases").glob("2*"))
    rows = load_release(folder, ["catalogue"]).catalogue
    hits = [
        rows.item_category[answer(folder, Surface.related, anchor)[:5]] == rows.item_category[anchor] for anchor in range(6)
    ]
    assert np.mean(hits) > 0.8


def test_the_same_log_seed_and_code_give_the_same_files(shop: Path, tmp_path: Path) -> None:
    make_shop(tmp_path)
    again = build(tmp_path, created_at=99)
    first = read_manifest(next((shop / "releases").glob("2*")))
    second = read_manifest(again.folder)
    assert (second.version, second.files) == (first.version, first.files)
    assert second.created_at != first.created_at


def test_another_seed_gives_another_release(shop: Path) -> None:
    first = {path.name for path in (shop / "releases").glob("2*")}
    report = build(shop, TINY.model_copy(update={"seed": 8}))
    assert report.version not in first
    shutil.rmtree(report.folder)


def test_nothing_is_done_again_when_nothing_changed(tmp_path: Path) -> None:
    make_shop(tmp_path, sessions=100)
    build(tmp_path)
    states: dict[str, str] = {}
    build(tmp_path, observer=lambda name, state: states.update({name: state}))
    assert set(states.values()) == {"unchanged"}


def test_a_killed_build_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_shop(tmp_path, sessions=100)

    def killed(*_args: object, **_kwargs: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(build_steps, "measure_lists", killed)
        with pytest.raises(KeyboardInterrupt):
            build(tmp_path)
    assert list((tmp_path / "releases").glob("2*")) == []
    states: dict[str, str] = {}
    build(tmp_path, observer=lambda name, state: states.update({name: state}))
    assert {name for name, state in states.items() if state == "unchanged"} >= {"catalogue", "extract", "tables-early"}
    assert states["figures-related"] == "done"


def test_new_events_are_seen_by_the_next_build(tmp_path: Path) -> None:
    make_shop(tmp_path, sessions=100)
    first = build(tmp_path)
    make_shop(tmp_path, sessions=150, seed=6)
    second = build(tmp_path)
    assert second.version != first.version
    assert second.extracted["kept"] == first.extracted["kept"] + 750


def test_an_empty_catalogue_is_a_clear_error(tmp_path: Path) -> None:
    make_shop(tmp_path, items=0)
    with pytest.raises(InvalidInput, match=r"catalogue\.items.*nothing to recommend"):
        build(tmp_path)


def test_no_catalogue_at_all_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="no catalogue"):
        build(tmp_path)


@pytest.mark.parametrize(
    ("items", "users", "sessions"), [(1, 3, 20), (1, 0, 0), (2, 1, 5), (15, 0, 50), (20, 10, 0)], ids=str
)
def test_a_shop_that_lacks_nearly_everything_gets_a_release_that_says_so(
    tmp_path: Path, items: int, users: int, sessions: int
) -> None:
    make_shop(tmp_path, items=items, users=users, sessions=sessions)
    report = build(tmp_path)
    promote(tmp_path, report.version, now=1)
    assert current_release(tmp_path) == report.folder
    assert {"related heads", "gateway heads", "notification", "widgets", "reviews"} <= set(report.left_out)
    assert len(answer(report.folder, Surface.gateway, -1)) == items


@pytest.mark.parametrize("part", ["retrieval", "features", "models", "histories"])
def test_a_truncated_array_or_model_is_refused_by_name(shop: Path, tmp_path: Path, part: str) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(next((shop / "releases").glob("2*")), folder)
    victim = max((path for path in (folder / part).rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    victim.write_bytes(victim.read_bytes()[:-9])
    with pytest.raises(DamagedArtifact, match=victim.name.replace(".", r"\.")):
        load_release(folder)
    with pytest.raises(DamagedArtifact):
        load_release(folder, verify=False).load_all()


def test_a_wrong_dtype_is_refused_even_unverified(shop: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(next((shop / "releases").glob("2*")), folder)
    victim = folder / "histories" / "recent_items.npy"
    np.save(victim, np.load(victim).astype(np.int64))
    with pytest.raises(DamagedArtifact, match=r"recent_items\.npy.*int64.*int32"):
        _ = load_release(folder, verify=False).histories


def test_an_array_of_objects_is_never_unpickled(shop: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(next((shop / "releases").glob("2*")), folder)
    np.save(folder / "histories" / "recent_items.npy", np.array([{"a": 1}], object), allow_pickle=True)
    with pytest.raises(DamagedArtifact, match=r"recent_items\.npy"):
        _ = load_release(folder, verify=False).histories
    assert [path for path in folder.rglob("*") if path.suffix in (".pkl", ".pickle", ".joblib")] == []
