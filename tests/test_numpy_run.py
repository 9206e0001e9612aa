"""The numpy session against onnxruntime, and where that has no kernel, against transformers' own classes."""

import json
import tracemalloc
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper
from transformers import OlmoeConfig, OlmoeForCausalLM
from transformers.models.olmoe.modeling_olmoe import OlmoeSparseMoeBlock

from export.graph.emit import emit_graphs
from export.numpy_run import NumpySession
from tests.support.graphs import session, step
from tests.support.paths import FIXTURES
from tests.support.safetensors_file import write_raw
from tests.support.variants import write_variant
from transform.arrays import Array
from transform.errors import VerificationError
from transform.forms import form_named
from transform.knobs import Knobs
from transform.plan import make_plan
from transform.read import read_checkpoint
from transform.write import write_checkpoint

CONTRIB = "com.microsoft"
SWIGLU = {"activation_type": "swiglu", "activation_alpha": 1.0, "activation_beta": 0.0}
E, I, H, N = 8, 64, 128, 7  # noqa: E741


def close(ours: Array, theirs: Array, tolerance: float = 1e-5) -> None:
    """Equal to a part of the largest value."""
    assert ours.dtype == theirs.dtype
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance * np.abs(theirs).max())


def save(nodes: Sequence[Any], feed: Mapping[str, Array], path: Path, outputs: Mapping[str, Any]) -> Path:
    """A graph of a few nodes whose every operand is an input, so that nothing is folded or repacked."""
    given = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape) for n, a in feed.items()
    ]
    wanted = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(np.dtype(t)), None) for n, t in outputs.items()
    ]
    graph = helper.make_graph(nodes, "g", given, wanted)
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid(CONTRIB, 1)]
    path.write_bytes(helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString())
    return path


@pytest.fixture
def ours(tmp_path: Path) -> Callable[..., Array]:
    """One node's output `y` by numpy."""

    def run(node: Any, feed: Mapping[str, Array], dtype: Any = np.float32) -> Array:
        return NumpySession(save([node], feed, tmp_path / "g.onnx", {"y": dtype})).run(None, feed)[0]

    return run


@pytest.fixture
def both(tmp_path: Path) -> Callable[..., None]:
    """Compare all outputs of a node in both runtimes."""

    def run(node: Any, feed: Mapping[str, Array], outputs: Sequence[str] = ("y",)) -> None:
        path = save([node], feed, tmp_path / "g.onnx", dict.fromkeys(outputs, np.float32))
        theirs = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, dict(feed))
        for mine, reference in zip(NumpySession(path).run(None, feed), theirs, strict=True):
            close(mine, reference)

    return run


@pytest.fixture
def draw() -> Callable[..., Array]:
    """Normal numbers of a shape."""
    generator = np.random.default_rng(7)
    return lambda *shape: generator.standard_normal(shape).astype(np.float32)


# Whole graphs


