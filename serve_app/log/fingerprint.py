"""What must be equal for two machines to promise equal bits: the versions of the packages that compute, and the CPU family.

The CPU's vector extensions count, because numpy, numba and XGBoost choose their inner loops by them.
"""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
from functools import cache
from pathlib import Path

import xxhash

__all__ = ["code_version", "fingerprint", "fingerprint_parts"]

_PACKAGES = ("numpy", "numba", "llvmlite", "scipy", "scann", "xgboost-cpu", "xxhash", "tzdata")
_EXTENSIONS = ("sse4_2", "avx", "avx2", "fma", "avx512f", "avx512bw", "avx512vl", "amx_tile", "asimd", "sve")
_DISTRIBUTION = "hindcast-platform"


@cache
def fingerprint_parts() -> dict[str, str]:
    """Package name -> version, plus `cpu` (architecture, vendor, vector extensions). "absent" where not installed."""
    return {**{name: _version(name) for name in _PACKAGES}, "python": platform.python_version(), "cpu": _cpu_family()}


@cache
def fingerprint() -> str:
    """16 hexadecimal digits of `fingerprint_parts()`; where equal, replays reproduce bits."""
    text = ";".join(f"{name}={version}" for name, version in sorted(fingerprint_parts().items()))
    return f"{xxhash.xxh3_64_intdigest(text.encode()):016x}"


@cache
def code_version() -> str:
    """`git describe --always --dirty` of the source tree, or the installed package's version outside a repository."""
    root = Path(__file__).resolve().parents[2]
    if (root / ".git").exists():
        command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--tags"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
        except (OSError, subprocess.TimeoutExpired):
            return _version(_DISTRIBUTION)
        if done.returncode == 0 and done.stdout.strip():
            return done.stdout.strip()
    return _version(_DISTRIBUTION)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "absent"


def _cpu_family() -> str:
    vendor, flags = "unknown", set[str]()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() in ("vendor_id", "CPU implementer"):
            vendor = value.strip()
        elif key.strip() in ("flags", "Features"):
            flags = set(value.split())
            break
    return "-".join([platform.machine(), vendor, *(one for one in _EXTENSIONS if one in flags)])
