"""Lists that a running server logged, replayed: every one comes out again, pages, promotions, new and hidden items and all;
the release that served gives the logged scores again."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import orjson
import pytest

from serve_app.catalogue import read_catalogue
from serve_app.errors import InvalidInput
from serve_app.log.reader import bucket_groups, read_log
from serve_app.policies import store_policy
from serve_app.policy.compile import compile_policy
from serve_app.policy.document import PolicyDocument, canonical_json, parse_policy
from serve_app.vocabulary import Surface
from simulators.replay.asking import spec_for
from simulators.replay.items.job import lists_spec, run_lists
from simulators.replay.items.logged import Lists, read_lists
from simulators.replay.items.retrieving import RetrievedLists
from simulators.replay.job import run_replay
from simulators.replay.partition import TABLES_READ, read_partition
from simulators.replay.rescoring import heads_of, opened_release, rescored
from simulators.replay.scored_again import scored_again
from simulators.report.items import lists_content
from simulators.report.tally import Tally
from tests.cluster.server_support import TOKEN, data_copy, generous, in_process

OPERATOR = {"Authorization": f"Bearer {TOKEN}"}
SURFACES = ("related", "gateway", "widgets", "reviews")
RULE = {"rules": [{"attribute": "category", "window": 4, "max": 2}], "mmr_lambda": 0.9}
HEADS = {"related": {"p_click": 1.0}, "gateway": {"p_click": 1.0, "p_convert": 2.0}, "widgets": {"p_widget": 1.0}}


def policy(name: str, temperature: float, **related: Any) -> PolicyDocument:
    surfaces: dict[str, Any] = {one: {"head_weights": weights, "temperature": temperature} for one, weights in HEADS.items()}
    surfaces["gateway"]["diversity"] = RULE
    surfaces["related"] |= {"diversity": {"mmr_lambda": 0.7, "redundancy": "embedding"}, **related}
    surfaces["notification"] = {"head_weights": {"p_click": 1.0}}
    surfaces["reviews"] = {"head_weights": {"p_helpful": 1.0}, "temperature": temperature}
    return parse_policy({"name": name, "surfaces": surfaces})


BEHAVIOUR = (policy("first", 0.05), policy("second", 0.2, width=60))


def _calls(client: httpx.Client, data: Path, rounds: int) -> None:
    catalogue = read_catalogue(data / "catalogue")
    items, users = (catalogue.items["item_id"].to_pylist(), catalogue.users["user_id"].to_pylist())
    reviewed = sorted(set(catalogue.reviews["item_id"].to_pylist()))

    def call(n: int) -> tuple[Any, Any]:
        user = {"user": users[n % 50]} if n % 7 else {}
        asked: list[tuple[str, dict[str, Any]]] = [
            ("recommendations/related", {"item": items[n % 80], "slots": 6, **user}),
            ("recommendations/gateway", {"widgets": 4, "slots": 5, **user}),
            ("widgets/rank", {"slots": 5, **user}),
            ("reviews/rank", {"item": reviewed[n % len(reviewed)], "slots": 3}),
        ]
        path, body = asked[n % 4]
        answer = client.post(f"/v1/{path}", json=body)
        assert answer.status_code == 200, answer.text
        return user.get("user"), answer.json()

    with ThreadPoolExecutor(6) as callers:
        _click(client, [one for one in callers.map(call, range(rounds)) if one[0] and "items" in one[1]])


def _decide(client: httpx.Client, data: Path) -> None:
    """Send decisions about live campaigns, for users who can be reached."""
    sale = {"text": "Back in stock", "message_class": "informational", "channels": ["push", "email"]}
    assert client.put("/v1/campaigns/restock", json=sale).status_code == 200
    for user in read_catalogue(data / "catalogue").users["user_id"].to_pylist()[:60]:
        assert client.put(f"/v1/users/{user}", json={"reachable": ["push", "email"], "zone": "UTC"}).status_code == 200
        answer = client.post("/v1/notifications/decide", json={"user": user, "candidates": [{"campaign": "restock"}]})
        assert answer.status_code == 200, answer.text


def _click(client: httpx.Client, shown: list[tuple[Any, Any]]) -> None:
    """Every other list's first item."""
    now, events = datetime.now(UTC).isoformat(), []
    for user, answer in shown[::2]:
        first = answer["items"][0]["decision_id"]
        one = {"specversion": "1.0", "id": f"click {first}", "source": "/test", "type": "click", "subject": user}
        events.append({**one, "time": now, "data": {"decision_id": first}})
    answer = client.post("/v1/events", json=events)
    assert answer.json()["refused"] == 0, answer.text


