"""The `hindcast` command as a person calls it, in this process: arguments in; exit code, output and errors back."""

from __future__ import annotations

import io
import os
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from unittest import mock

from hindcast.cli import main

__all__ = ["Done", "hindcast"]


@dataclass(frozen=True, slots=True)
class Done:
    """How a command ended. out, err: its streams, lines unwrapped."""

    exit_code: int
    out: str
    err: str

    @property
    def text(self) -> str:
        """Both streams."""
        return self.out + self.err


def hindcast(*arguments: object) -> Done:
    """Run `hindcast` with these arguments. What it raises but SystemExit is a fault, and raised here too."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    words = ["hindcast", *(str(one) for one in arguments)]
    wide = {**os.environ, "COLUMNS": "300"}
    with (
        mock.patch.object(sys, "argv", words),
        mock.patch.dict(os.environ, wide),
        redirect_stdout(out),
        redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
    return Done(code, out.getvalue(), err.getvalue())
