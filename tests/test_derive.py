"""Derived graphs equal the ones emitted for their setting: own forms, other exporters' graphs, refusals, records."""

import json
import math
import subprocess
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from typer.testing import CliRunner

import export.derive.check
from export.command.main import app
from export.derive import derive, load_graph
from export.derive.check import check_derived
from export.derive.graph import Network
from export.derive.surgery import operate
from export.files.integrity import external_tensors
from export.gate.verify import verify_directory
from export.graph.decoder import text_graph
from export.graph.static import write_decoders
from export.run.static_plan import Prefill, StaticPlan
from export.variant import export_variant
from tests.support.foreign_graphs import EXPERTS, VOCABULARY, write_foreign
from tests.support.full_size import measure_emission, released_config, write_sparse_molmoe
from tests.support.graphs import empty_cache, session, step
from tests.support.paths import FIXTURES
from tests.support.variants import write_variant
from transform.arrays import Array
from transform.depth import drop_blocks
from transform.errors import CheckpointError, KnobError, VerificationError, WriteError
from transform.forms import REFERENCE, form_named
from transform.knobs import Knobs
from transform.plan import make_plan
from transform.read import read_checkpoint
from transform.top_k import set_top_k

SETTINGS: list[tuple[Any, list[int]]] = [
    (2, []),
    (None, [0]),
    (None, [-1]),
    (1, [0, -1]),
    (8, [1]),
    (3, [1, 2]),
]
PER_BLOCK: list[tuple[Any, list[int]]] = [([1, 8, 4, 2], []), ([4, 2], [0, 2]), ([4, 4, 1], [3]), ([7], [0, 1, 2])]


def outputs(directory: Path, name: str) -> list[Array]:
    """Logits and cache of a left-padded batch: a prompt, then a token, then two."""
    text = session(directory, name)
    generator = np.random.default_rng(1)
    first = text.get_inputs()[0]
    cache, found = empty_cache(text, 2), []
    mask = np.ones((2, 12), np.int64)
    mask[1, :3] = 0
    for start, stop in ((0, 9), (9, 10), (10, 12)):
        if first.name == "input_ids":
            given = generator.integers(2, 90, (2, stop - start))
        else:
            given = generator.standard_normal((2, stop - start, first.shape[2])).astype(np.float32)
        if "float16" in first.type:
            given = given.astype(np.float16)
            cache = {name: value.astype(np.float16) for name, value in cache.items()}
        logits, cache = step(text, {first.name: given}, mask[:, :stop], cache)
        found.append(logits)
    return [*found, *cache.values()]


def emitted(directory: Path, k: Any, drop: Sequence[int], form: str = "cpu") -> str:
    """A graph emitted directly for a setting, beside the derived one."""
    checkpoint = read_checkpoint(directory)
    layers = checkpoint.settings.layers
    member = drop_blocks(checkpoint, [i for i in range(layers) if i not in {d % layers for d in drop}])
    text_graph(member if k is None else set_top_k(member, k), form_named(form)).write(directory / "direct.onnx")
    return "direct.onnx"


def absolute(directory: Path, drop: Sequence[int]) -> list[int] | None:
    layers = read_checkpoint(directory).settings.layers
    return [d % layers for d in drop] or None


def equal(ours: list[Array], theirs: list[Array]) -> None:
    assert len(ours) == len(theirs)
    for mine, other in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(mine, other)