@pytest.fixture(scope="module")
def variants(olmoe: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("numpy")
    return {
        "olmoe": write_variant(olmoe, root / "olmoe", keep=[0, 2, 5], k=3),
        "olmoe-bfloat16": write_variant(olmoe, root / "olmoe-bfloat16", keep=[0, 1], dtype="bfloat16"),
        "molmoe": write_variant(FIXTURES, root / "molmoe"),
    }


def padded_steps(text: Any, vocab: int) -> Iterator[Array]:
    """Logits and cache of a left-padded batch: a prompt, then a token, then two."""
    generator = np.random.default_rng(1)
    first = text.get_inputs()[0]
    cache = {
        i.name: np.zeros((2, i.shape[1], 0, i.shape[3]), np.float32)
        for i in text.get_inputs()
        if i.name.startswith("past")
    }
    mask = np.ones((2, 12), np.int64)
    mask[1, :3] = 0
    for start, stop in ((0, 9), (9, 10), (10, 12)):
        if first.name == "input_ids":
            given = generator.integers(2, vocab, (2, stop - start))
        else:
            given = generator.standard_normal((2, stop - start, first.shape[2])).astype(np.float32)
        logits, cache = step(text, {first.name: given}, mask[:, :stop], cache)
        yield logits
    yield from cache.values()


@pytest.mark.parametrize("name", ["olmoe", "olmoe-bfloat16", "molmoe"])
def test_text_graphs_equal_onnxruntime(name: str, variants: dict[str, Path]) -> None:
    mine = padded_steps(NumpySession(variants[name] / "text.onnx"), 120)
    for one, other in zip(mine, padded_steps(session(variants[name], "text.onnx"), 120), strict=True):
        close(one, other)


def test_image_graphs_equal_onnxruntime(variants: dict[str, Path], draw: Callable[..., Array]) -> None:
    images, masks = draw(3, 576, 588), np.ones((3, 576), np.float32)
    images[2], masks[2], masks[1, 300:] = -1, -1, 0.5
    wanted = np.array([0, 143, 150, 200, 287], np.int64)
    feed = {"images": images, "image_masks": masks, "feature_index": wanted}
    features = NumpySession(variants["molmoe"] / "vision.onnx").run(None, feed)[0]
    close(features, session(variants["molmoe"], "vision.onnx").run(None, feed)[0])

    theirs = session(variants["molmoe"], "embedding.onnx")
    patch = json.loads((variants["molmoe"] / "io.json").read_text())["special_ids"]["image_patch"]
    ids = np.array([[3, patch, patch, patch, -1], [patch, patch, 5, patch, 7]])
    feed = {"input_ids": ids, "image_features": features}
    close(NumpySession(variants["molmoe"] / "embedding.onnx").run(None, feed)[0], theirs.run(None, feed)[0])


@pytest.mark.parametrize(("variant", "graph"), [("olmoe", "text"), ("molmoe", "vision"), ("molmoe", "embedding")])
def test_a_graph_describes_itself_as_onnxruntime_does(variant: str, graph: str, variants: dict[str, Path]) -> None:
    mine = NumpySession(variants[variant] / f"{graph}.onnx")
    theirs = session(variants[variant], f"{graph}.onnx")
    for one, other in ((mine.get_inputs(), theirs.get_inputs()), (mine.get_outputs(), theirs.get_outputs())):
        assert [(v.name, v.shape, v.type) for v in one] == [(v.name, v.shape, v.type) for v in other]
    assert mine.get_providers() == ["numpy"]


@pytest.mark.parametrize(("widen", "tolerance"), [(False, 4e-3), (True, 1e-5)])
@pytest.mark.parametrize("k", [1, 3])
def test_the_cuda_form_equals_transformers(k: int, widen: bool, tolerance: float, olmoe: Path, tmp_path: Path) -> None:
    """float16 weights on both sides; theirs computes in float32, and so does a widened session."""
    plan = make_plan(read_checkpoint(olmoe), Knobs(k=k, keep=(0, 1, 4), form="cuda"))
    write_checkpoint(plan.target, tmp_path)
    emit_graphs(read_checkpoint(tmp_path), tmp_path, None, form_named("cuda"))
    text = NumpySession(tmp_path / "text.onnx", widen)
    dtype = np.dtype(np.float32 if widen else np.float16)
    assert {i.type for i in text.get_inputs()} == {"tensor(int64)", "tensor(float)" if widen else "tensor(float16)"}
    model = OlmoeForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    ids = np.random.default_rng(2).integers(2, 120, (1, 12))
    cache = {i.name: np.zeros((1, 4, 0, 16), dtype) for i in text.get_inputs() if i.name.startswith("past")}
    with torch.no_grad():
        whole = model(torch.from_numpy(ids)).logits.numpy()
    for start, stop in ((0, 9), (9, 12)):
        logits, cache = step(text, {"input_ids": ids[:, start:stop]}, np.ones((1, stop), np.int64), cache)
        close(logits, whole[:, start:stop], tolerance)
        assert {value.dtype for value in cache.values()} == {dtype}


# Experts


def block(k: int, normalize: int) -> tuple[Any, dict[str, Array], Array]:
    """transformers' block, its weights as FC3 inputs, and its output on N tokens."""
    torch.manual_seed(k)
    config = OlmoeConfig(
        hidden_size=H, intermediate_size=I, num_experts=E, num_experts_per_tok=k, norm_topk_prob=bool(normalize)
    )
    module = OlmoeSparseMoeBlock(config)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0, 0.1)
        x = torch.randn(1, N, H)
        expected = module(x)[0].numpy()
        logits = (x[0] @ module.gate.weight.T).numpy()
    gate, up = module.experts.gate_up_proj.detach().chunk(2, dim=1)
    down = module.experts.down_proj.detach().numpy()
    feed = {"x": x[0].numpy(), "logits": logits, "fc1": gate.numpy(), "fc2": down, "fc3": up.numpy()}
    return module, feed, expected


