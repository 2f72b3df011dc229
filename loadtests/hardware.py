"""Where the figures of a benchmark come from: the machine, how busy it is, and what runs on it."""

from __future__ import annotations

import json
import os
import platform
import sqlite3
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console

__all__ = ["hardware", "hardware_line", "write_report"]


_PACKAGES = ("ray", "numpy", "numba", "pyarrow", "scann", "xgboost-cpu", "pyroaring")


def hardware(cores: int | None = None) -> dict[str, str]:
    """Words by name. cores: that are used, if not all."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": models[0] if models else platform.processor() or platform.machine(),
        "cores": str(cores or os.cpu_count()),
        "memory": f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
        "load before": f"{os.getloadavg()[0]:.1f}",
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        **{name: version(name) for name in _PACKAGES},
    }


def hardware_line(report: Mapping[str, Any]) -> str:
    """What `hardware` said in a report, in one line."""
    return " · ".join(f"{name} {words}" for name, words in report["hardware"].items())


def write_report(out: Path, stem: str, report: Mapping[str, Any], text: str, console: Console) -> None:
    """STEM.json and STEM.md, whose text is shown, too; the folder is made."""
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{stem}.json").write_text(json.dumps(report, indent=1))
    (out / f"{stem}.md").write_text(text)
    console.print(text, highlight=False, soft_wrap=True)
