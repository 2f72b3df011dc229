"""An ingress never waits for ever for the state owner, and says truly what it does not know."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from serve_app.errors import LedgerUnavailable, OutcomeUnknown
from serve_app.ingress.server import _Owner


class _Hangs:
    """An owner's port whose process is gone: nothing comes back."""

    def __getattr__(self, name: str) -> Any:
        async def never(*_: Any, **__: Any) -> None:
            await asyncio.Event().wait()

        return never


@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        ("live", (), LedgerUnavailable),
        ("call", ("find_decision", 1, 2), LedgerUnavailable),
        ("call", ("refund", 1, 2, 0), OutcomeUnknown),
        ("change_user", (1,), OutcomeUnknown),
    ],
)
async def test_a_call_that_is_not_answered_is_given_up(name: str, arguments: tuple[Any, ...], expected: type) -> None:
    with pytest.raises(expected):
        await getattr(_Owner(_Hangs(), 0.01), name)(*arguments)


async def test_a_poll_of_the_board_keeps_its_own_time() -> None:
    poll = asyncio.ensure_future(_Owner(_Hangs(), 0.01).poll(None, 0))
    done, _ = await asyncio.wait({poll}, timeout=0.1)
    assert not done
    poll.cancel()
