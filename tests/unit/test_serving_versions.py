"""Versions held side by side."""

from __future__ import annotations

from serve_app.serving.versions import VersionStore


def test_a_version_that_was_prepared_stays_though_a_request_ends_before_it_is_ordered_to_be_kept() -> None:
    store = VersionStore("policy", str)
    store.prepare("first")
    store.switch("first")
    store.keep({"first"})
    with store.pinned():
        store.prepare("second")
    assert store.loaded() == {"first", "second"}


def test_a_version_that_nobody_wants_goes_with_its_last_request() -> None:
    store = VersionStore("policy", str)
    store.prepare("first")
    store.switch("first")
    with store.pinned():
        store.prepare("second")
        store.switch("second")
        store.keep({"second"})
        assert store.loaded() == {"first", "second"}
    assert store.loaded() == {"second"}
