"""Emitting the graphs of the full-size MolmoE-1B: seconds, megabytes, and no weight read."""

from pathlib import Path

import onnx
import pytest

from tests.full_size import measure_emission, released_config, write_sparse_molmoe
from tests.onnx_support import FIXTURES


@pytest.mark.parametrize("dtype", ["F32", "BF16"])
def test_full_size_graphs_are_quick_and_small(dtype: str, tmp_path: Path) -> None:
    directory = write_sparse_molmoe(tmp_path / "full", released_config(FIXTURES), dtype)
    cost = measure_emission(directory, crops=3)
    assert cost["tensors"] == 3573
    assert cost["file_bytes"] <= 5_000_000
    assert cost["peak_bytes"] <= 300_000_000
    assert cost["seconds"] <= 8  # 2 on an idle machine, which the bench checks
    onnx.checker.check_model(str(directory / "text.onnx"))
