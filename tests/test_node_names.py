"""Every node has a name of its own, across all branches: onnxruntime 1.18 to 1.21 needs it for experts in 16 bits.

There a fusion names its nodes after those it replaces, and two nodes of one name are an error.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest

from export.derive import derive
from export.derive.graph import branches
from export.derive.surgery import operate, with_masked_ranks
from export.graph.static import write_static
from export.layout.moved import plan_move, write_move
from export.run.static_plan import Prefill, StaticPlan
from tests.support.foreign_graphs import write_foreign
from tests.support.variants import write_variant
from transform.forms import REFERENCE
from transform.read import read_checkpoint


def names(nodes: Any) -> Iterator[str]:
    for node in nodes:
        yield node.name
        for branch in branches(node):
            yield from names(branch.node)


def assert_named(model: Any) -> None:
    found = list(names(model.graph.node))
    assert all(found)
    assert len(set(found)) == len(found)


def load(path: Path) -> Any:
    return onnx.load(path, load_external_data=False)


@pytest.fixture(scope="module")
def narrow(molmo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A variant in bfloat16, whose experts sit in loops."""
    return write_variant(molmo, tmp_path_factory.mktemp("names") / "v", dtype="bfloat16")


def test_emitted_graphs(narrow: Path) -> None:
    static = StaticPlan(24, (Prefill(None, 8),))
    paths = [*narrow.glob("*.onnx"), *write_static(read_checkpoint(narrow), narrow, static, REFERENCE)]
    assert len(paths) >= 5
    assert any(node.op_type == "Loop" for node in load(narrow / "text.onnx").graph.node)
    for path in paths:
        assert_named(load(path))


@pytest.mark.parametrize("form", ["cuda", "int4"])
def test_emitted_graphs_of_fused_operators(molmo: Path, tmp_path: Path, form: str) -> None:
    for path in write_variant(molmo, tmp_path / form, form=form).glob("*.onnx"):
        assert_named(load(path))


def test_names_take_little(narrow: Path) -> None:
    for path in (path for path in narrow.glob("*.onnx") if path.name != "preprocess.onnx"):  # no weights, 31 kB
        model = load(path)
        taken = sum(len(name) + 2 for name in names(model.graph.node))
        assert taken <= 0.12 * (path.stat().st_size - taken), path.name


def test_derived_graphs(narrow: Path) -> None:
    made = derive(narrow / "text.onnx", 2, drop=[1], verify=False)
    assert_named(load(narrow / made["graph"]))
    assert_named(with_masked_ranks(load(narrow / "text.onnx"), (0, 2), (1, 1)))


@pytest.mark.parametrize("options", [{}, {"fused": True}, {"tile": True}])
def test_derived_graphs_of_nameless_ones(tmp_path: Path, options: dict[str, Any]) -> None:
    """Sizes of other blocks are computed by new nodes, fused norms are taken apart and put together."""
    source = load(write_foreign(tmp_path / "foreign.onnx", (2, 2, 2), **options))
    assert not any(names(source.graph.node))
    assert_named(operate(source, 1, drop=[0]).model)


def test_names_that_occur_twice_are_told_apart_and_others_kept(tmp_path: Path) -> None:
    model = load(write_foreign(tmp_path / "foreign.onnx", (2, 2)))
    for at, node in enumerate(model.graph.node):
        node.name = ("same", "same_1", f"own{at}")[min(at, 2)] if at % 7 else "same"
    before = list(names(model.graph.node))
    changed = operate(model, 1).model
    assert_named(changed)
    assert {name for name in before if name.startswith("own")} & set(names(changed.graph.node))


def test_layouts(narrow: Path, tmp_path: Path) -> None:
    write_move(plan_move(narrow / "text.onnx", "text/1/model.onnx"), tmp_path, lambda _: None)
    moved = load(tmp_path / "text" / "1" / "model.onnx")
    assert_named(moved)
    assert list(names(moved.graph.node)) == list(names(load(narrow / "text.onnx").graph.node))
