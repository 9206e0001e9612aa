"""What can't run is refused with its reason, and the device-bound loop gives the same logits as the plain one."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper

from export.files.integrity import external_tensors
from export.run.bound import Bound
from export.run.family_file import read_family
from export.run.graph_facts import read_facts
from export.run.graphs import Graphs
from export.run.last_row import INPUT, OUTPUT, last_row_model
from export.run.providers import CPU, CUDA, TENSORRT, cuda_options, own_caches, provider_options, tensorrt_options
from export.run.session import RunError, check_provider, open_session
from export.run.static import StaticGraphs
from tests.support.graphs import fused, graph_file
from tests.support.models import random_ids, save_source
from tests.support.paths import FIXTURES
from tests.support.variants import write_variant
from transform.errors import VerificationError
from transform.forms import form_named

LIBRARIES = Path(onnxruntime.__file__).parent / "capi"


@pytest.fixture(scope="module")
def variant(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("session")
    save_source(base / "source")
    return write_variant(base / "source", base / "variant")


@pytest.mark.parametrize("kind", [TensorProto.FLOAT, TensorProto.FLOAT16])
def test_the_hand_made_graph_is_onnx_and_cuts_the_last_row(kind: int) -> None:
    model = onnx.load_from_string(last_row_model(kind))
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(last_row_model(kind), providers=[CPU])
    logits = np.random.default_rng(0).random((2, 5, 7)).astype(helper.tensor_dtype_to_np_dtype(kind))
    np.testing.assert_array_equal(session.run([OUTPUT], {INPUT: logits})[0], logits[:, -1])


def test_facts_equal_what_onnx_reads(variant: Path) -> None:
    for path in (variant / "text.onnx", write_variant(FIXTURES, variant.parent / "seeing") / "vision.onnx"):
        graph = onnx.load(path, load_external_data=False).graph
        facts = read_facts(path)
        theirs = {}
        for tensor in external_tensors(graph):
            entry = {item.key: item.value for item in tensor.external_data}
            theirs[tensor.name] = (entry["location"], int(entry["offset"]), int(entry["length"]))
        assert facts.ranges(path.name) == theirs
        assert {node.op_type for node in graph.node} == facts.operators
        assert not facts.bfloat16 and not facts.separate_gate


def test_bound_and_plain_decoding_give_the_same_logits(variant: Path, tmp_path: Path) -> None:
    save_source(tmp_path / "source", torch.bfloat16, num_key_value_heads=2)
    for directory in (variant, write_variant(tmp_path / "source", tmp_path / "narrow")):
        graphs = Graphs(directory, threads=1)
        ids = random_ids(1, 11)
        logits, cache = graphs.step(ids, np.ones_like(ids), graphs.empty_cache(1))
        bound = Bound(graphs)
        ours = bound.prefill(ids)
        for total in range(12, 28):
            np.testing.assert_array_equal(ours, logits[0, -1])
            token = int(ours.argmax())
            logits, cache = graphs.step(np.array([[token]]), np.ones((1, total), np.int64), cache)
            ours = bound.decode(token)
        assert bound.length == 27


def test_bound_decoding_of_a_picture(tmp_path: Path) -> None:
    graphs = Graphs(write_variant(FIXTURES, tmp_path / "v"), threads=1)
    patch = json.loads((tmp_path / "v" / "io.json").read_text())["special_ids"]["image_patch"]
    random = np.random.default_rng(1)
    picture = (random.random((2, 576, 588), np.float32), np.ones((2, 576), np.float32), np.arange(0, 288, 3))
    ids = np.array([[1, *[patch] * 96, 5, 6, 7]])
    features = graphs.image_features(*picture)
    logits, cache = graphs.step(graphs.embed(ids, features), np.ones_like(ids), graphs.empty_cache(1))
    bound = Bound(graphs)
    bound.see(*picture)
    np.testing.assert_array_equal(bound.prefill(ids), logits[0, -1])
    blind = Bound(graphs)
    assert np.abs(blind.prefill(ids) - logits[0, -1]).max() > 1e-3  # the picture matters
    # a patch token that the model itself makes has no feature
    logits, _ = graphs.step(np.array([[patch]]), np.ones((1, 101), np.int64), cache)
    np.testing.assert_array_equal(bound.decode(patch), logits[0, -1])


def test_float16_graphs_are_fed_float16(variant: Path, tmp_path: Path) -> None:
    """A decoder whose cache, embeddings and logits are float16, as the cuda form has them."""
    half = TensorProto.FLOAT16
    value = helper.make_tensor_value_info
    cache, present = ["b", 2, "past", 4], ["b", 2, "total", 4]
    nodes = [
        helper.make_node("Cast", ["input_ids"], ["wide"], to=half),
        helper.make_node("Unsqueeze", ["wide", "axes"], ["key"]),
        helper.make_node("Tile", ["key", "heads"], ["new"]),
        helper.make_node("Concat", ["past_key_values.0.key", "new"], ["present.0.key"], axis=2),
        helper.make_node("ReduceSum", ["present.0.key", "all"], ["sum"], keepdims=1),
        helper.make_node("Squeeze", ["sum", "first"], ["flat"]),
        helper.make_node("Mul", ["flat", "row"], ["logits"]),
    ]
    constants = [
        helper.make_tensor("axes", TensorProto.INT64, [2], [1, 3]),
        helper.make_tensor("heads", TensorProto.INT64, [4], [1, 2, 1, 4]),
        helper.make_tensor("all", TensorProto.INT64, [2], [1, 2]),
        helper.make_tensor("first", TensorProto.INT64, [1], [1]),
        helper.make_tensor("row", half, [4], [1.0, 3.0, 2.0, -1.0]),
    ]
    graph = helper.make_graph(
        nodes, "text",
        [value("input_ids", TensorProto.INT64, ["b", "s"]), value("attention_mask", TensorProto.INT64, ["b", "t"]),
         value("past_key_values.0.key", half, cache)],
        [value("logits", half, ["b", "s", 4]), value("present.0.key", half, present)],
        constants,
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    (tmp_path / "text.onnx").write_bytes(model.SerializeToString())
    (tmp_path / "io.json").write_text((variant / "io.json").read_text())
    graphs = Graphs(tmp_path)
    assert graphs.empty_cache(3)["past_key_values.0.key"].dtype == np.float16
    assert Graphs(variant).empty_cache(1)["past_key_values.0.key"].dtype == np.float32
    bound = Bound(graphs)
    row = bound.prefill(np.array([[1, 2]]))
    assert row.dtype == np.float16
    assert row.tolist() == [6.0, 18.0, 12.0, -6.0]
    assert bound.decode(3).tolist() == [12.0, 36.0, 24.0, -12.0]  # the cache was kept


def test_provider_names_are_those_of_the_libraries() -> None:
    """A misspelt option is an error only where the provider loads, so the names are looked for in its library."""
    for options, library in (
        (cuda_options(True), "libonnxruntime_providers_cuda.so"),
        (tensorrt_options(form_named("cuda"), True), "libonnxruntime_providers_tensorrt.so"),
    ):
        if not (LIBRARIES / library).is_file():
            pytest.skip(f"this onnxruntime has no {library}")
        text = (LIBRARIES / library).read_bytes()
        words = [*options, *(v for v in options.values() if len(v) > 3 and v.isalpha())]
        assert [word for word in words if b"\0" + word.encode() + b"\0" not in text] == []


def test_options_by_form_and_shapes(variant: Path) -> None:
    made = provider_options(form_named("cpu"), static=False)
    assert list(made) == ["cpu", "cuda", "tensorrt"]
    assert [name for name, _ in made["tensorrt"]] == [TENSORRT, CUDA, CPU]
    assert "enable_cuda_graph" not in made["cuda"][0][1]
    assert provider_options(form_named("cpu"), static=True)["cuda"][0][1]["enable_cuda_graph"] == "1"
    assert made["tensorrt"][0][1]["trt_fp16_enable"] == "0"
    assert provider_options(form_named("cuda"), static=False)["tensorrt"][0][1]["trt_fp16_enable"] == "1"
    assert list(provider_options(form_named("int4"), static=False)) == ["cpu"]
    # the decoder's shapes are named, whatever its form
    assert json.loads((variant / "io.json").read_text())["providers"] == made


def test_engine_caches_are_one_variants_own(variant: Path) -> None:
    options = tensorrt_options(form_named("cpu"), False)
    ours, theirs = own_caches(options, "a"), own_caches(options, "b")
    assert ours["trt_engine_cache_path"] != theirs["trt_engine_cache_path"]
    assert ours["trt_timing_cache_path"] == theirs["trt_timing_cache_path"] == options["trt_timing_cache_path"]
    paths = [Graphs(d, "tensorrt").providers[0][1]["trt_engine_cache_path"] for d in (variant, variant)]
    assert paths[0] == paths[1]
    assert "/" not in paths[0]
    assert Graphs(variant).providers == [[CPU, {}]]


def test_the_fused_form_is_refused_on_the_cpu(tmp_path: Path) -> None:
    """Experts as three matrices, as earlier variants have them, and float16 ones; others' in float32 may run."""
    half = helper.make_tensor("w", TensorProto.FLOAT16, [2, 2], np.zeros(4, np.float16))
    node = helper.make_node("MoE", ["x", "x", "w", "", "w"], ["y"], domain="com.microsoft", k=1)
    for path in (
        fused(tmp_path / "three.onnx"),
        graph_file(tmp_path / "half.onnx", [node], TensorProto.FLOAT16, [half]),
    ):
        with pytest.raises(RunError, match=r"fused experts \(MoE\).*no right operator on the CPU.*--form cpu or int4"):
            open_session(path, {})
        check_provider(path, read_facts(path), CUDA)  # there it may run
    assert not read_facts(fused(tmp_path / "two.onnx", inputs=6)).device_only


