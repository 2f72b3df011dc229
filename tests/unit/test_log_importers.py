"""Importers on small files: what is kept, mended, refused, and that a failed import changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hindcast.importers import online_retail, sessions
from hindcast.importers.cancellations import net_cancellations
from hindcast.importers.shop import local_to_utc
from hindcast.importers.staging import REPORT_NAME, import_into
from serve_app.catalogue import read_catalogue
from serve_app.errors import InvalidInput, NotReady
from serve_app.ids import hash_id
from serve_app.log.journal import Journal
from serve_app.log.reader import read_log
from serve_app.log.rows import fill

LINES = [
    # invoice, code, description, quantity, date, price, customer, country
    ("1", "85123A", "WHITE HOLDER", 6, "2011-07-01 08:26", 2.55, 17850.0, "United Kingdom"),
    ("1", "85123A", "WHITE HOLDER", 6, "2011-07-01 08:26", 2.55, 17850.0, "United Kingdom"),  # exact copy
    ("1", "71053", "LANTERN", 4, "2011-07-01 08:26", 3.39, 17850.0, "United Kingdom"),
    ("2", "85123a", "damaged", 2, "2011-12-01 09:00", 2.55, None, "EIRE"),  # lower case, no customer
    ("3", "85123A", "WHITE HOLDER", 1, "2011-12-02 09:00", 2.55, 12431.0, "Japan"),
    ("3", "POST", "POSTAGE", 1, "2011-12-02 09:00", 18.0, 12431.0, "Japan"),
    ("C4", "71053", "LANTERN", -1, "2011-12-03 09:00", 3.39, 17850.0, "United Kingdom"),  # takes back one of four
    ("C5", "71053", "LANTERN", -9, "2011-12-03 09:00", 3.39, 17850.0, "United Kingdom"),  # more than was bought
    ("6", "71053", "lost", -5, "2011-12-03 09:00", 0.0, None, "United Kingdom"),
    ("7", "71053", "LANTERN", 5, "2011-12-03 09:00", 0.0, None, "United Kingdom"),
    ("8", "gift_0001_10", "voucher", 1, "2011-12-03 09:00", 8.33, None, "United Kingdom"),
    ("A9", "B", "Adjust bad debt", 1, "2011-12-03 09:00", -11.0, None, "United Kingdom"),
]
COLUMNS = ["InvoiceNo", "StockCode", "Description", "Quantity", "InvoiceDate", "UnitPrice", "CustomerID", "Country"]


@pytest.fixture
def retail(tmp_path: Path) -> Path:
    folder = tmp_path / "retail"
    folder.mkdir()
    pd.DataFrame(LINES, columns=COLUMNS).to_csv(folder / "online_retail.csv", index=False)
    return folder


@pytest.fixture
def clicks(tmp_path: Path) -> Path:
    folder = tmp_path / "clicks"
    folder.mkdir()
    (folder / "train_sessions.csv").write_text("session_id,items\n0,1 2 1\n1,3\n1,3 3\n2,\n")
    (folder / "test_prefixes.csv").write_text("row_id,prefix,target\n0,1 2,3\n")
    return folder


def test_every_line_of_the_shop_is_kept_or_refused_with_its_reason(retail: Path, tmp_path: Path) -> None:
    report = import_into(tmp_path / "data", lambda: online_retail.load(retail))
    assert report.kept == {"purchase line of a customer": 3, "purchase line without a customer": 1}
    assert report.refused == {
        "exact copy of another row": 1,
        "not a product: postage (POST)": 1,
        "not a product: bad debt (B)": 1,
        "not a product: gift voucher (GIFT_...)": 1,
        "stock adjustment (negative quantity, not a cancellation)": 1,
        "zero price (gift, damage or stock note)": 1,
        "cancellation matched to its purchase": 1,
        "cancellation of a customer without enough earlier purchases in the data": 1,
    }
    assert report.mended["purchase cancelled in part: quantity reduced"] == 1
    assert report.mended["stock code in lower case"] == 1
    assert (tmp_path / "data" / "log" / REPORT_NAME).is_file()


def test_purchases_become_conversions_at_utc_with_the_invoice_as_session(retail: Path, tmp_path: Path) -> None:
    import_into(tmp_path / "data", lambda: online_retail.load(retail))
    rows = {
        row["item"]: row
        for row in read_log(tmp_path / "data", "events", buckets=None).to_pylist()
        if row["user"] == hash_id("17850")
    }
    lantern = rows[hash_id("71053")]
    assert (lantern["quantity"], lantern["amount"], lantern["currency"]) == (3, 10.17, "GBP")
    assert lantern["session"] == rows[hash_id("85123A")]["session"]
    # London is an hour ahead of UTC in July.
    assert lantern["ts"] == pd.Timestamp("2011-07-01 07:26", tz="UTC").value // 1000
    assert lantern["decision_request_id"] is None


def test_the_catalogue_has_zones_regions_and_the_commonest_title(retail: Path, tmp_path: Path) -> None:
    import_into(tmp_path / "data", lambda: online_retail.load(retail))
    catalogue = read_catalogue(tmp_path / "data" / "catalogue")
    users = {row["user_id"]: (row["zone"], row["region"]) for row in catalogue.users.to_pylist()}
    assert users == {"17850": ("Europe/London", "GB"), "12431": ("Asia/Tokyo", "JP")}
    titles = {row["item_id"]: row["title"] for row in catalogue.items.to_pylist()}
    assert titles == {"85123A": "WHITE HOLDER", "71053": "LANTERN"}


def test_sessions_become_views_on_a_clock_that_is_called_synthetic(clicks: Path, tmp_path: Path) -> None:
    report = import_into(tmp_path / "data", lambda: sessions.load(clicks))
    assert report.kept == {"session": 2}
    assert report.refused == {"session without items": 1, "session id that stood before": 1}
    events = read_log(tmp_path / "data", "events").sort_by("ts")
    assert events["item"].to_pylist() == [hash_id(one) for one in ("1", "2", "1", "3")]
    assert events["position"].to_pylist() == [0, 1, 2, 0]
    marks = read_log(tmp_path / "data", "watermark").to_pylist()
    assert {row["synthetic_clock"] for row in marks} == {True}
    assert {row["source"] for row in marks} == {"import:sessions"}


def _files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _spoil_price(folder: Path) -> None:
    frame = pd.DataFrame(LINES, columns=COLUMNS).astype({"UnitPrice": object})
    frame.loc[0, "UnitPrice"] = "cheap"
    frame.to_csv(folder / "online_retail.csv", index=False)


def _drop_column(folder: Path) -> None:
    pd.DataFrame(LINES, columns=COLUMNS).drop(columns=["Country"]).to_csv(folder / "online_retail.csv", index=False)


@pytest.mark.parametrize(("spoil", "named"), [(_spoil_price, "cheap"), (_drop_column, "Country")])
def test_a_failed_import_leaves_the_data_folder_as_it_was(
    retail: Path, tmp_path: Path, spoil: Callable[[Path], None], named: str
) -> None:
    data = tmp_path / "home" / "data"
    import_into(data, lambda: online_retail.load(retail))
    before = _files(data)
    spoil(retail)
    with pytest.raises(InvalidInput, match=named):
        import_into(data, lambda: online_retail.load(retail), replace=True)
    assert _files(data) == before
    assert [one.name for one in data.parent.iterdir()] == ["data"]


def test_a_second_import_needs_replace_and_then_is_all_there_is(retail: Path, clicks: Path, tmp_path: Path) -> None:
    data = tmp_path / "home" / "data"
    import_into(data, lambda: online_retail.load(retail))
    with pytest.raises(InvalidInput, match="--replace"):
        import_into(data, lambda: sessions.load(clicks))
    import_into(data, lambda: sessions.load(clicks), replace=True)
    assert read_catalogue(data / "catalogue").items["item_id"].to_pylist() == ["1", "2", "3"]
    assert [one.name for one in data.parent.iterdir()] == ["data"]


def test_replace_never_deletes_a_folder_that_is_not_ours(clicks: Path, tmp_path: Path) -> None:
    data = tmp_path / "home"
    data.mkdir()
    (data / "thesis.tex").write_text("years of work")
    with pytest.raises(InvalidInput, match=r"thesis\.tex"):
        import_into(data, lambda: sessions.load(clicks), replace=True)
    assert (data / "thesis.tex").read_text() == "years of work"


def test_replace_is_refused_while_a_server_writes(clicks: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    with Journal(data, "ingress-1") as journal:
        journal.append({"events": fill("events", 1, {"user": np.ones(1, np.uint64)})})
        with pytest.raises(NotReady, match="ingress-1"):
            import_into(data, lambda: sessions.load(clicks), replace=True)


def test_the_same_file_imports_to_the_same_rows(retail: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        import_into(tmp_path / name, lambda: online_retail.load(retail))
    one, two = (read_log(tmp_path / name, "events") for name in ("one", "two"))
    assert one.equals(two)


LINE = st.tuples(st.integers(-1, 3), st.integers(0, 20), st.integers(1, 9), st.booleans())


@given(lines=st.lists(LINE, max_size=40))
@settings(max_examples=200, deadline=None)
def test_cancellations_take_back_exactly_what_they_say_and_never_later_purchases(lines: list) -> None:
    key, at, pieces, cancels = (np.array([one[i] for one in lines], np.int64) for i in range(4))
    cancels = cancels.astype(np.bool_)
    quantity = np.where(cancels, -pieces, pieces)
    left, matched = net_cancellations(key, at, quantity, cancels)
    assert (left >= 0).all()
    assert (left[~cancels] <= quantity[~cancels]).all()
    assert not (matched & (~cancels | (key < 0))).any()
    for one in np.unique(key):
        of_key = key == one
        taken = (quantity - left)[of_key & ~cancels].sum()
        assert taken == pieces[of_key & matched].sum()
        if not (of_key & matched).any():
            continue
        last = at[of_key & matched].max()
        later = of_key & ~cancels & (at > last)
        np.testing.assert_array_equal(left[later], quantity[later])


def test_an_exact_match_is_preferred_to_the_latest_purchase() -> None:
    left, matched = net_cancellations(
        np.zeros(3, np.int64), np.array([1, 2, 3]), np.array([4, 9, -4]), np.array([False, False, True])
    )
    assert left.tolist() == [0, 9, 0]
    assert matched.tolist() == [False, False, True]


def test_hours_that_daylight_saving_skips_or_repeats_are_mended_and_counted() -> None:
    local = pd.Series(pd.to_datetime(["2011-03-27 01:30", "2011-10-30 01:30", "2011-06-01 12:00", "2011-01-01 12:00"]))
    utc, mended = local_to_utc(local, "Europe/London")
    expected = ["2011-03-27 01:00", "2011-10-30 00:30", "2011-06-01 11:00", "2011-01-01 12:00"]
    assert utc.tolist() == [pd.Timestamp(one, tz="UTC").value // 1000 for one in expected]
    assert mended == 2
