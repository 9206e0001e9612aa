"""Graphs in sessions: prefill, steps and a plain greedy loop, as any runtime would write them; small hand-made ones."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from onnx import TensorProto, helper

from export.numpy_run import NumpySession
from transform.arrays import Array


def session(directory: Path, name: str) -> Any:
    """A session with the options io.json asks for; numpy in float32 for the cuda form, which has no CPU kernel."""
    io = json.loads((directory / "io.json").read_text())
    if io["form"] == "cuda":
        return NumpySession(directory / name, widen=True)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    for key, value in io["vision_session_options" if name.startswith("vision") else "session_options"].items():
        options.add_session_config_entry(key, value)
    if io["form"] == "int8":  # kernels for repacked 8-bit weights round activations
        options.add_session_config_entry("session.disable_prepacking", "1")
    return onnxruntime.InferenceSession(str(directory / name), options, providers=["CPUExecutionProvider"])


def empty_cache(text: Any, batch: int) -> dict[str, Array]:
    """Zero cached tokens for every block."""
    return {
        i.name: np.zeros((batch, i.shape[1], 0, i.shape[3]), np.float32)
        for i in text.get_inputs()
        if i.name.startswith("past_key_values.")
    }


def step(
    text: Any, given: Mapping[str, Array], mask: Array, cache: Mapping[str, Array]
) -> tuple[Array, dict[str, Array]]:
    """One run of text.onnx -> (logits, the cache for the next one)."""
    names = [output.name for output in text.get_outputs()]
    results = dict(zip(names, text.run(names, {**given, "attention_mask": mask, **cache}), strict=True))
    logits = results.pop("logits")
    return logits, {name.replace("present.", "past_key_values."): value for name, value in results.items()}


def greedy(text: Any, embed: Any, prefill: Mapping[str, Array], mask: Array, count: int) -> tuple[Array, Array]:
    """Greedy ids [b, count] after a right-padded (or unpadded) prefill, and the prefill's logits."""
    batch = mask.shape[0]
    logits, cache = step(text, prefill, mask, empty_cache(text, batch))
    prefill_logits = logits
    last = mask.shape[1] - 1 - mask[:, ::-1].argmax(axis=1)  # the last valid token of every row
    chosen = logits[np.arange(batch), last].argmax(axis=-1)
    ids = [chosen]
    while len(ids) < count:
        mask = np.concatenate([mask, np.ones((batch, 1), np.int64)], axis=1)
        logits, cache = step(text, embed(chosen[:, None]), mask, cache)
        chosen = logits[:, -1].argmax(axis=-1)
        ids.append(chosen)
    return np.stack(ids, axis=1), prefill_logits


def graph_file(path: Path, nodes: Sequence[Any], kind: int, weights: Sequence[Any] = (), opset: int = 18) -> Path:
    """A graph x [2, 2] -> y [2, 2] of one type."""
    x, y = (helper.make_tensor_value_info(name, kind, [2, 2]) for name in "xy")
    graph = helper.make_graph(nodes, "g", [x], [y], weights)
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    path.write_bytes(helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString())
    return path


def fused(path: Path, kind: str = "MoE", inputs: int = 7) -> Path:
    """A graph with one fused operator on `x`."""
    node = helper.make_node(kind, ["x"] * inputs, ["y"], domain="com.microsoft", k=1)
    return graph_file(path, [node], TensorProto.FLOAT)