def test_quantised_experts_are_refused_on_a_gpu(tmp_path: Path) -> None:
    path = fused(tmp_path / "text.onnx", "QMoE")
    with pytest.raises(RunError, match=r"quantised experts \(QMoE\).*--provider cpu"):
        check_provider(path, read_facts(path), CUDA)


def test_bfloat16_products_are_refused_on_the_cpu(tmp_path: Path) -> None:
    weight = helper.make_tensor("w", TensorProto.BFLOAT16, [2, 2], [1.0, 0.0, 0.0, 1.0])
    path = graph_file(
        tmp_path / "text.onnx", [helper.make_node("Gemm", ["x", "w"], ["y"])], TensorProto.BFLOAT16, [weight]
    )
    with pytest.raises(RunError, match=r"Gemm in bfloat16.*no kernels for on the CPU.*--form cpu"):
        open_session(path, {})
    with pytest.raises(Exception, match="NOT_IMPLEMENTED"):  # what onnxruntime itself says, after loading
        onnxruntime.InferenceSession(str(path), providers=[CPU])
    wide = [
        helper.make_node("Cast", ["w"], ["wide"], to=TensorProto.FLOAT),
        helper.make_node("Gemm", ["x", "wide"], ["y"]),
    ]
    session = open_session(graph_file(tmp_path / "cast.onnx", wide, TensorProto.FLOAT, [weight]), {})
    x = np.array([[1, 2], [3, 4]], np.float32)
    np.testing.assert_array_equal(session.run(None, {"x": x})[0], x)