def moe(k: int, normalize: int, third: bool = True, **attributes: Any) -> Any:
    inputs = ["x", "logits", "fc1", "", "fc2", *(["", "fc3"] if third else [])]
    return helper.make_node(
        "MoE", inputs, ["y"], domain=CONTRIB, k=k, normalize_routing_weights=normalize, **attributes
    )


def interleaved(feed: Mapping[str, Array]) -> dict[str, Array]:
    """Gate and up in alternating rows."""
    rows = np.stack((feed["fc1"], feed["fc3"]), axis=2).reshape(E, 2 * I, H)
    return {"x": feed["x"], "logits": feed["logits"], "fc1": rows, "fc2": feed["fc2"]}


@pytest.mark.parametrize("normalize", [0, 1])
@pytest.mark.parametrize("k", [1, 2, 4, 8])
def test_fused_experts_equal_transformers(k: int, normalize: int, ours: Callable[..., Array]) -> None:
    _, feed, expected = block(k, normalize)
    close(ours(moe(k, normalize, activation_type="silu"), feed), expected)
    fused = interleaved(feed)
    close(ours(moe(k, normalize, False, swiglu_fusion=1, **SWIGLU), fused), expected)
    fused["fc1"] = np.concatenate((feed["fc1"], feed["fc3"]), axis=1)
    close(ours(moe(k, normalize, False, swiglu_fusion=2, **SWIGLU), fused), expected)


@pytest.mark.parametrize("normalize", [0, 1])
@pytest.mark.parametrize("k", [1, 3, 8])
def test_fused_experts_equal_onnxruntime(k: int, normalize: int, both: Callable[..., None]) -> None:
    feed = interleaved(block(k, normalize)[1])
    both(moe(k, normalize, False, swiglu_fusion=1, **SWIGLU | {"activation_alpha": 1.7, "activation_beta": 1.0}), feed)


def test_float16_experts_round_but_add_in_float32(ours: Callable[..., Array]) -> None:
    _, feed, _ = block(4, 0)
    half = {name: value.astype(np.float16) for name, value in feed.items()}
    result = ours(moe(4, 0, activation_type="silu"), half, np.float16)
    exact = ours(moe(4, 0, activation_type="silu"), {name: value.astype(np.float32) for name, value in half.items()})
    assert result.dtype == np.float16
    close(result.astype(np.float32), exact, 2e-3)


def test_of_equal_logits_the_lower_expert_is_chosen(ours: Callable[..., Array]) -> None:
    _, feed, _ = block(2, 0)
    feed["logits"][:] = 0
    tied = ours(moe(2, 0, activation_type="silu"), feed)
    feed["fc2"] = feed["fc2"].copy()
    feed["fc2"][2:] = np.nan  # whoever chose them would show it
    np.testing.assert_array_equal(ours(moe(2, 0, activation_type="silu"), feed), tied)


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"activation_type": "relu"}, "silu or swiglu"),
        ({"activation_type": "swiglu", "swiglu_fusion": 1}, "activation_alpha"),
        (SWIGLU, "swiglu_fusion 1 or 2"),
    ],
)
def test_experts_of_other_forms_are_refused(
    attributes: dict[str, Any], message: str, ours: Callable[..., Array]
) -> None:
    with pytest.raises(VerificationError, match=message):
        ours(moe(2, 0, False, **attributes), interleaved(block(2, 0)[1]))


# Quantised


