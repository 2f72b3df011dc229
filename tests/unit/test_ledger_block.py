"""Journal blocks and the records in them."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.errors import DamagedArtifact
from serve_app.ledger.block import decode_block, encode_block
from serve_app.ledger.records import Records

RECORDS = st.lists(st.binary(max_size=40), max_size=8)


@given(records=RECORDS, keys=st.lists(st.binary(max_size=16), max_size=4))
def test_a_block_gives_its_columns_back(records: list[bytes], keys: list[bytes]) -> None:
    columns = {"users": np.arange(len(records), dtype=np.uint64), "records": Records.of(records), "idem": keys}
    found = decode_block(encode_block(columns))
    assert found["users"].tolist() == list(range(len(records)))
    assert list(found["records"]) == records
    assert found["idem"] == keys


@given(records=RECORDS, data=st.data())
def test_records_are_a_sequence_wherever_they_have_been(records: list[bytes], data: st.DataObject) -> None:
    sent = pickle.loads(pickle.dumps(Records.of(records)))
    assert len(sent) == len(records)
    assert [sent[row] for row in range(len(records))] == list(sent) == records
    assert sent.present == sum(map(bool, records))
    rows = data.draw(st.lists(st.integers(0, len(records) - 1), max_size=8)) if records else []
    assert list(sent.take(np.array(rows, np.int64))) == [records[row] for row in rows]


def test_records_that_cannot_be_unpacked_are_called_damaged() -> None:
    with pytest.raises(DamagedArtifact, match="cannot be unpacked"):
        list(Records(np.array([0, 5]), packed=b"nonsense"))
