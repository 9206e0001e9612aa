"""Weights outside a graph: one rule for everyone who opens it, whatever stands where a place should."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto

from export.derive import derive, load_graph
from export.files.integrity import check_graph_bounds, external_tensors
from export.layout.moved import plan_move, write_move
from export.numpy_run import NumpySession
from export.run.external import BITS, External, place_of
from export.run.graph_facts import read_facts
from export.run.session import open_session
from tests.support.variants import write_variant
from transform.errors import KnobcastError, VerificationError


@pytest.fixture(scope="module")
def variant(olmoe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_variant(olmoe, tmp_path_factory.mktemp("external") / "v", keep=(0, 1))


def put(key: str, value: str | None) -> Callable[[Any], None]:
    def change(tensor: Any) -> None:
        kept = [(item.key, item.value) for item in tensor.external_data if item.key != key]
        del tensor.external_data[:]
        for name, given in (*kept, *([] if value is None else [(key, value)])):
            tensor.external_data.add(key=name, value=given)

    return change


def kind(number: int) -> Callable[[Any], None]:
    def change(tensor: Any) -> None:
        tensor.data_type = number

    return change


def dims(*sizes: int) -> Callable[[Any], None]:
    def change(tensor: Any) -> None:
        del tensor.dims[:]
        tensor.dims.extend(sizes)

    return change


def nothing_said(tensor: Any) -> None:
    del tensor.external_data[:]


def twice(tensor: Any) -> None:
    tensor.external_data.add(key="offset", value="8")


DAMAGE = [
    put("location", None), put("location", ""), put("location", "../model.safetensors"), put("location", "/etc/passwd"),
    put("location", "a\0b"), put("location", "x" * 5000), put("location", "ü" * 200), put("location", "."),
    put("location", ".."), put("location", "text.onnx/."), put("offset", "x"), put("offset", "-8"),
    put("offset", "1_0"), put("offset", "8" * 5000), put("offset", "99999999999"), put("offset", ""),
    put("length", "x"), put("length", "-1"), put("length", "4"), put("length", "0"), put("length", "99999999999"),
    nothing_said, twice, kind(0), kind(99), kind(8), kind(TensorProto.INT4), kind(TensorProto.DOUBLE), dims(7),
    dims(-1), dims(2**62, 2**62), dims(*[1] * 100, 64),
]  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE)
def test_whoever_opens_a_graph_refuses_what_is_no_place(
    damage: Callable[[Any], None], variant: Path, tmp_path: Path
) -> None:
    for file in variant.iterdir():
        (tmp_path / file.name).hardlink_to(file)
    graph = tmp_path / "text.onnx"
    graph.unlink()
    model = onnx.load(variant / "text.onnx", load_external_data=False)
    damage(next(iter(external_tensors(model.graph))))
    graph.write_bytes(model.SerializeToString())
    for use in (
        lambda: check_graph_bounds(tmp_path),
        lambda: open_session(graph, {}),
        lambda: plan_move(graph, "out/model.onnx"),
        lambda: NumpySession(graph),
        lambda: derive(graph, 2, verify=False),
    ):
        with pytest.raises(KnobcastError):
            use()
    assert not list(tmp_path.glob("text-*"))


def hide_in_a_constant(model: Any) -> None:
    node = model.graph.node.add(op_type="Constant", output=["hidden"])
    node.attribute.add(name="value", type=onnx.AttributeProto.TENSOR).t.CopyFrom(hidden())


def hide_in_a_branch(model: Any) -> None:
    node = model.graph.node.add(op_type="If", input=["hidden"], output=["found"])
    branch = node.attribute.add(name="then_branch", type=onnx.AttributeProto.GRAPH).g
    branch.initializer.add().CopyFrom(hidden())


def hide_in_two_branches(model: Any) -> None:
    """Names need not differ between branches: the second one must not hide the first."""
    hide_in_a_branch(model)
    branch = model.graph.node[-1].attribute.add(name="else_branch", type=onnx.AttributeProto.GRAPH).g
    branch.initializer.add().CopyFrom(hidden("model.safetensors"))


def hide_in_a_function(model: Any) -> None:
    function = model.functions.add(name="f", domain="x")
    node = function.node.add(op_type="Constant", output=["hidden"])
    node.attribute.add(name="value", type=onnx.AttributeProto.TENSOR).t.CopyFrom(hidden())


def hide_in_a_sparse_tensor(model: Any) -> None:
    model.graph.sparse_initializer.add().values.CopyFrom(hidden())


def hidden(location: str = "../secret") -> Any:
    tensor = TensorProto(name="hidden", data_type=TensorProto.UINT8, dims=[4], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", "0"), ("length", "4")):
        tensor.external_data.add(key=key, value=value)
    return tensor


@pytest.mark.parametrize(
    "hide",
    [hide_in_a_constant, hide_in_a_branch, hide_in_two_branches, hide_in_a_function, hide_in_a_sparse_tensor],
)
def test_weights_are_found_wherever_they_hide(hide: Callable[[Any], None], tmp_path: Path) -> None:
    model = onnx.helper.make_model(onnx.helper.make_graph([], "g", [], []))
    hide(model)
    (tmp_path / "model.safetensors").write_bytes(bytes(8))
    (tmp_path / "g.onnx").write_bytes(model.SerializeToString())
    for use in (check_graph_bounds, lambda at: open_session(at / "g.onnx", {})):
        with pytest.raises(VerificationError, match=r"its location is '\.\./secret'"):
            use(tmp_path)


def test_a_variant_has_its_files(variant: Path, tmp_path: Path) -> None:
    shutil.copytree(variant, tmp_path / "v")
    assert check_graph_bounds(tmp_path / "v")["text.onnx"] > 20
    weights = next((tmp_path / "v").glob("model*.safetensors"))
    weights.rename(tmp_path / "v" / "elsewhere.bin")
    with pytest.raises(VerificationError, match="must be a file beside it"):
        check_graph_bounds(tmp_path / "v")
    weights.symlink_to("elsewhere.bin")
    check_graph_bounds(tmp_path / "v")  # links are followed, as the hub's cache has them: their bytes have sums
    open_session(tmp_path / "v" / "text.onnx", {})


@pytest.mark.parametrize("make", [Path.mkdir, lambda path: path.write_bytes(b"\x07"), Path.touch])
def test_a_graph_that_is_none_is_refused(make: Callable[[Path], Any], tmp_path: Path) -> None:
    make(tmp_path / "text.onnx")
    for use in (check_graph_bounds, lambda at: open_session(at / "text.onnx", {})):
        with pytest.raises(VerificationError, match=r"text\.onnx"):
            use(tmp_path)


def node(kind: str, domain: str = "") -> bytes:
    """A node in a graph or function, as protobuf writes it: both have their nodes in small fields."""
    return onnx.helper.make_node(kind, ["x"], ["y"], domain=domain).SerializeToString()


def many(field: int, message: bytes, count: int) -> bytes:
    return (bytes([field << 3 | 2, len(message)]) + message) * count


def of_graph(body: bytes) -> onnx.ModelProto:
    model = onnx.helper.make_model(onnx.helper.make_graph([], "g", [], []))
    model.graph.MergeFromString(body)
    return model


def too_many_nodes() -> onnx.ModelProto:
    return of_graph(many(1, node("Abs"), 200_001))


def too_many_tensors() -> onnx.ModelProto:
    return of_graph(many(1, node("Abs"), 1) + many(5, TensorProto(name="w", data_type=1).SerializeToString(), 100_001))


def functions(*called: str) -> onnx.ModelProto:
    """f0 calls what is named here, twice; each of the others the one before it."""
    model = of_graph(many(1, node("f30", "bomb"), 1))
    for number in range(31):
        inner = onnx.helper.make_function("bomb", f"f{number}", ["x"], ["y"], [], [])
        for kind in called if number == 0 else [f"f{number - 1}"] * 2:
            inner.node.add(op_type=kind, domain="bomb" if kind.startswith("f") else "")
        model.functions.append(inner)
    return model


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (too_many_nodes, "at most 200,000 nodes"), (too_many_tensors, "at most 100,000 tensors"),
        (lambda: functions("Abs", "Abs"), "at most 200,000 nodes, it has 2,147,483,648"),
        (lambda: functions("f30"), "calls itself"),
    ],
)  # fmt: skip
def test_a_graph_that_takes_minutes_to_open_is_refused_before(
    make: Callable[[], onnx.ModelProto], said: str, tmp_path: Path
) -> None:
    """A few megabytes of nodes, or a few lines of functions that call each other."""
    (tmp_path / "text.onnx").write_bytes(make().SerializeToString())
    for use in (check_graph_bounds, lambda at: open_session(at / "text.onnx", {})):
        with pytest.raises(VerificationError, match=said):
            use(tmp_path)
    with pytest.raises(KnobcastError, match=said):
        load_graph(tmp_path / "text.onnx")


def test_functions_count_as_what_they_hold(tmp_path: Path) -> None:
    model = functions("Abs")
    del model.functions[10:]
    model.graph.node[0].op_type = "f9"
    (tmp_path / "text.onnx").write_bytes(model.SerializeToString())
    facts = read_facts(tmp_path / "text.onnx")
    assert facts.operators == {"Abs", *(f"bomb::f{number}" for number in range(10))}


def test_what_the_format_leaves_out_is_the_whole_file(tmp_path: Path) -> None:
    """Offset 0, and as many bytes as type and shape take; a layout then says both."""
    (tmp_path / "w.bin").write_bytes(bytes(range(16)))
    model = onnx.helper.make_model(onnx.helper.make_graph([], "g", [], []))
    tensor = model.graph.initializer.add(name="w", data_type=TensorProto.FLOAT, dims=[2, 2])
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="w.bin")
    (tmp_path / "g.onnx").write_bytes(model.SerializeToString())
    moved = plan_move(tmp_path / "g.onnx", "out/model.onnx")
    write_move(moved, tmp_path, lambda _: None)
    (carried,) = onnx.load(tmp_path / "out" / "model.onnx").graph.initializer
    assert carried.raw_data == bytes(range(16))


def test_sizes_of_types_are_onnxs() -> None:
    for number in BITS.keys() & set(TensorProto.DataType.values()):  # older onnx knows fewer
        if BITS[number] >= 8:
            assert onnx.helper.tensor_dtype_to_np_dtype(number).itemsize * 8 == BITS[number], number
    assert place_of("g", External("w", TensorProto.INT4, (3,), (("location", "w"),))) == ("w", 0, 2)