@pytest.fixture(scope="module")
def own(molmo: Path, olmoe: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("own")
    return {
        "molmo": write_variant(molmo, root / "molmo"),
        "olmoe": write_variant(olmoe, root / "olmoe"),
    }


# knobcast's own graphs


@pytest.mark.parametrize(
    ("name", "k", "drop"),
    [(name, *setting) for name in ("molmo", "olmoe") for setting in SETTINGS]
    + [("molmo", *setting) for setting in PER_BLOCK],
)
def test_equals_the_graph_emitted_for_the_setting(own: dict[str, Path], name: str, k: Any, drop: list[int]) -> None:
    directory = own[name]
    made = derive(directory / "text.onnx", k, drop=absolute(directory, drop), verify=False, force=True)
    equal(outputs(directory, made["graph"]), outputs(directory, emitted(directory, k, drop)))
    theirs = onnx.load(directory / "direct.onnx", load_external_data=False)
    ours = onnx.load(directory / made["graph"], load_external_data=False)
    needed = Network(theirs)
    needed.prune()  # of the emitted graph, what some output needs
    assert len(ours.graph.node) == len(needed.nodes)
    assert {t.name for t in external_tensors(ours.graph)} <= {t.name for t in external_tensors(load_own(directory))}


def load_own(directory: Path) -> Any:
    return onnx.load(directory / "text.onnx", load_external_data=False).graph


@pytest.mark.parametrize("form", ["cuda", "int4", "int8"])
def test_every_form_equals_the_graph_emitted_for_the_setting(form: str, tmp_path: Path) -> None:
    """Fused operators have k as an attribute; numpy computes what has no kernel on the CPU."""
    directory = write_variant(FIXTURES, tmp_path / form, form=form)
    made = derive(directory / "text.onnx", [2, 5], drop=[0, 2])
    found = made["verification"]["torch"]
    assert found["prefill"] <= 1e-5 * found["largest_value"]
    kinds = {node.op_type for node in onnx.load(directory / made["graph"], load_external_data=False).graph.node}
    assert kinds & {"MoE", "QMoE"}
    equal(outputs(directory, made["graph"]), outputs(directory, emitted(directory, [2, 5], [0, 2], form)))
    with pytest.raises(AssertionError):
        equal(outputs(directory, made["graph"]), outputs(directory, emitted(directory, [3, 5], [0, 2], form)))


def test_sixteen_bit_experts_in_branches(olmoe: Path, tmp_path: Path) -> None:
    directory = write_variant(olmoe, tmp_path / "variant", dtype="bfloat16")
    made = derive(directory / "text.onnx", 2, drop=[1, 5])
    assert made["verification"]["torch"]["prefill"] <= 1e-5 * made["verification"]["torch"]["largest_value"]
    equal(outputs(directory, made["graph"]), outputs(directory, emitted(directory, 2, [1, 5])))


def test_verified_against_pytorch_in_a_variant(own: dict[str, Path]) -> None:
    made = derive(own["molmo"] / "text.onnx", [8, 1, 4], drop=[1], force=True)
    found = made["verification"]
    assert found["checker"] == "passed"
    assert found["run"] == {"prefill": [1, 6, 256], "decode": [1, 1, 256]}
    assert found["source_with_masked_ranks"]["difference"] <= 1e-5 * found["source_with_masked_ranks"]["largest_value"]
    for way in ("prefill", "decode", "padded"):
        assert found["torch"][way] <= 1e-5 * found["torch"]["largest_value"]
    again = derive(own["molmo"] / made["graph"], 2, drop=[0], force=True)  # blocks are told by their weights
    assert again["verification"]["torch"]["prefill"] <= 1e-5 * again["verification"]["torch"]["largest_value"]
    assert again["graph"] == "text-k2-b2.onnx"


def test_settings_differ(own: dict[str, Path]) -> None:
    names = [
        derive(own["olmoe"] / "text.onnx", k, drop=drop, verify=False, force=True)["graph"]
        for k, drop in ((2, None), (3, None), (2, [5]))
    ]
    found = [outputs(own["olmoe"], name)[0] for name in ("text.onnx", *names)]
    for i, one in enumerate(found):
        assert all(np.abs(one - other).max() > 1e-3 for other in found[:i])


# Graphs of other exporters


def run_foreign(path: Path) -> list[Array]:
    """All outputs of a prefill of three rows and of a decode step after it."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    opened = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    ids = np.random.default_rng(0).integers(0, VOCABULARY, (3, 6))
    names = [i.name for i in opened.get_inputs()[1:]]
    width = int(opened.get_inputs()[1].shape[3])
    first = opened.run(None, {"input_ids": ids[:, :5], **{n: np.zeros((3, 1, 0, width), np.float32) for n in names}})
    cache = {o.name.replace("output.", "input."): v for o, v in zip(opened.get_outputs(), first, strict=True)}
    cache.pop("logits")
    return [*first, *opened.run(None, {"input_ids": ids[:, 5:], **cache})]


@pytest.mark.parametrize(
    ("hidden", "tile", "fused"), [(4, False, False), (6, False, True), (4, True, True), (6, True, False)]
)
@pytest.mark.parametrize(
    ("before", "after", "keep"),
    [
        ((4, 4, 4), (2, 2, 2), (0, 1, 2)),
        ((4, 4, 4), (6, 1, 2), (0, 1, 2)),
        ((4, 4, 4), (2, 4), (1, 2)),
        ((4, 4, 4), (3,), (1,)),
        ((4, 4, 4), (4, 4), (0, 1)),
        ((6, 4, 6), (6, 3), (0, 2)),
        ((2, 2, 2), (3, 3, 2), (0, 1, 2)),
    ],
)
def test_a_foreign_graph_equals_the_one_made_so(
    before: tuple[int, ...], after: tuple[int, ...], keep: tuple[int, ...], hidden: int, tile: bool, fused: bool,
    tmp_path: Path,
) -> None:  # fmt: skip
    """k may equal the width (4) or the experts (6); sizes of all blocks are taken from the first and the last one."""
    options: dict[str, Any] = {"hidden": hidden, "tile": tile, "fused": fused}
    source = write_foreign(tmp_path / "model.onnx", before, **options)
    theirs = write_foreign(tmp_path / "theirs.onnx", after, keep, **options)
    kept = None if keep == tuple(range(len(before))) else keep
    made = derive(source, None if after == (4, 4) else after, keep=kept)
    assert made["verification"]["source_with_masked_ranks"]["difference"] < 1e-5
    assert made["verification"]["torch"].startswith("not compared with PyTorch")
    equal(run_foreign(tmp_path / made["graph"]), run_foreign(theirs))
    names = [v.name for v in onnx.load(tmp_path / made["graph"]).graph.input]
    assert names == [v.name for v in onnx.load(theirs).graph.input]


def test_k_of_one_grows_where_its_places_are_certain(tmp_path: Path) -> None:
    source = write_foreign(tmp_path / "model.onnx", (1, 1, 1))
    theirs = write_foreign(tmp_path / "theirs.onnx", (3, 1), (0, 2))
    equal(run_foreign(tmp_path / derive(source, [3, 1], drop=[1])["graph"]), run_foreign(theirs))


def test_k_of_one_is_refused_where_they_are_not(tmp_path: Path) -> None:
    """Repeats of [1, 1, 1]: tokens one after the other or all of them again, the sizes are the same."""
    source = write_foreign(tmp_path / "model.onnx", (1, 1), tile=True)
    with pytest.raises(CheckpointError, match=r"block 0: whether the constant .* of Tile is k"):
        derive(source, 2)
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]
    assert derive(source, drop=[0])["graph"] == "model-k1-b1.onnx"


def test_a_missed_place_of_k_is_noticed(tmp_path: Path) -> None:
    source = write_foreign(tmp_path / "model.onnx", (4, 4))
    surgery = operate(load_graph(source), 2)
    staged = tmp_path / "staged"
    divisor = next(node for node in surgery.model.graph.node if node.op_type == "Div")
    array = onnx.numpy_helper.from_array(np.array(3), "wrong")
    surgery.model.graph.initializer.append(array)
    divisor.input[1] = "wrong"
    staged.write_bytes(surgery.model.SerializeToString())
    with pytest.raises(VerificationError, match="difference is"):
        check_derived(source, staged, surgery)


def test_another_k_than_the_one_claimed_is_noticed(tmp_path: Path) -> None:
    source = write_foreign(tmp_path / "model.onnx", (4, 4))
    surgery = operate(load_graph(source), 2)
    (tmp_path / "staged").write_bytes(surgery.model.SerializeToString())
    assert check_derived(source, tmp_path / "staged", surgery)["source_with_masked_ranks"]["difference"] < 1e-5
    with pytest.raises(VerificationError, match="constant that depends on k was missed"):
        check_derived(source, tmp_path / "staged", replace(surgery, top_k=(3, 3)))


# What is refused


@pytest.mark.parametrize(
    ("k", "options", "error", "words"),
    [
        (None, {}, KnobError, "nothing was asked for"),
        (4, {}, KnobError, "must differ"),
        (4, {"keep": [0, 1, 2]}, KnobError, "must differ"),
        (EXPERTS + 1, {}, KnobError, f"from 1 to {EXPERTS} .*block 0.*got {EXPERTS + 1}"),
        (0, {}, KnobError, "from 1 to"),
        ([2, 2], {}, KnobError, "2 values, 3 blocks kept"),
        (2, {"drop": [0, 1, 2]}, KnobError, "at least one block must stay"),
        (2, {"drop": [3]}, KnobError, "from 0 to 2"),
        (2, {"keep": [1, 1]}, KnobError, "more than once"),
        (2, {"keep": [1], "drop": [0]}, KnobError, "one way"),
        (2, {"out": Path("elsewhere/model.onnx")}, WriteError, "weights are named relative"),
        (2, {"out": Path("model.bin")}, WriteError, "name of an .onnx file"),
        (2, {"out": Path("model.onnx"), "force": True}, WriteError, "exists; choose another"),
        (2, {"out": Path("other.onnx")}, WriteError, "--force"),
        (2, {"out": Path("other.onnx"), "force": True}, WriteError, "only graphs that derive has made"),
    ],
)
def test_settings_and_targets_that_can_not_be(
    k: Any, options: dict[str, Any], error: type[Exception], words: str, tmp_path: Path
) -> None:
    source = write_foreign(tmp_path / "model.onnx", (4, 4, 4))
    (tmp_path / "other.onnx").write_bytes(source.read_bytes())
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    if "out" in options:
        options = options | {"out": tmp_path / options["out"]}
    with pytest.raises(error, match=words):
        derive(source, k, **options)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_graphs_that_are_no_decoders(own: dict[str, Path], tmp_path: Path) -> None:
    for name in ("vision.onnx", "embedding.onnx"):
        with pytest.raises(CheckpointError, match="cache inputs numbered from 0"):
            derive(own["molmo"] / name, 2)
    (tmp_path / "text.onnx").write_bytes(b"\x00\x01 no graph")
    with pytest.raises(CheckpointError, match=r"not an ONNX file|without operators"):
        derive(tmp_path / "text.onnx", 2)
    with pytest.raises(CheckpointError, match="no such file"):
        derive(tmp_path / "absent.onnx", 2)
    with pytest.raises(CheckpointError, match=r"is a directory\. Give the .onnx file"):
        derive(tmp_path, 2)


def test_a_stream_that_is_not_residual_is_refused(tmp_path: Path) -> None:
    source = write_foreign(tmp_path / "model.onnx", (4, 4))
    model = onnx.load(source)
    adds = [node for node in model.graph.node if node.op_type == "Add" and "gather" in node.input[0]]
    adds[0].op_type = "Mul"  # the stream is still on every way, but no block adds to it
    onnx.save(model, source)
    derive(source, 2, dry_run=True)  # the first block's sum isn't what is cut at
    for node in model.graph.node:
        if node.op_type == "Add" and any(name.startswith("add") for name in node.input):
            node.input[0] = node.input[1] = node.input[1]
    onnx.save(model, source)
    with pytest.raises(CheckpointError):
        derive(source, drop=[0])


def test_blocks_without_routers_can_be_dropped_but_have_no_k(tmp_path: Path) -> None:
    source = write_foreign(tmp_path / "model.onnx", (4, 4))
    model = onnx.load(source)
    for node in model.graph.node:
        if node.op_type == "TopK" and node.attribute and any(a.name == "largest" for a in node.attribute):
            continue
        if node.op_type == "TopK":  # k computed: nothing to rewrite
            node.input[1] = add_shape_of_k(model, node.input[1])
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(CheckpointError, match="0 operators choose experts"):
        derive(source, 2)
    made = derive(source, drop=[1])
    assert (made["top_k"], made["graph"]) == (None, "model-b1.onnx")
    assert made["verification"]["run"]["prefill"] == [1, 6, VOCABULARY]
    assert "k isn't known" in made["verification"]["source_with_masked_ranks"]


def add_shape_of_k(model: Any, name: str) -> str:
    if not any(node.output[0] == "computed" for node in model.graph.node):
        zero = onnx.numpy_helper.from_array(np.array([0]), "zero")
        model.graph.initializer.append(zero)
        node = onnx.helper.make_node("Add", [name, "zero"], ["computed"])
        model.graph.node.insert(0, node)
    return "computed"


def test_a_dropped_cache_that_others_need_is_refused(tmp_path: Path) -> None:
    source = write_foreign(tmp_path / "model.onnx", (4, 4))
    model = onnx.load(source)
    norm = next(n for n in model.graph.node if n.op_type == "SimplifiedLayerNormalization")
    total = onnx.helper.make_node("ReduceSum", ["input.past_key_values.layers.1.keys"], ["peek"], keepdims=0)
    added = onnx.helper.make_node("Add", [norm.output[0], "peek"], ["peeked"])
    for node in model.graph.node:
        node.input[:] = ["peeked" if name == norm.output[0] else name for name in node.input]
    at = list(model.graph.node).index(norm) + 1
    model.graph.node.insert(at, added)
    model.graph.node.insert(at, total)
    onnx.save(model, source)
    with pytest.raises(CheckpointError, match="in the order of their caches"):
        derive(source, drop=[1])


def test_weights_elsewhere_or_cut_short_are_refused(olmoe: Path, tmp_path: Path) -> None:
    directory = write_variant(olmoe, tmp_path / "variant")
    weights = sorted(directory.glob("model-*.safetensors"))[0]
    size = weights.stat().st_size
    with weights.open("r+b") as file:
        file.truncate(size - 64)
    with pytest.raises(VerificationError, match="truncated or replaced"):
        derive(directory / "text.onnx", 2)
    weights.unlink()
    made = derive(directory / "text.onnx", 2)
    assert made["verification"]["run"] == f"not run: the weights are missing ({weights.name})"
    assert not list(directory.glob(".*"))


# Files and records


def test_the_name_says_what_the_graph_has_and_the_source_is_untouched(tmp_path: Path) -> None:
    source = write_foreign(tmp_path / "model.onnx", (4, 4, 4))
    before = source.read_bytes()
    made = derive(source, 2, drop=[0], verify=False)
    assert made["graph"] == "model-k2-b2.onnx"
    assert derive(tmp_path / made["graph"], [3, 2], verify=False)["graph"] == "model-k3x1.2x1-b2.onnx"
    assert source.read_bytes() == before
    first = (tmp_path / made["graph"]).read_bytes()
    derive(source, 2, drop=[0], force=True, verify=False)
    assert (tmp_path / made["graph"]).read_bytes() == first
    assert made["bytes"] == len(first)


@pytest.mark.parametrize("drop", [[], [1], [0, 3]])
def test_graphs_of_fixed_sizes(molmo: Path, drop: list[int], tmp_path: Path) -> None:
    """They are rewritten, but nobody here knows how to feed them: not run."""
    directory = write_variant(molmo, tmp_path / "variant")
    plan = StaticPlan(32, (Prefill(None, 16),))
    sources = write_decoders(read_checkpoint(directory), directory, plan, REFERENCE)
    keep = [i for i in range(4) if i not in drop]
    fewer = set_top_k(drop_blocks(read_checkpoint(directory), keep), 2)
    write_decoders(fewer, directory, plan, REFERENCE, prefix="direct-")
    for source in sources:
        made = derive(source, 2, drop=drop or None)
        assert made["verification"]["run"].startswith("not run: the cache input")
        assert "overlay" not in made  # genai_config.json is about text.onnx
        ours, theirs = (run_fixed(directory, name) for name in (made["graph"], f"direct-{source.name}"))
        equal(ours, theirs)


def run_fixed(directory: Path, name: str) -> list[Array]:
    text, generator = session(directory, name), np.random.default_rng(0)
    feed: dict[str, Array] = {}
    for given in text.get_inputs():
        whole = np.full(given.shape, 1 if "mask" in given.name else 3, np.int64)
        feed[given.name] = whole if "int" in given.type else generator.standard_normal(given.shape).astype(np.float32)
    return list(text.run(None, feed))


def test_nothing_is_left_of_a_graph_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_foreign(tmp_path / "model.onnx", (4, 4))
    monkeypatch.setattr(export.derive.check, "TOLERANCE", -1.0)
    with pytest.raises(VerificationError, match="must agree with its source"):
        derive(source, 2)
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]


def test_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    source = write_foreign(tmp_path / "real" / "model.onnx", (4, 4))
    (tmp_path / "model.onnx").symlink_to(source)
    with pytest.raises(WriteError, match="is a link"):
        derive(tmp_path / "model.onnx", 2, out=tmp_path / "real" / "out.onnx")


def test_an_overlay_for_genai(own: dict[str, Path]) -> None:
    made = derive(own["molmo"] / "text.onnx", 5, drop=[1, 2], verify=False, force=True)
    assert made["overlay"] == "genai_config-k5-b2.json"
    overlay = json.loads((own["molmo"] / made["overlay"]).read_text())
    assert overlay == {"model": {"decoder": {"filename": "text-k5-b2.onnx", "num_hidden_layers": 2}}}
    text = (own["molmo"] / made["overlay"]).read_bytes()
    with pytest.raises(WriteError, match="belongs to another graph"):
        derive(own["molmo"] / "text.onnx", 5, drop=[1, 2], out=own["molmo"] / "other-k5-b2.onnx", verify=False)
    assert (own["molmo"] / made["overlay"]).read_bytes() == text


def test_a_verified_variant_stays_one(molmo: Path, tmp_path: Path) -> None:
    directory = tmp_path / "variant"
    export_variant(make_plan(read_checkpoint(molmo), Knobs(None, (0, 1, 3), 288)), directory)
    with pytest.raises(WriteError, match="--no-verify would add"):
        derive(directory / "text.onnx", 2, verify=False)
    files = verify_directory(directory, lambda _: None)["files"]
    made = derive(directory / "text.onnx", 2, drop=[1])
    killed = subprocess.Popen(["true"])
    killed.wait()
    for name in (f".text-k7-b3.onnx.stage-{killed.pid}", f".text-k7-b3.onnx.stage-{killed.pid}.ours"):
        (directory / name).write_text("left")
    derive(directory / "text.onnx", 1)
    assert verify_directory(directory, lambda _: None)["files"] == files + 4  # each with its overlay
    manifest = json.loads((directory / "manifest.json").read_text())
    assert list(manifest["derived"]) == ["text-k2-b2.onnx", "text-k1-b3.onnx"]
    assert manifest["derived"]["text-k2-b2.onnx"]["sha256"] == made["sha256"]
    assert manifest["derived"]["text-k2-b2.onnx"]["verification"]["torch"]["prefill"] < 1e-4

    (directory / "SHA256SUMS").write_text((directory / "SHA256SUMS").read_text() + f"{'0' * 64}  planted\n")
    with pytest.raises(VerificationError, match="nothing is added"):
        derive(directory / "text.onnx", 3)
    assert not (directory / "text-k3-b3.onnx").exists()


# The command line, and what it costs


def test_the_command_line(own: dict[str, Path]) -> None:
    runner = CliRunner()
    arguments = ["derive", str(own["olmoe"] / "text.onnx"), "--k", "7", "--drop-blocks", "0,4", "--json"]
    planned = json.loads(runner.invoke(app, [*arguments, "--dry-run"]).stdout)
    assert planned["blocks_kept"] == [1, 2, 3, 5]
    assert not Path(planned["out"]).exists()
    made = runner.invoke(app, arguments)
    assert made.exit_code == 0, made.stderr
    assert json.loads(made.stdout)["top_k"] == [7] * 4
    assert Path(planned["out"]).exists()
    again = runner.invoke(app, arguments)
    assert isinstance(again.exception, WriteError)
    shown = runner.invoke(app, [*arguments[:-1], "--force"])
    assert "8 of" not in shown.stdout and "0 4 (4 of 6 stay)" in shown.stdout and "4 -> 7" in shown.stdout


def test_full_size_surgery_takes_less_than_a_second(tmp_path: Path) -> None:
    """16 blocks of 64 experts, 7,500 operators; 0.3 s of processor time on an idle machine."""
    directory = write_sparse_molmoe(tmp_path / "full", released_config(FIXTURES))
    measure_emission(directory)
    start = time.process_time()
    made = derive(directory / "text.onnx", [8, 4] * 7, drop=[3, 15], verify=False)
    assert time.process_time() - start < 1
    model = onnx.load(directory / made["graph"], load_external_data=False)
    found = [math.prod(t.dims) for t in external_tensors(model.graph)]
    assert sum(found) == sum(math.prod(t.dims) for t in external_tensors(load_own(directory))) - 2 * 419_569_664
    assert (directory / made["graph"]).stat().st_size < 1_200_000
