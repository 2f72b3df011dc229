"""The core imports no Ray, does no I/O, reads no clock, and uses no sum whose order depends on layout."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CORE = sorted(
    [ROOT / "serve_app" / "batch.py", *(ROOT / "serve_app/stages").rglob("*.py"), *(ROOT / "serve_app/policy").rglob("*.py")]
)
FORBIDDEN = {"ray", "socket", "sqlite3", "redis", "time", "random", "httpx", "requests", "fastapi"}
# Building, training and loading live beside the stages they serve but never run in one.
OFFLINE = {"embeddings.py", "session_training.py", "heads.py", "training.py", "calibration.py"}
# Document loading and the zone table read files once, before any decision.
LOADERS = {"tables.py", "neighbours.py", "tzif.py", "reader.py", "zones.py", "document.py"}


@pytest.mark.parametrize("path", CORE, ids=lambda p: str(p.relative_to(ROOT)))
def test_the_core_imports_nothing_impure(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        for name in names:
            assert name.split(".")[0] not in FORBIDDEN, f"{path.name}:{node.lineno} imports {name}"


@pytest.mark.parametrize("path", [p for p in CORE if p.name not in OFFLINE], ids=lambda p: str(p.relative_to(ROOT)))
def test_a_deciding_path_has_no_layout_dependent_sum(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        assert not (isinstance(node, ast.BinOp) and isinstance(node.op, ast.MatMult)), f"{path.name}:{node.lineno} uses @"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            name = node.func.attr
            assert name not in {"dot", "matmul", "einsum", "vdot", "tensordot"}, f"{path.name}:{node.lineno} uses {name}"
            axis = any(k.arg == "axis" for k in node.keywords)
            assert not (name in {"sum", "mean"} and axis), f"{path.name}:{node.lineno} uses {name}(axis=...)"


@pytest.mark.parametrize(
    "path", [p for p in CORE if p.name not in LOADERS | OFFLINE], ids=lambda p: str(p.relative_to(ROOT))
)
def test_only_loaders_open_files(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            function = node.func
            name = function.id if isinstance(function, ast.Name) else getattr(function, "attr", "")
            assert name not in {"open", "read_text", "read_bytes", "write_text", "write_bytes", "save", "memmap"}, (
                f"{path.name}:{node.lineno} calls {name}"
            )


def test_importing_the_core_does_not_import_ray() -> None:
    code = "import sys, serve_app.batch, serve_app.stages.retrieval, serve_app.policy.document; print('ray' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"
