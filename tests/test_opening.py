"""What makes graphs open soon: no plan of reused buffers, and no node per expert that one could do for all."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from export.graph import expert_loop
from export.graph.decoder import text_graph
from export.graph.static import plan_static
from export.run.graphs import Graphs
from export.run.providers import CPU
from export.run.static import StaticGraphs
from export.variant import export_variant
from tests.support.graphs import empty_cache, step
from tests.support.variants import write_variant
from transform.forms import REFERENCE
from transform.knobs import Knobs
from transform.plan import make_plan
from transform.read import read_checkpoint


@pytest.fixture(scope="module")
def narrow(molmo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A variant in bfloat16, whose experts sit in loops."""
    return write_variant(molmo, tmp_path_factory.mktemp("opening") / "v", dtype="bfloat16")


def planned(session: Any) -> bool:
    return bool(session.get_session_options().enable_mem_reuse)


@pytest.mark.parametrize("form", ["cpu", "int4", "int8"])
def test_sessions_are_opened_as_io_json_says(molmo: Path, tmp_path: Path, form: str) -> None:
    directory = write_variant(molmo, tmp_path / form, form=form)
    said = json.loads((directory / "io.json").read_text())["session_attributes"]
    assert said == {"cpu": {"enable_mem_reuse": False}}
    graphs = Graphs(directory)
    for session in (graphs.text, graphs.embedding, graphs.vision):
        options = session.get_session_options()
        assert {name: getattr(options, name) for name in said["cpu"]} == said["cpu"]


def test_static_graphs_are_opened_so_too(olmoe: Path, tmp_path: Path) -> None:
    plan = make_plan(read_checkpoint(olmoe), Knobs(2))
    export_variant(plan, tmp_path / "v", static=plan_static(plan, 40, 8), verify=False)
    graphs = StaticGraphs(tmp_path / "v")
    ids = np.array([[5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41]])  # a whole prompt and a rest, then a step
    found = [graphs.prefill(ids), graphs.decode(43)]
    assert graphs._sessions
    assert not any(map(planned, graphs._sessions.values()))
    dynamic = Graphs(tmp_path / "v")
    every = np.append(ids, [[43]], axis=1)
    logits, _ = dynamic.step(every, np.ones_like(every), dynamic.empty_cache(1))
    for ours, theirs in zip(found, logits[0, -2:], strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * max(1.0, float(np.abs(theirs).max())))


def test_results_are_those_of_planned_buffers(narrow: Path) -> None:
    options = onnxruntime.SessionOptions()
    for key, value in json.loads((narrow / "io.json").read_text())["session_options"].items():
        options.add_session_config_entry(key, value)
    theirs = onnxruntime.InferenceSession(str(narrow / "text.onnx"), options, providers=[CPU])
    ours = Graphs(narrow).text
    assert planned(theirs)
    assert not planned(ours)
    given = np.random.default_rng(0).standard_normal((2, 9, ours.get_inputs()[0].shape[2])).astype(np.float32)
    results = []
    for session in (ours, theirs):
        first, cache = step(session, {"inputs_embeds": given}, np.ones((2, 9), np.int64), empty_cache(session, 2))
        second, _ = step(session, {"inputs_embeds": given[:, :1]}, np.ones((2, 10), np.int64), cache)
        results.append((first, second))
    for mine, other in zip(*results, strict=True):
        np.testing.assert_array_equal(mine, other)


def test_one_node_tells_which_experts_are_used(narrow: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where experts can't be taken by a number, the conditions of a block's branches come from one Split."""
    monkeypatch.setattr(expert_loop, "MOST_SPANS", 0)
    nodes = text_graph(read_checkpoint(narrow), REFERENCE).model().graph.node
    maker = {name: node for node in nodes for name in node.output}
    settings = read_checkpoint(narrow).settings
    makers = [maker[node.input[0]] for node in nodes if node.op_type == "If"]
    assert len(makers) == settings.layers * settings.experts
    assert {node.op_type for node in makers} == {"Split"}
    assert len({node.name for node in makers}) == settings.layers
