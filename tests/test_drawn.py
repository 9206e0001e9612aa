"""Some of the acceptance set (`tests/drawn.py`): decoders of configurations that nobody chose."""

from pathlib import Path

import pytest

from tests.drawn import FORMS, compare
from tests.support.drawn import FAMILIES, drawn
from tests.support.stock_models import one_thread as one_thread
from transform.architectures import architecture_named, known_model_types
from transform.forms import form_named

# Rows that fill no block, which were wrong once; windows and sinks.
ALWAYS = (("qwen2_moe", 1010), ("gpt_oss", 1))
ROWS = [*ALWAYS, *(pytest.param(family, 2, marks=pytest.mark.extra) for family in FAMILIES)]


@pytest.mark.parametrize(("family", "seed"), ROWS)
def test_drawn_graphs_equal_transformers(family: str, seed: int, tmp_path: Path) -> None:
    what = drawn(family, seed)
    source = what.write(tmp_path / "source")
    for form in FORMS:
        found = compare(what, form, source, tmp_path / form)
        assert found.right, (found.refused, found.by_way)
        assert found.by_way or not what.packs


def test_a_clamp_that_float16_would_round_stays_what_it_is(tmp_path: Path) -> None:
    what = drawn("olmoe", 1005)
    assert what.config["clip_qkv"] == 0.8
    found = compare(what, "cuda", what.write(tmp_path / "source"), tmp_path / "variant")
    assert found.right, (found.refused, found.by_way)


def test_every_family_with_graphs_is_drawn() -> None:
    """But MolmoE, whose classes are our own; `test_onnx_parity.py` has it."""
    with_graphs = {name for name in known_model_types() if architecture_named(name).graph is not None}
    assert with_graphs - {"molmo"} == set(FAMILIES)
    assert all(form_named(form).runs_on_cpu for form in FORMS)


def test_a_seed_is_one_configuration() -> None:
    assert drawn("dots1", 5) == drawn("dots1", 5) != drawn("dots1", 6)
