"""The compile cache follows every file that kernels rest on."""

from __future__ import annotations

from pathlib import Path

import numba
import numpy as np

from serve_app.kernels import kernel, source_digest


def test_a_change_in_a_called_file_makes_another_cache(tmp_path: Path) -> None:
    package = tmp_path / "package"
    (package / "policy").mkdir(parents=True)
    (package / "ingress").mkdir()
    constants = package / "policy" / "constants.py"
    constants.write_text("LIMIT = 1\n")
    before = source_digest([package])
    (package / "ingress" / "routes.py").write_text("# a shell\n")
    assert source_digest([package]) == before, "shells hold no kernels"
    constants.write_text("LIMIT = 2\n")
    assert source_digest([package]) != before


def test_the_cache_stands_in_a_folder_named_by_the_source() -> None:
    folder = Path(numba.config.CACHE_DIR)
    roots = [Path(__file__).parents[2] / name for name in ("serve_app", "simulators")]
    assert folder.name == f"kernels-{source_digest(roots)}"


def test_kernels_round_strictly() -> None:
    @kernel
    def total(values: np.ndarray) -> float:
        out = 0.0
        for value in values:
            out += value
        return out

    values = np.array([1e16, 1.0, -1e16, 1.0])
    assert total(values) == ((1e16 + 1.0) - 1e16) + 1.0, "left to right, never reassociated"
