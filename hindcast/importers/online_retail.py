"""UCI Online Retail (Chen 2015, doi:10.24432/C5BW33): invoices of a British gift shop, 2010-12 to 2011-12.

Invoice times are the shop's wall clock (Europe/London). A purchase line becomes a `conversion` with session = invoice. Lines
without a customer stay, as anonymous sessions (user 0): they still tell which items are bought together. Purchases that were
cancelled later are taken out, in part or whole, at their own time: a log of what customers kept.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from hindcast.importers.cancellations import net_cancellations
from hindcast.importers.countries import COUNTRIES, SEVERAL_ZONES
from hindcast.importers.report import ImportReport
from hindcast.importers.shop import default_widgets, hash_column, local_to_utc, require, source_file
from hindcast.importers.staging import Imported
from serve_app.catalogue import Catalogue, table_of
from serve_app.errors import InvalidInput
from serve_app.log.rows import fill
from serve_app.vocabulary import EventType

__all__ = ["load"]

_NAMES = ("online_retail_full.parquet", "online_retail.parquet", "online_retail.csv", "Online Retail.csv")
_COLUMNS = ("InvoiceNo", "StockCode", "Description", "Quantity", "InvoiceDate", "UnitPrice", "CustomerID", "Country")
# Codes that stand for money or service, not for a thing in a parcel.
_NOT_PRODUCTS = {
    "POST": "postage",
    "DOT": "postage",
    "C2": "carriage",
    "D": "discount",
    "M": "manual entry",
    "S": "samples",
    "B": "bad debt",
    "PADS": "packing",
    "CRUK": "commission",
    "AMAZONFEE": "marketplace fee",
    "BANK CHARGES": "bank charges",
    "ADJUST": "adjustment",
    "ADJUST2": "adjustment",
}
_NOT_PRODUCT_STARTS = {"GIFT_": "gift voucher", "TEST": "test article"}


def load(folder: Path) -> Imported:
    """Catalogue and log of the file in `folder` (Parquet or CSV with the data set's eight columns)."""
    path = source_file(folder, *_NAMES)
    frame = _read(path)
    report = ImportReport("online-retail", rows_in=len(frame))
    frame = _clean(frame, report)
    frame = _without_cancelled(frame, report)
    frame["ts"], shifted = local_to_utc(frame["InvoiceDate"], "Europe/London")
    if shifted:
        report.mended["invoice time in an hour that daylight saving skipped or repeated"] = shifted
    anonymous = int((frame["customer"] == "").sum())
    report.kept = {"purchase line of a customer": len(frame) - anonymous, "purchase line without a customer": anonymous}
    report.notes += [
        "lines without a customer are anonymous sessions (user 0): used for what is bought together, not for any user",
        "the zone of a customer in a country with several is the most populous one: " + ", ".join(SEVERAL_ZONES),
        "items have no category in this data",
    ]
    catalogue = Catalogue(items=_items(frame, report), users=_users(frame, report), widgets=default_widgets())
    return Imported(catalogue, report, {"events": _events(frame)})


def _read(path: Path) -> pd.DataFrame:
    frame = (
        pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path, dtype={"InvoiceNo": str, "StockCode": str})
    )
    require(frame, path, *_COLUMNS)
    if len(frame) == 0:
        raise InvalidInput(f"{path.name} has no rows", field="--from")
    try:
        frame["InvoiceDate"] = pd.to_datetime(frame["InvoiceDate"])
        frame["Quantity"] = pd.to_numeric(frame["Quantity"]).astype("int64")
        frame["UnitPrice"] = pd.to_numeric(frame["UnitPrice"]).astype("float64")
    except (ValueError, TypeError) as error:
        raise InvalidInput(
            f"{path.name}: {error}", field="--from", hint="dates, whole quantities and prices must parse"
        ) from error
    frame["InvoiceNo"] = frame["InvoiceNo"].astype(str).str.strip()
    customer = frame["CustomerID"].astype("Float64").astype("Int64").astype("string").fillna("")
    return frame.assign(customer=customer, line=np.arange(len(frame)))


def _clean(frame: pd.DataFrame, report: ImportReport) -> pd.DataFrame:
    """Refuse what is no sale of a product; the first reason that applies counts."""
    code = frame["StockCode"].astype(str).str.strip()
    upper = code.str.upper()
    frame = frame.assign(code=upper, mended_code=code != upper)
    cancels = frame["InvoiceNo"].str.upper().str.startswith("C")
    reasons = pd.Series("", index=frame.index)

    def refuse(where: npt.NDArray[np.bool_] | pd.Series, reason: str) -> None:
        reasons[where & (reasons == "")] = reason

    refuse(frame.duplicated(list(_COLUMNS)), "exact copy of another row")
    for one, meaning in _NOT_PRODUCTS.items():
        refuse(upper == one, f"not a product: {meaning} ({one})")
    for start, meaning in _NOT_PRODUCT_STARTS.items():
        refuse(upper.str.startswith(start), f"not a product: {meaning} ({start}...)")
    refuse(~upper.str.contains(r"\d", regex=True) & ~upper.str.startswith("DCGS"), "not a product: code without a number")
    refuse(frame["InvoiceDate"].isna(), "no invoice date")
    refuse(frame["UnitPrice"] < 0, "negative price")
    refuse(cancels & (frame["Quantity"] >= 0), "cancellation that takes nothing back")
    refuse(~cancels & (frame["Quantity"] <= 0), "stock adjustment (negative quantity, not a cancellation)")
    refuse(~np.isfinite(frame["UnitPrice"]), "no price")
    refuse(frame["UnitPrice"] == 0, "zero price (gift, damage or stock note)")
    for reason, count in reasons[reasons != ""].value_counts().items():
        report.refused[str(reason)] = int(count)
    return frame.assign(cancels=cancels)[reasons == ""]