def codes(bits: int, size: int, *shape: int) -> tuple[Array, Array]:
    """Codes and scales for weights of a shape, the last axis in blocks of `size`."""
    generator = np.random.default_rng(bits)
    *outer, width = shape
    scales = generator.uniform(0.01, 0.02, (*outer, width // size)) / (1 if bits == 4 else 16)
    return generator.integers(0, 256, (*outer, width * bits // 8), dtype=np.uint8), scales.astype(np.float32)


@pytest.mark.parametrize("router", [None, 0, 1])
@pytest.mark.parametrize(("bits", "size"), [(4, 32), (4, 64), (8, 32)])
def test_quantised_experts_equal_onnxruntime(
    bits: int, size: int, router: int | None, both: Callable[..., None], draw: Callable[..., Array]
) -> None:
    feed = {"x": draw(N, H), "logits": draw(N, E)}
    feed["fc1"], feed["s1"] = codes(bits, size, E, 2 * I, H)
    feed["fc2"], feed["s2"] = codes(bits, size, E, H, I)
    names = ["x", "logits", "fc1", "s1", "", "fc2", "s2"]
    if router is not None:
        feed["w"] = np.abs(draw(N, E))
        names += [""] * 7 + ["w"]
    both(
        helper.make_node(
            "QMoE",
            names,
            ["y"],
            domain=CONTRIB,
            k=3,
            expert_weight_bits=bits,
            block_size=size,
            swiglu_fusion=1,
            normalize_routing_weights=router or 0,
            **SWIGLU,
        ),
        feed,
    )


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("width", "size"), [(128, 32), (160, 64)])  # the second ends in half a block
def test_quantised_products_equal_onnxruntime(
    width: int, size: int, bits: int, both: Callable[..., None], draw: Callable[..., Array]
) -> None:
    blocks = -(-width // size)
    flat, scales = codes(bits, size, 96, blocks * size)
    feed = {"x": draw(2, 5, width), "b": flat.reshape(96, blocks, -1), "s": scales}
    sizes = {"K": width, "N": 96, "bits": bits, "block_size": size}
    both(helper.make_node("MatMulNBits", ["x", "b", "s"], ["y"], domain=CONTRIB, accuracy_level=1, **sizes), feed)


def test_quantised_products_with_a_bias_equal_onnxruntime(
    both: Callable[..., None], draw: Callable[..., Array]
) -> None:
    flat, scales = codes(8, 32, 96, 64)
    feed = {"x": draw(7, 64), "b": flat.reshape(96, 2, -1), "s": scales, "bias": draw(96)}
    names = ["x", "b", "s", "", "", "bias"]
    sizes = {"K": 64, "N": 96, "bits": 8, "block_size": 32, "accuracy_level": 1}
    both(helper.make_node("MatMulNBits", names, ["y"], domain=CONTRIB, **sizes), feed)


@pytest.mark.parametrize(("bits", "size"), [(4, 32), (4, 64), (8, 16)])
def test_quantised_rows_equal_onnxruntime(bits: int, size: int, both: Callable[..., None]) -> None:
    flat, scales = codes(bits, size, 50, 128)
    feed = {"t": flat, "i": np.array([[0, 49, 7], [7, 1, 48]]), "s": scales}
    sizes = {"bits": bits, "block_size": size, "gather_axis": 0, "quantize_axis": 1}
    both(helper.make_node("GatherBlockQuantized", ["t", "i", "s"], ["y"], domain=CONTRIB, **sizes), feed)


# Norms, 16 bits, types


def test_norms_equal_onnxruntime(both: Callable[..., None], draw: Callable[..., Array]) -> None:
    feed = {"x": draw(5, 48), "w": draw(48)}
    names = {"axis": -1, "epsilon": 0.1, "stash_type": 1}
    both(helper.make_node("SimplifiedLayerNormalization", ["x", "w"], ["y"], **names), feed)
    skip = ["x", "s", "w"], ["y", "", "", "sum"]
    node = helper.make_node("SkipSimplifiedLayerNormalization", *skip, domain=CONTRIB, epsilon=0.1)
    both(node, {"x": feed["x"], "s": draw(5, 48), "w": feed["w"]}, ("y", "sum"))


def test_products_and_quick_gelu_equal_onnxruntime(both: Callable[..., None], draw: Callable[..., Array]) -> None:
    feed = {"a": draw(2, 3, 5, 8), "b": draw(2, 3, 6, 8)}
    both(helper.make_node("FusedMatMul", ["a", "b"], ["y"], domain=CONTRIB, alpha=0.3, transB=1), feed)
    both(helper.make_node("QuickGelu", ["a"], ["y"], domain=CONTRIB, alpha=1.5), {"a": feed["a"]})


HALF_NODES = {
    "Gemm": (["x", "w"], {"transB": 1}),
    "MatMul": (["x", "v"], {}),
    "ReduceSum": (["v", "axes"], {}),
    "ReduceMean": (["v", "axes"], {}),
    "Softmax": (["few"], {"axis": -1}),
    "Sigmoid": (["x"], {}),
    "LayerNormalization": (["x", "scale", "scale"], {"axis": -1}),
    "SimplifiedLayerNormalization": (["x", "scale"], {"axis": -1}),
}


@pytest.mark.parametrize("kind", HALF_NODES)
def test_float16_is_rounded_once(kind: str, ours: Callable[..., Array]) -> None:
    """Sums over 4096 values, whose running total in float16 would stop growing at 2048 times one of them."""
    generator = np.random.default_rng(0)
    names, attributes = HALF_NODES[kind]
    drawn = {
        "x": generator.uniform(0.5, 1, (3, 4096)),
        "w": generator.uniform(0, 0.1, (1100, 4096)),  # more than is widened at once
        "v": generator.uniform(0, 0.1, (4096, 5)),
        "few": generator.uniform(-4, 4, (50, 6)),
        "scale": np.ones(4096),
    }
    feed = {name: value.astype(np.float16) for name, value in drawn.items() if name in names}
    axes = {"axes": np.array([0])} if "axes" in names else {}
    node = helper.make_node(kind, names, ["y"], **attributes)
    half = ours(node, feed | axes, np.float16)
    exact = ours(node, {name: value.astype(np.float32) for name, value in feed.items()} | axes)
    np.testing.assert_allclose(half.astype(np.float32), exact, rtol=1.01 * 2**-11, atol=2**-14)


def test_types_that_onnxruntime_refuses_are_refused(ours: Callable[..., Array], draw: Callable[..., Array]) -> None:
    feed = {"a": draw(3), "b": draw(3).astype(np.float16)}
    with pytest.raises(VerificationError, match=r"Add .*one type.*float16, float32"):
        ours(helper.make_node("Add", ["a", "b"], ["y"]), feed)
    with pytest.raises(VerificationError, match=r"y must be tensor\(float16\).*it is tensor\(float\)"):
        ours(helper.make_node("Neg", ["a"], ["y"]), {"a": feed["a"]}, np.float16)


def test_outputs_without_a_name_are_dropped(tmp_path: Path, draw: Callable[..., Array]) -> None:
    """The same empty name marks an operand left out: no value may ever bear it."""
    names = ["x", "x", "w"], ["z", "", "", "sum"]
    nodes = [
        helper.make_node("SkipSimplifiedLayerNormalization", *names, domain=CONTRIB),
        helper.make_node("Clip", ["z", "", "top"], ["y"]),
    ]
    feed = {"x": draw(3, 8), "w": draw(8), "top": np.array(0.5, np.float32)}
    result = NumpySession(save(nodes, feed, tmp_path / "g.onnx", {"y": np.float32})).run(None, feed)[0]
    assert result.max() <= 0.5
    assert result.min() < -0.5


def test_values_are_dropped_after_their_last_use(tmp_path: Path) -> None:
    nodes = [helper.make_node("Neg", [f"v{at}"], [f"v{at + 1}"]) for at in range(20)]
    feed = {"v0": np.ones((1 << 20,), np.float32)}
    text = NumpySession(save(nodes, feed, tmp_path / "g.onnx", {"v20": np.float32}))
    tracemalloc.start()
    try:
        text.run(None, feed)
        assert tracemalloc.get_traced_memory()[1] < 4 * feed["v0"].nbytes
    finally:
        tracemalloc.stop()


def test_values_are_kept_for_branches(tmp_path: Path, draw: Callable[..., Array]) -> None:
    def branch(kind: str) -> Any:
        info = helper.make_tensor_value_info("r", TensorProto.FLOAT, None)
        return helper.make_graph([helper.make_node(kind, ["v"], ["r"])], "b", [], [info])

    nodes = [
        helper.make_node("Neg", ["a"], ["v"]),
        helper.make_node("Neg", ["v"], ["w"]),  # the last to read v, but for the branches
        helper.make_node("If", ["c"], ["i"], then_branch=branch("Neg"), else_branch=branch("Abs")),
        helper.make_node("Add", ["i", "w"], ["y"]),
    ]
    feed = {"a": draw(4), "c": np.array(True)}
    result = NumpySession(save(nodes, feed, tmp_path / "g.onnx", {"y": np.float32})).run(None, feed)[0]
    np.testing.assert_array_equal(result, 2 * feed["a"])


def test_overflow_gives_infinity_or_its_limit_without_a_warning(ours: Callable[..., Array]) -> None:
    feed = {"x": np.array([-200, 200], np.float32)}
    assert ours(helper.make_node("Exp", ["x"], ["y"]), feed)[1] == np.inf
    np.testing.assert_allclose(ours(helper.make_node("Sigmoid", ["x"], ["y"]), feed), [0, 1], rtol=0, atol=1e-30)


def test_wrong_feeds_are_refused(tmp_path: Path, draw: Callable[..., Array]) -> None:
    path = save([helper.make_node("Neg", ["a"], ["y"])], {"a": draw(3)}, tmp_path / "g.onnx", {"y": np.float32})
    text = NumpySession(path)
    wrong: dict[str, Array]
    for wrong in ({}, {"a": draw(3), "b": draw(3)}, {"a": draw(3).astype(np.float16)}, {"a": draw(3, 1)}):
        with pytest.raises(VerificationError):
            text.run(None, wrong)


def test_an_unknown_operator_is_refused(ours: Callable[..., Array], draw: Callable[..., Array]) -> None:
    with pytest.raises(VerificationError, match="FusedNonsense"):
        ours(helper.make_node("FusedNonsense", ["a"], ["y"], domain=CONTRIB), {"a": draw(2)})


# Weights in files


def with_external(
    path: Path, node: Any, feed: Mapping[str, Array], tensor: tuple[str, int, list[int], int, int]
) -> Path:
    """A graph one of whose operands lies in `w.safetensors`: (name, type, shape, offset, length)."""
    name, kind, shape, offset, length = tensor
    model = onnx.load(save([node], feed, path, {"y": np.float32}))
    proto = TensorProto(name=name, data_type=kind, dims=shape, data_location=TensorProto.EXTERNAL)
    for key, value in (("location", "w.safetensors"), ("offset", offset), ("length", length)):
        proto.external_data.add(key=key, value=str(value))
    model.graph.initializer.append(proto)
    path.write_bytes(model.SerializeToString())
    return path


def test_a_view_over_neighbours_is_their_stack(tmp_path: Path, draw: Callable[..., Array]) -> None:
    """Experts lying back to back in a file are one [E, I, H] operand, at an odd place too."""
    experts = [draw(I, H) for _ in range(3)]
    size = experts[0].nbytes
    header: dict[str, Any] = {"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}
    for e in range(3):
        header[f"e{e}"] = {"dtype": "F32", "shape": [I, H], "data_offsets": [1 + e * size, 1 + (e + 1) * size]}
    write_raw(tmp_path / "w.safetensors", header, b"x" + b"".join(e.tobytes() for e in experts))
    start = (tmp_path / "w.safetensors").stat().st_size - 3 * size
    node = helper.make_node("Identity", ["w"], ["y"])
    path = with_external(tmp_path / "g.onnx", node, {}, ("w", TensorProto.FLOAT, [3, I, H], start, 3 * size))
    result = NumpySession(path).run(None, {})[0]
    np.testing.assert_array_equal(result, np.stack(experts))


def test_weights_are_read_where_they_are_used(tmp_path: Path) -> None:
    """A table of 64 GB, most of it a hole."""
    rows, width = 1 << 22, 4096
    row = np.arange(width, dtype=np.float32)
    with (tmp_path / "w.safetensors").open("wb") as file:
        file.seek(7 * width * 4)
        file.write(row.tobytes())
        file.truncate(rows * width * 4)
    node = helper.make_node("Gather", ["w", "at"], ["y"], axis=0)
    tensor = ("w", int(TensorProto.FLOAT), [rows, width], 0, rows * width * 4)
    feed = {"at": np.array([7, rows - 1])}
    result = NumpySession(with_external(tmp_path / "g.onnx", node, feed, tensor)).run(None, feed)[0]
    np.testing.assert_array_equal(result, np.stack((row, np.zeros_like(row))))


@pytest.mark.parametrize(("offset", "length"), [(0, 12), (4, 16), (-4, 16)])
def test_weights_outside_their_file_are_refused(offset: int, length: int, tmp_path: Path) -> None:
    (tmp_path / "w.safetensors").write_bytes(bytes(16))
    node = helper.make_node("Identity", ["w"], ["y"])
    with pytest.raises(VerificationError, match="w: "):
        NumpySession(with_external(tmp_path / "g.onnx", node, {}, ("w", TensorProto.FLOAT, [4], offset, length)))


def test_files_that_are_missing_or_no_graphs_are_refused(tmp_path: Path) -> None:
    node = helper.make_node("Identity", ["w"], ["y"])
    with pytest.raises(VerificationError, match=r"w\.safetensors"):
        NumpySession(with_external(tmp_path / "g.onnx", node, {}, ("w", TensorProto.FLOAT, [4], 0, 16)))
    (tmp_path / "bad.onnx").write_bytes(b"no graph")
    with pytest.raises(VerificationError, match=r"bad\.onnx"):
        NumpySession(tmp_path / "bad.onnx")
