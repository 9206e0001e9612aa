"""16-bit experts in one `Loop` per block: as many nodes for any number of experts, the results of a node per expert."""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file

from export.derive import derive
from export.derive.graph import branches
from export.files.integrity import check_graph_bounds
from export.graph import expert_loop
from export.graph.builder import FLOAT, Graph
from export.graph.decoder import text_graph
from export.graph.expert_loop import find_spans
from export.graph.moe import mixture
from tests.support.graphs import empty_cache, step
from tests.support.models import load_stored, random_ids, save_source, torch_logits
from tests.support.safetensors_file import write_raw
from tests.support.variants import write_variant
from transform.arrays import Array
from transform.experts import experts_of
from transform.forms import REFERENCE
from transform.read import read_checkpoint
from transform.strict_json import Record
from transform.top_k import set_top_k

EXPERTS, WIDTH = 6, 48  # of `save_source`
MATRIX = "experts."
Cut = Callable[[Sequence[str]], list[list[str]]]


def write_file(path: Path, names: Sequence[str], tensors: dict[str, torch.Tensor]) -> None:
    """A safetensors file whose tensors lie in the order of `names`."""
    kinds = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32"}
    table: Record = {}
    data = b""
    for name in names:
        tensor = tensors[name].contiguous()
        raw = tensor.view(torch.uint8).numpy().tobytes()
        offsets = [len(data), len(data) + len(raw)]
        table[name] = {"dtype": kinds[tensor.dtype], "shape": list(tensor.shape), "data_offsets": offsets}
        data += raw
    write_raw(path, table, data)


def rewrite(directory: Path, cut: Cut, changed: Callable[[dict[str, torch.Tensor]], None] = lambda _: None) -> Path:
    """The checkpoint's weights in other files, one per list of names, in that order."""
    tensors = load_file(directory / "model.safetensors")
    changed(tensors)
    (directory / "model.safetensors").unlink()
    parts = cut(sorted(tensors))
    weight_map: dict[str, str] = {}
    for at, names in enumerate(parts):
        file = f"model-{at + 1:05d}-of-{len(parts):05d}.safetensors"
        write_file(directory / file, names, tensors)
        weight_map |= dict.fromkeys(names, file)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return directory


def shuffled(names: Sequence[str]) -> list[list[str]]:
    matrices = [name for name in names if MATRIX in name]
    blocks = [[name for name in matrices if f"layers.{i}." in name] for i in range(3)]
    random = np.random.default_rng(0)
    mixed = [block[at] for block in blocks for at in random.permutation(len(block))]
    return [[name for name in names if MATRIX not in name] + mixed]


def straddled(names: Sequence[str]) -> list[list[str]]:
    """Block 1's third expert has a matrix in one file, two in the next; block 2 lies in three files."""
    begins = ("1.mlp.experts.2.gate", "2.mlp.experts.4.up", "2.mlp.experts.5.gate")
    at = [0, *(names.index(f"model.layers.{begin}_proj.weight") for begin in begins), len(names)]
    return [[*names[first:last]] for first, last in pairwise(at)]


CUTS: dict[str, tuple[Cut, list[int]]] = {  # and how many spans each block has
    "as saved": (lambda names: [[*names]], [1, 1, 1]),
    "shuffled": (shuffled, [1, 1, 1]),
    "projection by projection": (lambda names: [sorted(names, key=lambda n: (n.split(".")[-2], n))], [3, 3, 3]),
    "straddled": (straddled, [1, 2, 3]),
}