@pytest.mark.parametrize("domain", ["", "com.microsoft"])
def test_an_operator_that_is_lacking_is_named(domain: str, tmp_path: Path) -> None:
    node = helper.make_node("FutureOp", ["x"], ["y"], domain=domain)
    with pytest.raises(RunError, match=rf"FutureOp, which onnxruntime {onnxruntime.__version__}.*newer onnxruntime"):
        open_session(graph_file(tmp_path / "text.onnx", [node], TensorProto.FLOAT), {})
    # known, but without a kernel on this provider
    path = graph_file(tmp_path / "relu.onnx", [helper.make_node("Relu", ["x"], ["y"])], TensorProto.BFLOAT16)
    with pytest.raises(RunError, match=r"doesn't have for CPUExecutionProvider"):
        open_session(path, {})


@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_a_provider_that_falls_back_is_refused_before_the_graph_is_read(
    provider: str, variant: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    if Path("/dev/nvidia0").exists():
        pytest.skip("there is a GPU here, the provider may load")
    name = provider_options(form_named("cpu"), False)[provider][0][0]
    built_in = name in onnxruntime.get_available_providers()
    with pytest.raises(RunError, match=f"could not load {name}" if built_in else f"not {name}"):
        _ = Graphs(variant, provider).text
    printed = capfd.readouterr()
    assert printed.out == ""  # onnxruntime's own fallback prints there, into --json
    assert printed.err == ""  # nor its pages about what it can't load


def damage_missing(directory: Path) -> None:
    (directory / "model.safetensors").unlink()


def damage_truncated(directory: Path) -> None:
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def damage_moved(directory: Path) -> None:
    (directory / "io.json").unlink()


def damage_graph(directory: Path) -> None:
    path = directory / "text.onnx"
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (damage_missing, VerificationError, r"'model\.safetensors', which must be a file beside it.*knobcast layout"),
        (damage_truncated, VerificationError, r"must lie inside model\.safetensors \([\d,]+ bytes\).*truncated"),
        (damage_moved, RunError, r"io\.json beside them.*knobcast layout"),
        (damage_graph, VerificationError, r"text\.onnx: not an ONNX graph \(it ends early\)"),
    ],
)
def test_damaged_variants(
    damage: Callable[[Path], None], error: type[Exception], message: str, variant: Path, tmp_path: Path
) -> None:
    shutil.copytree(variant, tmp_path / "v")
    damage(tmp_path / "v")
    with pytest.raises(error, match=message):
        _ = Graphs(tmp_path / "v").text


