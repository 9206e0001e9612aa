"""Routers of every kind against transformers' own modules: weights, experts, and what fused operators are told."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from export.graph.builder import FLOAT, INT64, Graph
from export.graph.router import log_weights, route
from export.run.session import open_session
from export.run.session_options import SESSION_OPTIONS
from tests.support.decoders import DECODERS, DENSE, EXPERTS, SIZES
from tests.support.safetensors_file import write_raw
from transform.architectures import architecture_named
from transform.architectures.graph_facts import DecoderGraph, decoder_graph
from transform.arrays import Array
from transform.checkpoint import Tensor
from transform.forms import REFERENCE
from transform.runtime import find_routers

TOKENS = 64


def model_of(name: str) -> tuple[Any, DecoderGraph, int]:
    """(a model, its facts, the block whose router is looked at)."""
    kind_name, own = DECODERS[name]
    kind = getattr(transformers, kind_name)
    config = kind.config_class(**(SIZES | dict(own) | {"num_hidden_layers": 2, "mlp_only_layers": []}))
    torch.manual_seed(3)
    family, raw = architecture_named(name), config.to_dict()
    return kind(config).eval(), decoder_graph(family.graph, raw, family.settings(raw)), 0


def stored(path: Path, values: Array) -> Tensor:
    data = values.astype(np.float32).tobytes()
    write_raw(path, {"c": {"dtype": "F32", "shape": list(values.shape), "data_offsets": [0, len(data)]}}, data)
    start = path.stat().st_size - len(data)
    return Tensor("c", "F32", values.shape, path, start, len(data), "F32")


@pytest.mark.parametrize("k", [1, 3, 6])
@pytest.mark.parametrize("name", [name for name in DECODERS if name not in DENSE])
def test_routers_choose_and_weigh_as_transformers(name: str, k: int, tmp_path: Path) -> None:
    model, facts, _ = model_of(name)
    router, _ = find_routers(model)[0]
    router.top_k = k
    learned = dict(router.named_parameters()) | dict(router.named_buffers())
    correction = next((value for key, value in learned.items() if key.endswith("correction_bias")), None)
    with torch.no_grad():
        for value in learned.values():
            value.copy_(0.3 * torch.randn(value.shape, generator=torch.Generator().manual_seed(1)))
        x = torch.randn(TOKENS, SIZES["hidden_size"], generator=torch.Generator().manual_seed(2))
        logits, weights, chosen = router(x)
    g = Graph("router", REFERENCE)
    given = g.input("logits", FLOAT, ["n", EXPERTS])
    bias = None if correction is None else stored(tmp_path / "bias.safetensors", correction.numpy().reshape(-1))
    ours = route(g, facts.routing, given, k, EXPERTS, bias)
    for label, value, kind in zip(("weights", "chosen"), ours, (FLOAT, INT64), strict=True):
        g.output(label, value, kind, ["n", k])
    logs, total = log_weights(g, given, *ours)
    g.output("logs", logs, FLOAT, ["n", EXPERTS])
    g.output("total", total, FLOAT, ["n", 1])
    g.write(tmp_path / "router.onnx")
    found = open_session(tmp_path / "router.onnx", SESSION_OPTIONS, threads=1).run(None, {"logits": logits.numpy()})

    dense = np.zeros((TOKENS, EXPERTS), np.float32)
    np.put_along_axis(dense, chosen.numpy(), weights.numpy(), axis=1)
    own = np.zeros_like(dense)
    np.put_along_axis(own, found[1], found[0], axis=1)
    np.testing.assert_allclose(own, dense, rtol=0, atol=1e-6)
    shares = np.exp(found[2] - found[2].max(axis=1, keepdims=True))
    np.testing.assert_allclose(shares / shares.sum(axis=1, keepdims=True) * found[3], dense, rtol=0, atol=1e-6)
