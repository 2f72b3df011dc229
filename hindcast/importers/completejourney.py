"""The Complete Journey (dunnhumby, by way of bradleyboehmke/completejourney, CC0): households of an American grocer, 2017.

Campaigns become catalogue campaigns, and every household of a campaign one logged send at the campaign's start, decided by
a policy that grants whatever it is asked for (see `granted`): how the household was chosen is not in the data, so a replay
counts volumes and refuses differences in outcomes.
Coupon redemptions are conversions of that send, transactions conversions of nobody's doing, coupons rows of `environment`.
Transaction times are UTC in the files (sales peak at 17 o'clock in America/New_York); dates alone are taken in that zone.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from hindcast.importers.granted import GRANTS_ALL, granted_rows
from hindcast.importers.report import ImportReport
from hindcast.importers.shop import default_widgets, hash_column, local_to_utc, require, source_file
from hindcast.importers.staging import Imported
from serve_app.catalogue import Catalogue, table_of
from serve_app.ids import hash_ids
from serve_app.log.filling import fill
from serve_app.policy.zones import zone_index
from serve_app.regions import region_index
from serve_app.vocabulary import Channel, Delivery, EventType, MessageClass

__all__ = ["load"]

_ZONE, _REGION = "America/New_York", "US"
_FILES = {
    "campaign_descriptions": ("campaign_id", "campaign_type", "start_date", "end_date"),
    "campaigns": ("campaign_id", "household_id"),
    "coupon_redemptions": ("household_id", "coupon_upc", "campaign_id", "redemption_date"),
    "coupons": ("coupon_upc", "product_id", "campaign_id"),
    "products": ("product_id", "department", "product_category", "product_type", "package_size"),
    "transactions": ("household_id", "basket_id", "product_id", "quantity", "sales_value", "transaction_timestamp"),
}
_NOT_USED = ("demographics", "promotions", "promotions_sample")
Frames = dict[str, pd.DataFrame]


def load(folder: Path) -> Imported:
    """Catalogue and log of the CSV files in `folder`."""
    report = ImportReport("completejourney")
    frames = {name: _read(folder, name, columns, report) for name, columns in _FILES.items()}
    _prepare_campaigns(frames, report)
    _prepare_transactions(frames, report)
    _prepare_coupons(frames, report)
    for name in _NOT_USED:
        if any((folder / f"{name}{end}").is_file() for end in (".csv.gz", ".csv")):
            report.notes.append(f"{name} is not imported: nothing in the log stands for it")
    report.notes += [
        "campaigns went out on paper; the log has no such channel and calls it email",
        f"the data names no zone: every household is put in {_ZONE}",
        "who was chosen for a campaign is unknown: each send is logged as a request that had to be granted",
        "a redemption has a date only: it is put at noon",
    ]
    catalogue = Catalogue(
        items=_items(frames, report), users=_users(frames), widgets=default_widgets(), campaigns=_campaigns(frames)
    )
    log = {**_sends(frames), "events": _events(frames), "environment": _promotions(frames)}
    return Imported(catalogue, report, log, (GRANTS_ALL,))


def _read(folder: Path, name: str, columns: tuple[str, ...], report: ImportReport) -> pd.DataFrame:
    names = [f"{stem}{end}" for stem in (name, f"{name}_sample") for end in (".csv.gz", ".csv")]
    path = source_file(folder, *names)
    frame = pd.read_csv(path)
    require(frame, path, *columns)
    for key in {"product_id", "basket_id", "household_id", "campaign_id", "coupon_upc"} & set(frame.columns):
        frame[key] = frame[key].astype("int64").astype(str)
    report.rows_in += len(frame)
    return frame


def _keep(frames: Frames, name: str, report: ImportReport, what: str, refused: dict[str, pd.Series]) -> None:
    """Drop the rows of table `name` that a mask names; the first reason that applies counts."""
    frame = frames[name]
    good = pd.Series(True, index=frame.index)
    for reason, mask in refused.items():
        hit = mask & good
        if hit.any():
            report.refused[f"{what}: {reason}"] = int(hit.sum())
        good &= ~mask
    frames[name] = frame[good].reset_index(drop=True)
    report.kept[what] = len(frames[name])


def _local_midnight(dates: pd.Series, *, hours: int = 0, days: int = 0) -> npt.NDArray[np.int64]:
    return local_to_utc(pd.to_datetime(dates) + pd.Timedelta(days=days, hours=hours), _ZONE)[0]


def _prepare_campaigns(frames: Frames, report: ImportReport) -> None:
    campaigns = frames["campaign_descriptions"]
    campaigns["starts_at"] = _local_midnight(campaigns["start_date"])
    campaigns["expires_at"] = _local_midnight(campaigns["end_date"], days=1)
    repeated = campaigns["campaign_id"].duplicated()
    _keep(frames, "campaign_descriptions", report, "campaign", {"id stood before": repeated})
    starts = frames["campaign_descriptions"].set_index("campaign_id")["starts_at"]
    sends = frames["campaigns"]
    unknown = ~sends["campaign_id"].isin(starts.index)
    _keep(frames, "campaigns", report, "send", {"campaign unknown": unknown, "copy": sends.duplicated()})
    sends = frames["campaigns"]
    # Sorted, so that positions and ids do not depend on the file's order.
    frames["campaigns"] = sends.assign(ts=sends["campaign_id"].map(starts)).sort_values(
        ["ts", "campaign_id", "household_id"]
    )
    redeemed = frames["coupon_redemptions"]
    redeemed["ts"] = _local_midnight(redeemed["redemption_date"], hours=12)
    unknown = ~redeemed["campaign_id"].isin(starts.index)
    early = redeemed["ts"] < redeemed["campaign_id"].map(starts)
    reasons = {"campaign unknown": unknown, "before its campaign": early, "copy": redeemed.duplicated()}
    _keep(frames, "coupon_redemptions", report, "redemption", reasons)
    redeemed = frames["coupon_redemptions"]
    report.mended["redemption with a date only: put at noon"] = len(redeemed)
    redeemed["sent"] = _pairs(redeemed).isin(_pairs(frames["campaigns"]))
    if not redeemed["sent"].all():
        report.mended["redemption without a send: kept as organic"] = int((~redeemed["sent"]).sum())


def _pairs(frame: pd.DataFrame) -> pd.Series:
    return frame["campaign_id"] + "/" + frame["household_id"]


def _prepare_transactions(frames: Frames, report: ImportReport) -> None:
    bought = frames["transactions"]
    stamps = pd.to_datetime(bought["transaction_timestamp"], errors="coerce")
    bought["ts"] = stamps.astype("datetime64[us]").astype("int64")
    products = frames["products"]
    _keep(frames, "products", report, "product", {"id stood before": products["product_id"].duplicated()})
    reasons = {
        "no time": stamps.isna(),
        "product unknown": ~bought["product_id"].isin(products["product_id"]),
        "nothing bought (quantity 0)": bought["quantity"] <= 0,
        "negative value": bought["sales_value"] < 0,
        "copy": bought.duplicated(),
    }
    _keep(frames, "transactions", report, "transaction line", reasons)
    whole = frames["transactions"]["quantity"].round()
    fractions = int((whole != frames["transactions"]["quantity"]).sum())
    if fractions:
        report.mended["quantity rounded to whole pieces"] = fractions
    frames["transactions"]["quantity"] = whole.clip(lower=1, upper=np.iinfo(np.int32).max)


def _prepare_coupons(frames: Frames, report: ImportReport) -> None:
    coupons = frames["coupons"]
    reasons = {
        "campaign unknown": ~coupons["campaign_id"].isin(frames["campaign_descriptions"]["campaign_id"]),
        "product unknown": ~coupons["product_id"].isin(frames["products"]["product_id"]),
        "copy": coupons.duplicated(),
    }
    _keep(frames, "coupons", report, "coupon for a product", reasons)


def _items(frames: Frames, report: ImportReport) -> pa.Table:
    products = frames["products"]
    bought = frames["transactions"]
    each = bought.assign(each=bought["sales_value"] / bought["quantity"])
    sold = each.groupby("product_id").agg(price=("each", "median"), first=("ts", "min")).reindex(products["product_id"])
    titles = (products["product_type"].fillna("") + " " + products["package_size"].fillna("").astype(str)).str.strip()
    category = products["product_category"].fillna(products["department"]).fillna("")
    report.notes.append(f"{int(sold['price'].isna().sum()):,} products were not sold in these files and have no price")
    return table_of(
        "items",
        {
            "item_id": products["product_id"].tolist(),
            "title": titles.tolist(),
            "category": category.tolist(),
            "price": sold["price"].fillna(0.0).to_numpy(),
            "currency": ["USD"] * len(products),
            "created_at": sold["first"].fillna(0).astype("int64").to_numpy(),
            "available": np.ones(len(products), np.bool_),
        },
    )


def _users(frames: Frames) -> pa.Table:
    seen = pd.concat([frames[name][["household_id", "ts"]] for name in ("campaigns", "coupon_redemptions", "transactions")])
    first = seen.groupby("household_id")["ts"].min()
    n = len(first)
    columns = {"user_id": first.index.tolist(), "zone": [_ZONE] * n, "region": [_REGION] * n, "created_at": first.to_numpy()}
    return table_of("users", columns)


def _campaigns(frames: Frames) -> pa.Table:
    campaigns = frames["campaign_descriptions"]
    n = len(campaigns)
    titles = ("Campaign " + campaigns["campaign_id"] + " (" + campaigns["campaign_type"] + ")").tolist()
    return table_of(
        "campaigns",
        {
            "campaign_id": campaigns["campaign_id"].tolist(),
            "title": titles,
            "text": [""] * n,
            "item_id": pa.nulls(n, pa.string()),
            "category": campaigns["campaign_type"].tolist(),
            "message_class": [MessageClass.advertising.name] * n,
            "channels": [[Channel.email.name]] * n,
            "starts_at": campaigns["starts_at"].to_numpy(),
            "expires_at": campaigns["expires_at"].to_numpy(),
            "cost": np.zeros(n),
            "margin": np.zeros(n),
            "priority": np.zeros(n, np.int16),
            "delivery": [Delivery.caller.name] * n,
            "segment": pa.nulls(n, pa.string()),
        },
    )


def _send_ids(frame: pd.DataFrame) -> npt.NDArray[np.uint64]:
    return hash_column(_pairs(frame), "completejourney/send/")


def _sends(frames: Frames) -> dict[str, pa.RecordBatch]:
    """One request with one candidate, which was sent, per row of `campaigns`."""
    sends = frames["campaigns"]
    n = len(sends)
    about = frames["campaign_descriptions"].set_index("campaign_id")
    requests = {
        "request_id": _send_ids(sends),
        "user": hash_column(sends["household_id"]),
        "decided_at": sends["ts"].to_numpy(np.int64),
        "zone": np.full(n, zone_index(_ZONE)),
        "region": np.full(n, region_index(_REGION)),
        "reachable": np.full(n, 1 << Channel.email),
    }
    candidates = {
        "campaign": hash_column(sends["campaign_id"]),
        "category": hash_column(sends["campaign_id"].map(about["campaign_type"])),
        "channel": np.full(n, Channel.email),
        "message_class": np.full(n, MessageClass.advertising),
        "expires_at": sends["campaign_id"].map(about["expires_at"]).to_numpy(np.int64),
    }
    return granted_rows(requests, candidates)


def _events(frames: Frames) -> pa.RecordBatch:
    parts = [_delivered(frames["campaigns"]), _redemptions(frames["coupon_redemptions"]), _purchases(frames["transactions"])]
    whole = pa.Table.from_batches(parts).combine_chunks()
    return whole.to_batches()[0] if len(whole) else parts[0]


def _delivered(sends: pd.DataFrame) -> pa.RecordBatch:
    n = len(sends)
    columns = {
        **_event(sends, EventType.delivered, "completejourney/delivered/" + _pairs(sends)),
        "decision_request_id": _send_ids(sends),
        "slot": np.zeros(n, np.int32),
        "campaign": hash_column(sends["campaign_id"]),
        "channel": np.full(n, Channel.email, np.int8),
    }
    return fill("events", n, columns)


def _redemptions(redeemed: pd.DataFrame) -> pa.RecordBatch:
    n = len(redeemed)
    organic = ~redeemed["sent"].to_numpy()
    names = "completejourney/redeemed/" + _pairs(redeemed) + "/" + redeemed["coupon_upc"] + "/" + redeemed["redemption_date"]
    columns = {
        **_event(redeemed, EventType.conversion, names),
        "decision_request_id": pa.array(_send_ids(redeemed), mask=organic),
        "slot": pa.array(np.zeros(n, np.int32), mask=organic),
        "campaign": hash_column(redeemed["campaign_id"]),
        "attributes": [json.dumps({"coupon_upc": one}) for one in redeemed["coupon_upc"]],
    }
    return fill("events", n, columns)


def _purchases(bought: pd.DataFrame) -> pa.RecordBatch:
    bought = bought.sort_values(["ts", "basket_id", "product_id"], kind="stable")
    position = bought.groupby("basket_id", sort=False).cumcount()
    columns = {
        **_event(bought, EventType.conversion, "completejourney/" + bought["basket_id"] + "/" + position.astype(str)),
        "item": hash_column(bought["product_id"]),
        "session": hash_column(bought["basket_id"], "completejourney/"),
        "position": position.to_numpy(np.int32),
        "quantity": bought["quantity"].to_numpy(np.int32),
        "amount": bought["sales_value"].to_numpy(np.float64),
        "currency": ["USD"] * len(bought),
    }
    return fill("events", len(bought), columns)


def _event(frame: pd.DataFrame, kind: EventType, names: pd.Series) -> dict[str, Any]:
    ts = frame["ts"].to_numpy(np.int64)
    return {
        "user": hash_column(frame["household_id"]),
        "ts": ts,
        "ingested_at": ts,
        "event_id": hash_ids(names),
        "type": np.full(len(frame), kind, np.int8),
    }


def _promotions(frames: Frames) -> pa.RecordBatch:
    """One environment row per coupon of a campaign, when the campaign starts: the products it is good for."""
    starts = frames["campaign_descriptions"].set_index("campaign_id")["starts_at"]
    grouped = frames["coupons"].sort_values(["campaign_id", "coupon_upc", "product_id"])
    lists = grouped.groupby(["campaign_id", "coupon_upc"])["product_id"].agg(list).reset_index()
    lists = lists.assign(ts=lists["campaign_id"].map(starts)).sort_values(["ts", "campaign_id", "coupon_upc"])
    payloads = [
        json.dumps({"campaign_id": campaign, "coupon_upc": upc, "product_ids": products})
        for campaign, upc, products in zip(lists["campaign_id"], lists["coupon_upc"], lists["product_id"], strict=True)
    ]
    n = len(lists)
    columns = {
        "ts": lists["ts"].to_numpy(np.int64),
        "env_seq": np.arange(n, dtype=np.int64),
        "kind": ["promotion"] * n,
        "payload": payloads,
    }
    return fill("environment", n, columns)