def test_facts_need_no_onnx(variant: Path) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from export.run.graphs import Graphs; from export.run.bound import Bound\n"
        f"import numpy; Bound(Graphs(Path({str(variant)!r}))).prefill(numpy.array([[1, 2]]))\n"
        "sys.exit(bool({'torch', 'onnx', 'safetensors'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])


LIBRARY = {"tensorrt": [["TensorrtExecutionProvider", {"trt_extra_plugin_lib_paths": "evil.so"}]]}
ELSEWHERE = {"tensorrt": [["TensorrtExecutionProvider", {"trt_engine_cache_path": "/etc/cache"}]]}


@pytest.mark.parametrize("opened", ["cpu", "tensorrt"])
@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"cpu": "x"}, "providers"),
        ({"cpu": []}, "providers"),
        ({"cpu": [["CPUExecutionProvider", {"threads": 1}]]}, "providers"),
        ({"cpu": [["AnotherExecutionProvider", {}]]}, "providers"),
        (LIBRARY, "trt_extra_plugin_lib_paths"),
        (ELSEWHERE, "/etc/cache"),
    ],
)
def test_an_io_json_of_others_names_no_library_and_fails_in_words(
    variant: Path, tmp_path: Path, changed: dict[str, Any], words: str, opened: str
) -> None:
    """Whichever provider is opened: what is wrong stands among the entries of the others."""
    io = json.loads((variant / "io.json").read_text())
    assert len(io["providers"]) == 3
    (tmp_path / "io.json").write_text(json.dumps({**io, "providers": io["providers"] | changed}))
    with pytest.raises(VerificationError, match=words):
        _ = Graphs(tmp_path, provider=opened).providers


@pytest.mark.parametrize(
    "static",
    [
        {}, 5, {"cache": 32, "prefills": [], "providers": {}},
        {"cache": 1 << 40, "prefills": [{"tiling": None, "sequence": 1 << 40}], "providers": {}},
        {"cache": 32, "prefills": [{"tiling": ["..", "x"], "sequence": 8}], "providers": {}},
        {"cache": 32, "prefills": [{"tiling": None, "sequence": 8}]},
    ],
)  # fmt: skip
def test_a_damaged_record_of_static_graphs_fails_in_words(variant: Path, tmp_path: Path, static: Any) -> None:
    io = json.loads((variant / "io.json").read_text())
    (tmp_path / "io.json").write_text(json.dumps({**io, "static": static}))
    with pytest.raises(VerificationError, match="static is damaged"):
        StaticGraphs(tmp_path)


@pytest.mark.parametrize("members", [5, "x", [5], None, [{"name": "../x", "graph": "text-../x.onnx"}]])
def test_a_damaged_list_of_members_is_refused(members: Any, tmp_path: Path) -> None:
    record = {"schema": 1, "model": "m", "form": "cpu", "extras": [], "vision": None, "members": members}
    (tmp_path / "family.json").write_text(json.dumps(record))
    with pytest.raises(VerificationError, match=r"family\.json: members.*Export the family again"):
        read_family(tmp_path)
