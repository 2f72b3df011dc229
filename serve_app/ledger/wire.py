"""Small columns between processes: flat arrays travel as their bytes.

numpy's own way spells out dtype and shape of every array; for the ten columns of one user that takes two hundred
microseconds. Here both ends know them.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

__all__ = ["Wired"]

Dtype = np.dtype[Any]


class Wired:
    """A dataclass of flat columns, cheap to pickle. WIRE: the dtype of each field, in order; None: not an array. An array of
    another dtype or shape goes numpy's way."""

    __slots__ = ()
    WIRE: ClassVar[tuple[Dtype | None, ...]]

    def __reduce__(self) -> tuple[object, ...]:
        fields: Any = type(self)
        names = fields.__dataclass_fields__
        sent = [_sent(getattr(self, name), dtype) for name, dtype in zip(names, self.WIRE, strict=True)]
        return _came, (type(self), *sent)


def _sent(values: Any, dtype: Dtype | None) -> Any:
    if dtype is None or not isinstance(values, np.ndarray) or values.dtype != dtype or values.ndim != 1:
        return values
    return values.tobytes()


def _came(kind: type[Wired], *sent: Any) -> Wired:
    """Columns are writeable and own their memory, as kernels want them."""
    fields = [
        np.frombuffer(bytearray(values), dtype) if dtype is not None and isinstance(values, bytes) else values
        for values, dtype in zip(sent, kind.WIRE, strict=True)
    ]
    return kind(*fields)
