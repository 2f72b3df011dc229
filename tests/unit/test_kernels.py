"""The compile cache follows every file that kernels rest on, and no other."""

from __future__ import annotations

import ast
import importlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from serve_app.kernel_sources import digest_of_kernels, rests_on
from serve_app.kernels import cache_folder, kernel

ROOT = Path(__file__).parents[2]

FILES = {
    "package/__init__.py": "",
    "package/limits.py": "from package.vocabulary import Word\n\nLIMIT = int(Word.yes)\nOTHER = 5\n",
    "package/vocabulary.py": "from enum import IntEnum\n\nclass Word(IntEnum):\n    yes = 1\n",
    "package/helpers.py": "from package.kernels import kernel\n\n@kernel\ndef double(x):\n    return 2 * x\n",
    "package/documents.py": "class Document:\n    pass\n",
    "package/gate.py": (
        "from package.documents import Document\nfrom package.helpers import double\nfrom package.kernels import kernel\n"
        "from package.limits import LIMIT as MOST\n\n_TABLE = (MOST, 3)\n\n"
        "@kernel\ndef gate(x):\n    return double(x) > _TABLE[0]\n\n\ndef shell(document: Document):\n    return gate(1)\n"
    ),
    "package/kernels.py": "def kernel(function):\n    return function\n",
}


@pytest.fixture
def package(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    return tmp_path


def test_kernels_rest_on_what_they_call_and_name_however_far_away(package: Path) -> None:
    found = {one.name for one in rests_on(package / "package" / "gate.py", package)}
    assert found == {"gate.py", "helpers.py", "kernels.py", "limits.py", "vocabulary.py"}


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [("vocabulary", "yes = 1", "yes = 2"), ("helpers", "2 * x", "3 * x"), ("gate", "_TABLE[0]", "_TABLE[1]")],
)
def test_a_change_in_any_of_them_makes_another_cache(package: Path, name: str, old: str, new: str) -> None:
    gate = package / "package" / "gate.py"
    before = digest_of_kernels(gate, package)
    changed = package / "package" / f"{name}.py"
    # Files are parsed once in a process; a new source is another process's.
    changed.write_text(changed.read_text().replace(old, new))
    assert digest_of_kernels(gate, package) != before


def test_a_change_in_a_shell_compiles_nothing(package: Path) -> None:
    gate = package / "package" / "gate.py"
    before = digest_of_kernels(gate, package)
    (package / "package" / "documents.py").write_text("class Document:\n    field = 1\n")
    assert digest_of_kernels(gate, package) == before


def test_the_caps_rest_on_zones_rules_and_words_but_not_on_documents() -> None:
    found = {str(one.relative_to(ROOT)) for one in rests_on(ROOT / "serve_app/policy/gates/caps.py", ROOT)}
    assert {"serve_app/policy/zones.py", "serve_app/policy/tables.py", "serve_app/vocabulary.py"} <= found
    assert "serve_app/policy/document.py" not in found


def test_every_kernel_is_cached_in_its_modules_own_folder() -> None:
    caps = importlib.import_module("serve_app.policy.gates.caps")
    assert cache_folder(caps.__name__).name.startswith("serve_app.policy.gates.caps-")
    assert str(cache_folder(caps.__name__)) in caps._caps._cache._cache_path


def test_kernels_are_plain_functions_of_a_module() -> None:
    """What `rests_on` cannot see through: kernels named otherwise, or taking another decorator's name."""
    for path in (*ROOT.glob("serve_app/**/*.py"), *ROOT.glob("simulators/**/*.py")):
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.ImportFrom) and node.module == "serve_app.kernels":
                assert all(one.asname is None for one in node.names), path


def test_kernels_round_strictly() -> None:
    @kernel
    def total(values: np.ndarray) -> float:
        out = 0.0
        for value in values:
            out += value
        return out

    values = np.array([1e16, 1.0, -1e16, 1.0])
    assert total(values) == ((1e16 + 1.0) - 1e16) + 1.0, "left to right, never reassociated"


def test_another_checkout_of_the_same_sources_compiles_nothing(tmp_path: Path) -> None:
    def hits(folder: str, text: str) -> str:
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / "probe.py").write_text(text)
        says = "import probe; probe.twice(2); print(sum(probe.twice.stats.cache_hits.values()))"
        environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / "cache"), "PYTHONPATH": f"{tmp_path / folder}:{ROOT}"}
        return subprocess.run(
            [sys.executable, "-c", says], env=environment, check=True, capture_output=True, text=True
        ).stdout

    text = "from serve_app.kernels import kernel\n\n@kernel\ndef twice(x):\n    return 2 * x\n"
    assert hits("here", text) == "0\n"
    assert hits("there", text) == "1\n"
    assert hits("there", text.replace("2 * x", "3 * x")) == "0\n"