@pytest.fixture(scope="module")
def logged(demo_release: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = data_copy(demo_release, tmp_path_factory.mktemp("lists") / "data")
    with in_process(generous(data=data, topology="fused")) as client:
        for document in BEHAVIOUR:
            revision = store_policy(data, document)
            for phase in ("prepare", "commit"):
                assert client.post(f"/v1/policies/{phase}", json={"version": revision}, headers=OPERATOR).status_code == 200
            _calls(client, data, 200)
            _decide(client, data)
            some = read_catalogue(data / "catalogue").items["item_id"].to_pylist()[:3]
            for item in some:
                assert client.put(f"/v1/items/{item}", json={"available": False}).status_code == 200
            new = {"title": "Lamp", "price": 3.5, "category": "books"}
            assert client.put(f"/v1/items/lamp {document.name}", json=new).status_code == 200
        client.post("/v1/log/upkeep", headers=OPERATOR)
    return data


def test_every_list_comes_out_again(logged: Path, tmp_path: Path) -> None:
    spec = lists_spec(logged, {"colder": policy("colder", 0.01)}, SURFACES, attribution_us=1)
    result = run_lists(spec, tmp_path, local=True)
    surfaces = read_log(logged, "requests", columns=["surface"])["surface"].to_numpy()
    for name, one in result.surfaces.items():
        tally = Tally(one.counts)
        assert one.parity.columns == {}, (name, one.parity.examples[:3])
        assert one.parity.same == (surfaces == Surface[name]).sum() > 20
        assert tally.total("logged", "fell_back") == tally.total("logged", "lists_unsampled") == 0
        assert tally.total("colder", "lists_changed") > 0


def _parts(data: Path) -> list[Lists]:
    surfaces = [Surface[name] for name in SURFACES]
    return [
        part for group in bucket_groups(data, ("requests", "candidates", "events"))
        for part in read_lists(group, surfaces, features=True)[0]
    ]  # fmt: skip


def test_the_release_that_served_gives_the_logged_scores_to_the_bit(logged: Path) -> None:
    parts = _parts(logged)
    assert {one.surface for one in parts} == {Surface[name] for name in SURFACES}
    for one in parts:
        heads = heads_of(opened_release(logged, one.release, ("models",)), one.surface)
        again = rescored(heads, one.candidates["features"], one.feature_names)
        scored = ~np.isnan(one.candidates["heads"]).any(axis=1)
        assert scored.any()
        assert again[scored].tobytes() == one.candidates["heads"][scored].tobytes()


def test_send_decisions_are_scored_again_to_the_bit(logged: Path) -> None:
    release = _parts(logged)[0].release
    spec = replace(spec_for(logged, {}), release=release)
    decided = 0
    for group in bucket_groups(logged, TABLES_READ):
        partition = read_partition(group)
        again, names = scored_again(partition, group, spec)
        batch = partition.asked.batch
        assert again.asked.rescored is not None
        assert names == again.asked.rescored[0] == batch.meta["heads"]
        assert again.asked.rescored[1].tobytes() == batch.candidates["heads"].tobytes()
        decided += len(batch)
    assert decided >= 100


def test_a_head_that_no_model_of_the_release_has_is_refused_with_what_would_help(logged: Path, tmp_path: Path) -> None:
    body = orjson.loads(canonical_json(BEHAVIOUR[0]))
    body["surfaces"]["notification"]["head_weights"] = {"p_regret": 1.0}
    spec = spec_for(logged, {"regretful": parse_policy(body)})
    with pytest.raises(InvalidInput, match=r"p_regret.*--release"):
        run_replay(spec, tmp_path, local=True)


def test_retrieval_run_again_by_the_release_that_served_finds_and_scores_the_logged_candidates(logged: Path) -> None:
    """Of lists made before items were hidden or stored: the release itself knows of neither."""
    documents, seen = {one.revision: one for one in BEHAVIOUR}, 0
    for group in bucket_groups(logged, ("requests", "candidates", "events")):
        for lists in read_lists(group, [Surface.related, Surface.gateway], features=True, asked=True)[0]:
            release = opened_release(logged, lists.release, ("catalogue", "retrieval", "features", "models"))
            assert lists.asked is not None
            early = lists.take(lists.asked["availability_seq"].to_numpy() == 0)
            if not len(early):
                continue
            (revision,) = {lists.revisions[place] for place in early.policy.tolist()}
            policy = compile_policy(documents[revision], heads={early.surface.name: early.head_names})
            scored = RetrievedLists(release, None).score(early, [policy], lambda _, own=policy: {"again": own})
            again = scored.targets["again"]
            assert again.allowed is None or again.allowed.all()
            assert scored.notes == {"unknown_things": 0, "not_retrieved": 0, "newly_retrieved": 0}
            assert again.lists.candidates["thing"].tobytes() == early.candidates["thing"].tobytes()
            assert again.lists.candidates["heads"].tobytes() == early.candidates["heads"].tobytes()
            seen += len(early)
    assert seen > 100


def test_a_report_with_retrieval_run_again_says_what_it_could_not_know(logged: Path, tmp_path: Path) -> None:
    wide = policy("wide", 0.2, sources={"popular": 80, "similar": 60})
    release = _parts(logged)[0].release
    with pytest.raises(InvalidInput, match="--retrieval"):
        run_lists(lists_spec(logged, {"wide": wide}, ["related"], attribution_us=60_000_000), tmp_path / "a", local=True)
    how: dict[str, Any] = {"release": release, "retrieval": True, "attribution_us": 60_000_000}
    spec = lists_spec(logged, {"wide": wide}, SURFACES, **how)
    result = run_lists(spec, tmp_path / "b", local=True)
    found = {one["surface"]: one for one in lists_content(result, spec)}
    assert found["related"]["scores"] == "retrieval re-run"
    assert found["related"]["notes"].keys() >= {"not_retrieved", "newly_retrieved"}
    assert found["related"]["parity"]["share"] == 1.0
    assert found["related"]["targets"][0]["lists_changed"] > 0


def test_the_policy_that_served_on_the_release_that_served_changes_nothing(logged: Path, tmp_path: Path) -> None:
    release, served = _parts(logged)[0].release, BEHAVIOUR[1]
    requests = read_log(logged, "requests", columns=["policy_revision", "decided_at"]).to_pandas()
    since = int(requests[requests.policy_revision == served.revision].decided_at.min())
    spec = lists_spec(logged, {"again": served}, SURFACES, release=release, start=since, attribution_us=60_000_000)
    result = run_lists(spec, tmp_path, local=True)
    for one in result.surfaces.values():
        tally = Tally(one.counts)
        assert tally.total("again", "lists") > 0
        assert tally.total("again", "lists_changed") == 0
        assert tally.by("again", "exposures", "thing") == tally.by("logged", "exposures", "thing")
    for policy in ("logged again", "again"):
        weights = result.surfaces["related"].suites["slots"].weights_of("rips", policy)
        assert weights.largest_weight == weights.mean_weight == 1.0
        assert weights.unsupported == 0.0
    assert result.surfaces["related"].suites["slots"]["rips"].point("again", "clicks").value > 0
