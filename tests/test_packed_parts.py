"""Embedding tables and vision side in codes: what the operators read, and variants made before these were packed."""

import re
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from safetensors.numpy import load_file

from export.files.integrity import external_tensors
from export.gate.verify import verify_directory
from export.graph.builder import FLOAT, INT64, Graph
from export.graph.static import plan_static
from export.run.session import open_session
from export.variant import export_variant
from tests.support.models import BLOCKWISE, save_source
from tests.support.variants import record_sums
from transform.arrays import Array
from transform.checkpoint import Checkpoint
from transform.errors import CheckpointError, VerificationError
from transform.forms import Form, form_named
from transform.knobs import Knobs
from transform.load import load_model
from transform.packed import dequantise, write_packed
from transform.packed_layout import FILES, MATRICES, TABLES, VISION, Packing, packing_of
from transform.plan import make_plan
from transform.read import read_checkpoint

EVERY = Packing(4, tables=4, vision=8)
INT4 = form_named("int4")


@pytest.fixture(scope="module")
def written(molmo: Path, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """The fixture with all that can be packed packed."""
    directory = tmp_path_factory.mktemp("packed")
    write_packed(read_checkpoint(molmo), directory, EVERY)
    return read_checkpoint(directory)


def test_each_part_has_its_bits(written: Checkpoint) -> None:
    packs = {role: written.tensors[name].pack for name, (role, _) in written.expected().items()}
    found = {role: pack.bits for role, pack in packs.items() if pack is not None}
    own = {role: 4 for role in MATRICES if role in written.architecture.roles}
    experts = {f"expert.{part}": 4 for part in ("gate", "up", "down")}
    assert found == own | experts | dict.fromkeys(TABLES, 4) | dict.fromkeys(VISION, 8)
    matrices = {role for role in packs.keys() - found.keys() if len(written.tensor(role).shape) > 1}
    assert matrices == {"router", "vision.position", "vision.pad"}


def test_what_a_packing_says_is_what_is_read_back(written: Checkpoint) -> None:
    assert packing_of(written.config) == EVERY
    for packing in (Packing(8), Packing(4, 64), Packing(8, 16, tables=8), Packing(4, 32, vision=4)):
        assert packing_of({"quantization_config": packing.as_config()}) == packing
    assert str(EVERY) == "4 bits (attention, head, experts, embedding tables) and 8 bits (vision side), in blocks of 32"
    assert packing_of({}) is None
    with pytest.raises(CheckpointError, match="4, 8 bits, got 3"):
        packing_of({"quantization_config": EVERY.as_config() | {"embedding_bits": 3}})


@pytest.mark.parametrize("name", ["embedding", "embedding.extra"])
def test_rows_of_a_table_are_exactly_what_its_codes_mean(written: Checkpoint, name: str, tmp_path: Path) -> None:
    table = written.tensor(name)
    g = Graph("rows", INT4)
    ids = g.input("ids", INT64, ["n", "m"])
    g.output("rows", g.rows(table, ids), g.compute, ["n", "m", table.shape[1]])
    asked = np.array([[0, table.shape[0] - 1], [1, 1]])
    np.testing.assert_array_equal(run(g, table.file, {"ids": asked}), dequantise(table)[asked])


@pytest.mark.parametrize("name", ["vision.patch", "vision.fc2", "pool.k"])
def test_matrices_of_the_vision_side_are_multiplied_by_as_their_codes_say(written: Checkpoint, name: str) -> None:
    """The patches' matrix has 588 columns, which don't fill their blocks, and no bias."""
    biased = name != "vision.patch"
    weight = written.tensor(f"{name}.weight" if biased else name)
    bias = written.tensor(f"{name}.bias") if biased else None
    x = np.random.default_rng(1).standard_normal((7, weight.shape[1])).astype(np.float32)
    g = Graph("product", INT4)
    g.output(
        "y", g.linear(g.input("x", FLOAT, ["n", weight.shape[1]]), weight, bias), g.compute, ["n", weight.shape[0]]
    )
    expected = x.astype(np.float64) @ dequantise(weight).T
    if bias is not None:
        expected += load_file(weight.file)[bias.name]
    for options in ({}, {"session.disable_prepacking": "1"}):
        ours = run(g, weight.file, {"x": x}, options)
        assert np.abs(ours - expected).max() <= 1e-6 * np.abs(expected).max()


def run(g: Graph, weights: Path, feed: dict[str, Array], options: dict[str, str] | None = None) -> Array:
    """A graph over a weight file, which must lie beside it."""
    path = weights.parent / f"{g.name}.onnx"
    g.write(path)
    result: Array = open_session(path, options or {}, threads=1).run(None, feed)[0]
    return result


@pytest.mark.parametrize("form", ["int4", "int8"])
def test_no_large_matrix_stays_a_float(molmo: Path, tmp_path: Path, form: str) -> None:
    plan = make_plan(read_checkpoint(molmo), Knobs(2, (0, 2), 432, form=form))
    export_variant(plan, tmp_path / "v", verify=False)
    left = ("positional_embedding", "pad_embed", ".mlp.gate.weight", ".scales")
    for name in ("vision", "embedding", "text"):
        graph = onnx.load(tmp_path / "v" / f"{name}.onnx", load_external_data=False).graph
        floats = [t.name for t in external_tensors(graph) if len(t.dims) > 1 and t.data_type != onnx.TensorProto.UINT8]
        assert floats and all(tensor.endswith(left) for tensor in floats)
    assert {node.op_type for node in graph.node} >= {"MatMulNBits", "QMoE"}


def decoder_alone(form: Form, _: Checkpoint) -> Packing | None:
    """What a form was before tables and vision side were quantised."""
    return None if form.bits is None else Packing(form.bits, scales="float32")


@pytest.mark.parametrize("before", [False, True], ids=["now", "an earlier one"])
def test_a_variant_of_a_variant_has_its_codes(
    molmo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: bool
) -> None:
    """With floats in tables and vision side where that has them: nothing is quantised a second time, or later."""
    if before:
        monkeypatch.setattr("transform.plan.packing_for", decoder_alone)
    export_variant(make_plan(read_checkpoint(molmo), Knobs(3, tokens=432, form="int4")), tmp_path / "first")
    monkeypatch.undo()
    first = read_checkpoint(tmp_path / "first")
    assert packing_of(first.config) == (Packing(4, scales="float32") if before else EVERY)
    assert (first.tensor("embedding").pack is None) == (first.tensor("vision.patch").pack is None) == before
    verify_directory(tmp_path / "first", lambda _: None)
    plan = make_plan(first, Knobs(2, (1, 3)))
    assert (plan.packing, plan.new_packing) == (packing_of(first.config), None)
    export_variant(plan, tmp_path / "second")
    verify_directory(tmp_path / "second", lambda _: None)
    ours, theirs = (load_file(tmp_path / name / FILES[4]) for name in ("second", "first"))
    assert plan.bytes == sum(array.nbytes for array in ours.values())
    for name, array in ours.items():
        origin = re.sub(r"(?<!res)blocks\.(\d)\.", lambda found: f"blocks.{(1, 3)[int(found[1])]}.", name)
        np.testing.assert_array_equal(array, theirs[origin])
    static = {k: v for k, v in load_model(tmp_path / "second").state_dict().items() if "layers." not in k}
    dynamic = load_model(tmp_path / "first").state_dict()
    assert static and all(torch.equal(value, dynamic[name]) for name, value in static.items())


@pytest.mark.parametrize("name", ["embedding", "pool.k.weight"])
@pytest.mark.parametrize("part", ["codes", "scales"])
def test_changed_codes_are_noticed(molmo: Path, tmp_path: Path, name: str, part: str) -> None:
    """By the sums, and by the golden outputs where the sums were made again."""
    directory = tmp_path / "v"
    export_variant(make_plan(read_checkpoint(molmo), Knobs(2, (0, 2), 432, form="int4")), directory)
    pack = read_checkpoint(directory).tensor(name).pack
    assert pack is not None
    stored = pack.codes if part == "codes" else pack.scales
    data = bytearray(stored.file.read_bytes())
    values = data[stored.start : stored.start + stored.nbytes]
    data[stored.start : stored.start + stored.nbytes] = values[2:] + values[:2]
    stored.file.write_bytes(data)
    with pytest.raises(VerificationError, match="SHA256SUMS"):
        verify_directory(directory, lambda _: None)
    record_sums(directory)
    with pytest.raises(VerificationError, match="golden"):
        verify_directory(directory, lambda _: None)


@pytest.mark.parametrize("form", ["int4", "int8"])
def test_shapes_are_known_behind_the_table_where_sizes_are_fixed(tmp_path: Path, form: str) -> None:
    save_source(tmp_path / "source", **BLOCKWISE)
    plan = make_plan(read_checkpoint(tmp_path / "source"), Knobs(2, form=form))
    export_variant(plan, tmp_path / "v", verify=False, static=plan_static(plan, 64, 8))
    graph = onnx.load(tmp_path / "v" / "decode.onnx", load_external_data=False).graph
    (table,) = (node for node in graph.node if node.op_type == "GatherBlockQuantized")
    shapes = {info.name: [d.dim_value for d in info.type.tensor_type.shape.dim] for info in graph.value_info}
    assert shapes[table.output[0]] == [1, 1, plan.target.settings.hidden]