def _without_cancelled(frame: pd.DataFrame, report: ImportReport) -> pd.DataFrame:
    """Purchase lines, less what was cancelled."""
    known = frame["customer"] != ""
    pair = frame.groupby(["customer", "code"], sort=False).ngroup().to_numpy()
    key = np.where(known, pair, -1).astype(np.int64)
    at = np.asarray(frame["InvoiceDate"].astype("datetime64[us]").astype("int64"), np.int64)
    quantity = np.asarray(frame["Quantity"], np.int64)
    cancels = frame["cancels"].to_numpy()
    left, matched = net_cancellations(key, at, quantity, cancels)
    gone = ~cancels & (left == 0)
    counts = {
        "cancellation matched to its purchase": matched,
        "cancellation of a customer without enough earlier purchases in the data": cancels & ~matched & known.to_numpy(),
        "cancellation without a customer": cancels & ~matched & ~known.to_numpy(),
        "purchase cancelled in full": gone,
    }
    report.refused.update({reason: int(where.sum()) for reason, where in counts.items() if where.any()})
    report.mended["purchase cancelled in part: quantity reduced"] = int((~cancels & (left > 0) & (left < quantity)).sum())
    kept = frame.assign(Quantity=left)[~cancels & (left > 0)]
    report.mended["stock code in lower case"] = int(kept["mended_code"].sum())
    return kept.copy()


def _events(frame: pd.DataFrame) -> object:
    ordered = frame.sort_values(["ts", "InvoiceNo", "line"], kind="stable")
    n = len(ordered)
    ts = ordered["ts"].to_numpy()
    user = hash_column(ordered["customer"])
    user[(ordered["customer"] == "").to_numpy()] = 0
    quantity = ordered["Quantity"].to_numpy()
    columns = {
        "user": user,
        "ts": ts,
        "ingested_at": ts,
        "event_id": hash_column(ordered["InvoiceNo"] + "/" + ordered["line"].astype(str), "online-retail/"),
        "type": np.full(n, EventType.conversion, np.int8),
        "item": hash_column(ordered["code"]),
        "session": hash_column(ordered["InvoiceNo"], "online-retail/"),
        "position": ordered.groupby("InvoiceNo", sort=False).cumcount().to_numpy().astype(np.int32),
        "quantity": quantity.astype(np.int32),
        "amount": np.round(quantity * ordered["UnitPrice"].to_numpy(), 2),
        "currency": ["GBP"] * n,
    }
    return fill("events", n, columns)


def _most_common(frame: pd.DataFrame, key: str, value: str) -> tuple[pd.Series, int]:
    """The most frequent value of each key (ties: first in alphabet), and how many keys had several."""
    counts = frame.groupby([key, value], sort=True).size().reset_index(name="n")
    best = counts.sort_values([key, "n", value], ascending=[True, False, True]).drop_duplicates(key).set_index(key)[value]
    return best, int((counts[key].value_counts() > 1).sum())


def _items(frame: pd.DataFrame, report: ImportReport) -> object:
    codes, texts = pd.factorize(frame["Description"].fillna("").astype(str))
    text = pd.Series([" ".join(one.split()) for one in texts.tolist()]).iloc[codes].set_axis(frame.index)
    told = frame.assign(text=text)[(text != "") & (text.str.lower() != "unknown")]
    titles, several = _most_common(told, "code", "text")
    report.mended["item with several descriptions: the most common one taken"] = several
    items = frame.groupby("code", sort=True).agg(price=("UnitPrice", "median"), created_at=("ts", "min"))
    return table_of(
        "items",
        {
            "item_id": items.index.tolist(),
            "title": titles.reindex(items.index).fillna("").tolist(),
            "category": [""] * len(items),
            "price": items["price"].to_numpy(),
            "currency": ["GBP"] * len(items),
            "created_at": items["created_at"].to_numpy(),
            "available": np.ones(len(items), np.bool_),
        },
    )


def _users(frame: pd.DataFrame, report: ImportReport) -> object:
    named = frame[frame["customer"] != ""]
    country, several = _most_common(named, "customer", "Country")
    report.mended["customer with several countries: the most common one taken"] = several
    unknown = sorted(set(country) - set(COUNTRIES))
    if unknown:
        report.notes.append("no zone or region known for: " + ", ".join(unknown))
    first = named.groupby("customer")["ts"].min().reindex(country.index)
    places = [COUNTRIES.get(one, ("", "")) for one in country]
    return table_of(
        "users",
        {
            "user_id": country.index.tolist(),
            "zone": [zone for _, zone in places],
            "region": [region for region, _ in places],
            "created_at": first.to_numpy(),
        },
    )
