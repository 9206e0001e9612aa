"""Graphs that no exporter writes: derive refuses them, and always comes to an end."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import AttributeProto, TensorProto, helper, numpy_helper

from export.derive import derive
from export.derive.graph import Network
from export.derive.surgery import operate
from tests.support.variants import write_variant
from transform.errors import CheckpointError, KnobcastError


@pytest.fixture(scope="module")
def variant(olmoe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_variant(olmoe, tmp_path_factory.mktemp("damaged") / "v", keep=(0, 1))


def load(variant: Path) -> Any:
    return onnx.load(variant / "text.onnx", load_external_data=False)


def readers(model: Any, kinds: tuple[str, ...]) -> Iterator[Any]:
    return (node for node in model.graph.node if node.op_type in kinds and node.input)


CIRCLES: list[tuple[tuple[str, ...], str]] = [
    (("Shape",), "TopK"), (("Shape",), "Softmax"), (("Add",), "TopK"), (("MatMul", "Gemm"), "Add"), (("Cast",), "TopK"),
]  # fmt: skip


@pytest.mark.parametrize(("early", "late"), CIRCLES)
@pytest.mark.parametrize("setting", [{"k": 1}, {"drop": [0]}, {"drop": [1]}, {"k": 1, "drop": [0]}])
def test_circles_are_refused(early: tuple[str, ...], late: str, setting: dict[str, Any], variant: Path) -> None:
    """The first operator of one kind reads the output of the last one of another."""
    model = load(variant)
    last = [node for node in model.graph.node if node.op_type == late][-1]
    next(readers(model, early)).input[0] = last.output[-1]
    with pytest.raises(CheckpointError, match="made from itself"):
        operate(model, setting.get("k"), None, setting.get("drop"))


def test_an_operator_that_reads_itself_is_refused(variant: Path) -> None:
    model = load(variant)
    node = model.graph.node[5]
    node.input[0] = node.output[0]
    with pytest.raises(CheckpointError, match="made from itself"):
        operate(model, 1)


def test_nodes_in_another_order_are_sorted(variant: Path) -> None:
    model = load(variant)
    names = [node.outputs[0] for node in Network(load(variant)).nodes]
    assert names == [node.output[0] for node in model.graph.node]  # a sorted one keeps its order
    nodes = list(model.graph.node)[::-1]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    assert operate(model, 1).top_k == (1, 1)


def without_inputs(node: Any) -> None:
    del node.input[:]


def without_outputs(node: Any) -> None:
    del node.output[:]


def without_attributes(node: Any) -> None:
    del node.attribute[:]


def one_input(node: Any) -> None:
    del node.input[1:]


def an_output_more(node: Any) -> None:
    node.output.append("one_more")


def attributes(make: Callable[[Any], None]) -> Callable[[Any], None]:
    def change(node: Any) -> None:
        for name in ("axis", "axes", "perm", "start", "end", "keepdims", "k", "transA", "transB", "split", "value"):
            held = node.attribute.add(name=name)
            make(held)

    return change


def text(held: Any) -> None:
    held.type, held.s = AttributeProto.STRING, b"x"


def large(held: Any) -> None:
    held.type, held.i = AttributeProto.INT, 2**62


def numbers(held: Any) -> None:
    held.type = AttributeProto.INTS
    held.ints.extend([-9, 99])


def unknown(held: Any) -> None:
    held.type = 0


@pytest.mark.parametrize(
    "damage",
    [without_inputs, without_outputs, without_attributes, one_input, an_output_more,
     *(attributes(make) for make in (text, large, numbers, unknown))],
)  # fmt: skip
def test_damaged_operators_are_refused_or_of_no_matter(damage: Callable[[Any], None], variant: Path) -> None:
    """The first and the last operator of every kind."""
    kinds = sorted({node.op_type for node in load(variant).graph.node})
    assert len(kinds) > 15
    for kind in kinds:
        for which in (0, -1):
            model = load(variant)
            node = [node for node in model.graph.node if node.op_type == kind][which]
            old = list(node.attribute)
            del node.attribute[:]
            damage(node)
            names = {held.name for held in node.attribute}
            node.attribute.extend(held for held in old if held.name not in names and damage is not without_attributes)
            try:
                operate(model, 1, None, [1])
            except KnobcastError:
                continue


def constants() -> list[Callable[[Any], None]]:
    def dims(tensor: Any) -> None:
        tensor.dims.append(3)

    def negative(tensor: Any) -> None:
        tensor.dims.insert(0, -1)

    def kind(tensor: Any) -> None:
        tensor.data_type = 99

    def string(tensor: Any) -> None:
        tensor.data_type = TensorProto.STRING

    def cut(tensor: Any) -> None:
        tensor.raw_data = tensor.raw_data[:3]

    def huge(tensor: Any) -> None:
        value = np.full(numpy_helper.to_array(tensor).shape, 2**62, np.int64)
        tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))

    def zero(tensor: Any) -> None:
        value = np.zeros(numpy_helper.to_array(tensor).shape, np.int64)
        tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))

    return [dims, negative, kind, string, cut, huge, zero]


@pytest.mark.parametrize("damage", constants(), ids=lambda change: change.__name__)
def test_damaged_constants_are_refused_or_of_no_matter(damage: Callable[[Any], None], variant: Path) -> None:
    inside = [n for n, t in enumerate(load(variant).graph.initializer) if t.data_location != TensorProto.EXTERNAL]
    assert len(inside) > 8
    for at in inside:
        model = load(variant)
        damage(model.graph.initializer[at])
        try:
            operate(model, 1, None, [1])
        except KnobcastError:
            continue


@pytest.mark.parametrize(
    "change",
    [
        lambda graph: graph.output[0].type.tensor_type.shape.ClearField("dim"),
        lambda graph: setattr(graph.input[0].type.tensor_type, "elem_type", 99),
        lambda graph: setattr(graph.input[0].type.tensor_type, "elem_type", 0),
        lambda graph: graph.input[0].type.tensor_type.shape.ClearField("dim"),
        lambda graph: setattr(graph.input[1].type.tensor_type.shape.dim[1], "dim_param", "²"),
        lambda graph: graph.input[2].type.tensor_type.shape.ClearField("dim"),
    ],
)
def test_damaged_signatures_are_refused(change: Callable[[Any], Any], variant: Path, tmp_path: Path) -> None:
    for file in variant.iterdir():
        (tmp_path / file.name).hardlink_to(file)
    (tmp_path / "text.onnx").unlink()
    model = load(variant)
    change(model.graph)
    (tmp_path / "text.onnx").write_bytes(model.SerializeToString())
    try:
        found = derive(tmp_path / "text.onnx", 1, out=tmp_path / "made.onnx")["verification"]
    except KnobcastError:
        assert not (tmp_path / "made.onnx").exists()
    else:  # made, for its operators are whole; what can't be fed is said
        assert found["run"]


def test_numbers_dont_grow_without_end(variant: Path) -> None:
    """Sixty squares of a size, and as many doublings of a list of sizes."""
    model = load(variant)
    shape = next(node for node in model.graph.node if node.op_type == "Shape")
    squared = listed = shape.output[0]
    for i in range(60):
        model.graph.node.append(helper.make_node("Mul", [squared, squared], [f"squared{i}"]))
        model.graph.node.append(helper.make_node("Concat", [listed, listed], [f"listed{i}"], axis=0))
        squared, listed = f"squared{i}", f"listed{i}"
    target = next(node for node in reversed(model.graph.node) if node.op_type == "Reshape")
    target.input[1] = listed
    model.graph.output.append(helper.make_tensor_value_info(squared, TensorProto.INT64, None))
    assert operate(model, 1).top_k == (1, 1)


def test_a_constant_that_is_k_everywhere_is_not_tried_in_every_combination(
    variant: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two to the power of 64 of them."""
    monkeypatch.setattr("export.derive.topk._MOST_STEPS", 5_000)
    model = load(variant)
    nodes, inside = list(model.graph.node), {tensor.name for tensor in model.graph.initializer}
    behind = next(n for n, node in enumerate(nodes) if node.op_type == "TopK")
    next(node for node in nodes[behind:] if node.op_type == "Reshape" and node.input[1] in inside).input[1] = "many"
    model.graph.initializer.append(numpy_helper.from_array(np.full(64, 4, np.int64), "many"))
    with pytest.raises(CheckpointError, match="too many constants"):
        operate(model, 1, None, [1])


@pytest.mark.parametrize("name", [b"past_key_values.0.key", b"logits", b"input_ids", b"TopK"])
def test_names_that_are_no_text_are_refused(name: bytes, variant: Path) -> None:
    """Of inputs, outputs, values and operators."""
    data = (variant / "text.onnx").read_bytes()
    assert name in data
    with pytest.raises(CheckpointError, match="UTF-8"):
        operate(onnx.load_from_string(data.replace(name, b"\xff" + name[1:])), 1)
