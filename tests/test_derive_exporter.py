"""Derived from graphs that transformers' own exporter made, against PyTorch with the same knobs at run time."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from transformers import OlmoeConfig, OlmoeForCausalLM
from transformers.cache_utils import DynamicCache

from export.derive import derive, load_graph
from export.derive.surgery import operate
from transform.arrays import Array
from transform.molmoe.compatibility import CACHE
from transform.runtime import BlockMaskWrapper, moe_top_k

pytestmark = [pytest.mark.extra, pytest.mark.filterwarnings("ignore")]  # the exporter's own warnings
LAYERS = 4
SETTINGS: list[tuple[Any, list[int] | None]] = [
    (2, None),
    (None, [0]),
    (None, [3]),
    ([8, 2, 4, 1], None),
    ([3, 6], [0, 2]),
    (1, [1]),
    (7, [0, 1, 3]),
]


def tiny(**settings: Any) -> Any:
    """Four blocks of eight experts; four per token, as many as there are heads, and half as many as experts."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "vocab_size": 96, "hidden_size": 64, "intermediate_size": 32, "num_hidden_layers": LAYERS,
        "num_attention_heads": 4, "num_experts": 8, "num_experts_per_tok": 4, "max_position_embeddings": 256,
        "initializer_range": 0.1, "bos_token_id": None, "eos_token_id": 95, "pad_token_id": 1,
    }  # fmt: skip
    model = OlmoeForCausalLM(OlmoeConfig(**sizes | settings)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:  # equal ones would be stored once
                parameter.uniform_(0.5, 1.5)
    return model


def export(model: Any, directory: Path, experts: str, fusions: str | None, optimize: bool) -> Path:
    """`model.onnx` with cache inputs; the sample is padded, or the graph would have no mask."""
    pytest.importorskip("onnxscript")
    from transformers.exporters.exporter_onnx import OnnxConfig, OnnxExporter

    model.set_experts_implementation(experts)
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(input_ids=torch.randint(2, 90, (2, 5)), use_cache=True, **{CACHE: cache})
    mask = torch.ones(2, 8, dtype=torch.long)
    mask[1, :2] = 0
    sample = {"input_ids": torch.randint(2, 90, (2, 3)), "attention_mask": mask, CACHE: cache}
    config = OnnxConfig(dynamic=True, ort_fusions=fusions, optimize=optimize)
    OnnxExporter().export(model, {**sample, "use_cache": True}, config).save_pretrained(directory)
    return directory / "model.onnx"


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny()


@pytest.fixture(
    scope="module",
    params=[
        ("batched_mm", None, True), ("batched_mm", None, False), ("batched_mm", "cpu", True),
        ("grouped_mm", None, True), ("grouped_mm", None, False), ("grouped_mm", "cpu", True),
    ],
    ids=lambda p: f"{p[0]}, {'plain' if p[1] is None else 'fused'}{'' if p[2] else ', not optimised'}",
)  # fmt: skip
def graph(request: pytest.FixtureRequest, model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = export(model, tmp_path_factory.mktemp("exported"), *request.param)
    model.set_experts_implementation("eager")
    return made


def run(path: Path) -> list[Array]:
    """Logits of a left-padded prompt and of the two tokens after it."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    opened = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    ids, mask = batch()
    cache = {i.name: np.zeros((2, 4, 0, 16), np.float32) for i in opened.get_inputs() if CACHE in i.name}
    names = [o.name for o in opened.get_outputs()]
    found = []
    for start, stop in ((0, 9), (9, 11)):
        given = {"input_ids": ids[:, start:stop], "attention_mask": mask[:, :stop], **cache}
        values = dict(zip(names, opened.run(names, given), strict=True))
        found.append(values.pop("logits"))
        cache = {name.replace("output.", "input."): value for name, value in values.items()}
    return found


def batch() -> tuple[Array, Array]:
    ids = np.random.default_rng(0).integers(2, 90, (2, 11))
    mask = np.ones((2, 11), np.int64)
    mask[1, :3] = 0
    return ids, mask


def torch_logits(model: Any) -> Array:
    ids, mask = (torch.from_numpy(array) for array in batch())
    with torch.no_grad():
        return model(ids, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0)).logits.numpy()


def test_equals_pytorch_with_the_knobs_at_run_time(graph: Path, model: Any) -> None:
    valid = batch()[1] == 1
    seen: list[Array] = []
    before = graph.read_bytes()
    for k, drop in SETTINGS:
        made = derive(graph, k, drop=drop, force=True)  # other blocks of the same number have the same name
        assert made["top_k_before"] == [4] * len(made["blocks_kept"])
        assert made["verification"]["source_with_masked_ranks"]["difference"] < 1e-5
        with BlockMaskWrapper(model, [i not in (drop or []) for i in range(LAYERS)]), moe_top_k(model, k or 4):
            theirs = torch_logits(model)
        ours = np.concatenate(run(graph.with_name(made["graph"])), 1)
        np.testing.assert_allclose(ours[valid], theirs[valid], rtol=0, atol=1e-5)
        assert all(np.abs(ours[valid] - other).max() > 1e-2 for other in seen)
        seen.append(ours[valid])
        names = [value.name for value in load_graph(graph.with_name(made["graph"])).graph.input]
        assert names[2:] == [
            f"input.{CACHE}.layers.{i}.{part}" for i in range(len(made["blocks_kept"])) for part in ("keys", "values")
        ]
    assert graph.read_bytes() == before
    stored = graph.with_name("model.onnx.data")
    assert sorted(p.name for p in graph.parent.iterdir() if p.suffix == ".data") == [stored.name]


def test_fused_experts_have_k_as_an_attribute(model: Any, tmp_path: Path) -> None:
    """Only CUDA has these kernels: the graph is compared with its source operator by operator."""
    source = export(model, tmp_path, "batched_mm", "cuda", True)
    made = derive(source, [2, 6, 1], drop=[2])
    assert made["verification"]["run"].startswith("not run")
    graph = onnx.load(tmp_path / made["graph"], load_external_data=False).graph
    ks = [a.i for node in graph.node if node.op_type == "MoE" for a in node.attribute if a.name == "k"]
    assert ks == [2, 6, 1]
    before = [node.op_type for node in load_graph(source).graph.node]
    after = [node.op_type for node in graph.node]
    assert {kind: after.count(kind) for kind in ("MoE", "MultiHeadAttention", "RotaryEmbedding")} == {
        kind: before.count(kind) * 3 // 4 for kind in ("MoE", "MultiHeadAttention", "RotaryEmbedding")
    }


def test_one_block_at_full_width(tmp_path: Path) -> None:
    """As many experts as the released model has."""
    wide = tiny(hidden_size=256, num_experts=64, num_experts_per_tok=8, num_hidden_layers=2, intermediate_size=64)
    source = export(wide, tmp_path, "grouped_mm", None, True)
    assert operate(load_graph(source), 3, drop=[0]).top_k == (3,)