@pytest.fixture(scope="module", params=CUTS)
def cut(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint in bfloat16 whose experts lie in some way."""
    directory = save_source(tmp_path_factory.mktemp("cut") / "source", torch.bfloat16)
    order, spans = CUTS[request.param]
    checkpoint = read_checkpoint(rewrite(directory, order))
    found = [find_spans(experts_of(checkpoint, i)) for i in range(3)]
    assert [experts and len(experts.spans) for experts in found] == spans
    return directory


def all_nodes(nodes: Any) -> Iterator[Any]:
    for node in nodes:
        yield node
        for branch in branches(node):
            yield from all_nodes(branch.node)


def kinds(path: Path) -> Counter[str]:
    return Counter(node.op_type for node in all_nodes(onnx.load(path, load_external_data=False).graph.node))


def opened(path: Path) -> Any:
    """With onnxruntime's default options: nothing in io.json is needed for the results."""
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def block_results(directory: Path, k: int, rows: Sequence[int], block: int = 1) -> list[Array]:
    """The experts of one block on so many tokens."""
    checkpoint = set_top_k(read_checkpoint(directory), k)
    g = Graph("experts", REFERENCE)
    x = g.input("x", FLOAT, ["n", WIDTH])
    g.output("y", mixture(g, checkpoint, block, x), FLOAT, ["n", WIDTH])
    g.write(directory / "block.onnx")
    session, random = opened(directory / "block.onnx"), np.random.default_rng(1)
    return [session.run(None, {"x": random.standard_normal((n, WIDTH)).astype(np.float32)})[0] for n in rows]


def by_node(patch: pytest.MonkeyPatch) -> None:
    """No block's experts lie in so few pieces: a node per expert."""
    patch.setattr(expert_loop, "MOST_SPANS", 0)


@pytest.mark.parametrize("order", ["as saved", "straddled"])
def test_the_number_of_nodes_does_not_grow_with_the_experts(order: str, tmp_path: Path) -> None:
    found = []
    for experts in (12, 24):
        directory = save_source(tmp_path / str(experts), torch.bfloat16, num_experts=experts)
        rewrite(directory, CUTS[order][0])
        text_graph(read_checkpoint(directory), REFERENCE).write(directory / "text.onnx")
        found.append(kinds(directory / "text.onnx"))
    assert found[0] == found[1]
    assert found[0]["Loop"] == 3
    assert "If" not in found[0]


@pytest.mark.parametrize("k", [6, 3, 1])
def test_logits_equal_transformers(cut: Path, k: int) -> None:
    text_graph(set_top_k(read_checkpoint(cut), k), REFERENCE).write(cut / "text.onnx")
    assert check_graph_bounds(cut)["text.onnx"] > 10
    onnx.checker.check_model(str(cut / "text.onnx"), full_check=True)
    model = load_stored(cut)
    for layer in model.model.layers:
        layer.mlp.gate.top_k = k
    ids, text = random_ids(2, 11), opened(cut / "text.onnx")
    logits, cache = step(text, {"input_ids": ids[:, :10]}, np.ones((2, 10), np.int64), empty_cache(text, 2))
    more, _ = step(text, {"input_ids": ids[:, 10:]}, np.ones((2, 11), np.int64), cache)
    theirs = torch_logits(model, ids, np.ones_like(ids))
    np.testing.assert_allclose(np.concatenate([logits, more], axis=1), theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("k", [6, 3, 1])
@pytest.mark.parametrize("tile", [1 << 17, 300])
def test_no_expert_one_and_all_equal_nodes_of_their_own(
    cut: Path, k: int, tile: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing chooses experts where there are no tokens; matrices that are cut into tiles give the same."""
    monkeypatch.setattr(expert_loop, "TILE", tile)
    rows = (0, 1, 40)
    ours = block_results(cut, k, rows)
    assert kinds(cut / "block.onnx")["Loop"] == (1 if tile > 300 else 3)
    by_node(monkeypatch)
    theirs = block_results(cut, k, rows)
    assert kinds(cut / "block.onnx")["If"] == EXPERTS
    for n, mine, other in zip(rows, ours, theirs, strict=True):
        assert mine.shape == (n, WIDTH)
        np.testing.assert_allclose(mine, other, rtol=0, atol=1e-6)


def test_experts_of_several_types_have_nodes_of_their_own(tmp_path: Path) -> None:
    def widen(tensors: dict[str, torch.Tensor]) -> None:
        name = "model.layers.1.mlp.experts.3.up_proj.weight"
        tensors[name] = tensors[name].to(torch.float16)

    directory = rewrite(save_source(tmp_path / "source", torch.bfloat16), CUTS["as saved"][0], widen)
    checkpoint = read_checkpoint(directory)
    assert [find_spans(experts_of(checkpoint, i)) is None for i in range(3)] == [False, True, False]
    text_graph(checkpoint, REFERENCE).write(directory / "text.onnx")
    found = kinds(directory / "text.onnx")
    assert (found["Loop"], found["If"]) == (2, EXPERTS)
    ids, text = random_ids(1, 9), opened(directory / "text.onnx")
    logits, _ = step(text, {"input_ids": ids}, np.ones_like(ids), empty_cache(text, 1))
    np.testing.assert_allclose(logits, torch_logits(load_stored(directory), ids, np.ones_like(ids)), rtol=0, atol=1e-5)


@pytest.mark.parametrize("earlier", [False, True], ids=["a loop", "a node per expert"])
@pytest.mark.parametrize(("k", "drop"), [(1, [1]), ([2, 6], [0]), (None, [2]), (2, [])])
def test_derive(k: Any, drop: list[int], earlier: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of these graphs and of those of earlier variants; compared with PyTorch and with masked ranks by `derive`."""
    source = rewrite(save_source(tmp_path / "source", torch.bfloat16), straddled)
    if earlier:
        by_node(monkeypatch)
    directory = write_variant(source, tmp_path / "variant")
    assert kinds(directory / "text.onnx")["If" if earlier else "Loop"]
    made = derive(directory / "text.onnx", k, drop=drop or None)
    assert made["top_k"] == (k if isinstance(k, list) else [k or 3] * (3 - len(drop)))
    assert isinstance(made["verification"]["torch"], dict)


def test_equal_input_gives_equal_bytes(cut: Path) -> None:
    first, second = (text_graph(read_checkpoint(cut), REFERENCE).serialised() for _ in range(2))
    assert first == second
