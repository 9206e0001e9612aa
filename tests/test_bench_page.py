"""docs/bench.md says in words and units what docs/bench.json holds."""

import json
from pathlib import Path

import pytest

from tests.bench import all_bars
from tests.bench_page import ABOUT, FIGURES, PAGE, Figures, render, words


def test_the_page_is_the_figures() -> None:
    results = json.loads(FIGURES.read_text())
    assert PAGE.read_text() == render(results)
    assert set(ABOUT) == set(results) - {"machine"}


def test_every_bar_is_on_the_page(tmp_path: Path) -> None:
    assert {name for name, _ in all_bars(tmp_path, 2048, 512, 1, quick=False)} == set(ABOUT)


def test_units_words_and_bars() -> None:
    found: Figures = {
        "kept_bytes": 5_650_235_184, "decode_k8_ms": 20.0, "cpu_over_torch_k4": 1.2, "largest_difference": 8.2e-8,
        "peak_mb": 4096, "bar": "peak_mb <= 4096, cpu_over_torch* <= 1.0, decode_k8_ms >= 17.5",
    }  # fmt: skip
    page = render({"machine": "2 cores", "session_load": found})
    assert "| weights that stay | 5.65 GB |  |" in page
    assert "| one token, k = 8 | 20 ms | at least 17.5 ms |" in page
    assert "| `cpu` form to PyTorch, k = 4 | 1.2 | at most 1 (**missed**) |" in page
    assert "| largest difference of the losses | 8.2e-08 |  |" in page
    assert "| peak memory | 4,096 MiB | at most 4,096 MiB |" in page


def test_a_figure_without_words_is_named() -> None:
    with pytest.raises(KeyError, match="'new_mb' has no words"):
        words("new_mb")
