"""Bytes, operators and memory by arithmetic, against what is stored and what graphs hold."""

import math
from pathlib import Path

import onnx
import pytest

from export.cost.count import Counted, cost_of, count
from export.cost.decoder import decoder_parts, expected_experts
from export.cost.stored import Stored
from export.cost.work import Workload, parse_workload
from export.run.graphs import Graphs
from tests.support.paths import ROOT
from tests.support.variants import write_variant
from transform.checkpoint import Checkpoint
from transform.errors import KnobError
from transform.knobs import DTYPES, Knobs
from transform.plan import make_plan
from transform.read import read_checkpoint
from transform.safetensors_header import ITEM_BYTES

NANO = ROOT / "artifacts" / "molmoe-nano"
ASKED = Workload((640, 480), 32, 8)


@pytest.fixture(scope="module")
def nano() -> Checkpoint:
    return read_checkpoint(NANO)


def counted(source: Checkpoint, **knobs: object) -> Counted:
    return count(make_plan(source, Knobs(**knobs)), ASKED)  # type: ignore[arg-type]


@pytest.mark.parametrize("form", ["int4", "int8", "cpu", "cuda"])
def test_all_weights_are_as_many_bytes_as_the_plan_says(nano: Checkpoint, form: str) -> None:
    plan = make_plan(nano, Knobs(form=form, dtype="float32" if form == "cpu" else "source"))
    stored = Stored(plan)
    settings = plan.target.settings
    blocks = range(settings.layers)
    matrices = [name for name in plan.target.architecture.roles if not name.startswith("expert.")]
    once = [role for role in matrices if "{i}" not in plan.target.architecture.roles[role].names[0]]
    ours = sum(settings.experts * stored.read_expert(i) for i in blocks)
    ours += sum(stored.read(role, i) - _cast(stored, role, i) for role in matrices if role not in once for i in blocks)
    towers = range(plan.target.count("j"))
    for role in once:
        several = towers if "{j}" in plan.target.architecture.roles[role].names[0] else range(1)
        ours += sum(stored.read(role, j=j) - _cast(stored, role, j=j) for j in several)
    assert ours == plan.bytes


def _cast(stored: Stored, role: str, i: int = 0, j: int = 0) -> int:
    """The copy that is written and read where a weight is cast."""
    return 2 * stored.value * math.prod(stored.shape(role, i, j)) * stored.casts(role, i, j)


@pytest.mark.parametrize(("dtype", "casts"), [("source", 1), ("float32", 0), ("float16", 1)])
def test_weights_of_another_type_than_the_graphs_are_cast_at_each_use(nano: Checkpoint, dtype: str, casts: int) -> None:
    plan = make_plan(nano, Knobs(dtype=dtype))
    stored, head = Stored(plan), plan.target.tensor("head")
    values = math.prod(head.shape)
    item = ITEM_BYTES[DTYPES.get(dtype, "BF16")]
    assert (stored.casts("head"), stored.read("head")) == (casts, values * (item + casts * 8))


@pytest.mark.parametrize(("family", "form"), [("molmo", "cuda"), ("olmoe", "int4")])
def test_operators_are_those_of_the_fused_graphs(
    family: str, form: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    variant = write_variant(request.getfixturevalue(family), tmp_path / "v", keep=(0, 2, 3), form=form)
    plan = make_plan(read_checkpoint(variant), Knobs())
    parts = decoder_parts(Stored(plan), 1, 5)
    ours = sum(part.operators for part in parts if part.name != "embedding")
    graph = onnx.load(variant / "text.onnx", load_external_data=False).graph
    known, run = {tensor.name for tensor in graph.initializer}, []
    for node in graph.node:
        if known.issuperset(node.input):  # computed once, when the graph is opened: scales widened, rows in turns
            known.update(node.output)
        else:
            run.append(node)
    for node in [node for node in run if node.op_type == "If"]:
        run += next(branch.g.node for branch in node.attribute if branch.name == "then_branch")
    assert ours == pytest.approx(len(run), rel=0.03)


@pytest.mark.parametrize(("k", "tokens", "least", "most"), [(8, 1, 8, 8), (8, 2, 14.9, 15.1), (1, 10_000, 63.9, 64)])
def test_distinct_experts_of_uniform_routers(k: int, tokens: int, least: float, most: float) -> None:
    assert least <= expected_experts(64, k, tokens) <= most + 1e-9


def test_a_cache_is_as_large_as_the_graphs_make_it(molmo: Path, tmp_path: Path) -> None:
    variant = write_variant(molmo, tmp_path / "v", keep=(0, 2), k=2)
    graphs = Graphs(variant)
    empty = graphs.empty_cache(1)
    found = count(make_plan(read_checkpoint(variant), Knobs()), Workload(None, 9, 4))
    row = sum(value.itemsize * value.shape[1] * value.shape[3] for value in empty.values())
    assert found.tokens.positions == 10
    assert found.work.kv_bytes == row * (10 + 3)  # the last token of an answer is never read


def test_every_knob_lowers_what_it_should(nano: Checkpoint) -> None:
    full = counted(nano).work
    assert counted(nano, k=2).work.decode_flops < full.decode_flops
    assert counted(nano, keep=(0, 5, 9)).work.kv_bytes * 16 == full.kv_bytes * 3
    low, high = counted(nano, tokens=288), counted(nano, tokens=1008)
    assert low.work.vision_flops < high.work.vision_flops
    assert low.work.prefill_flops < high.work.prefill_flops
    assert low.memory["prefill"] < high.memory["prefill"]
    assert counted(nano, form="int4").memory["decode"] < counted(nano, dtype="float32").memory["decode"]


def test_memory_holds_weights_and_caches(nano: Checkpoint) -> None:
    plan = make_plan(nano, Knobs(form="int4"))
    found = count(plan, Workload((640, 480), 32, 8))
    assert found.memory["decode"] > plan.bytes + 2 * found.kv_bytes
    assert set(found.memory) == {"vision", "prefill", "decode"}
    assert set(count(plan, Workload(None, 32, 8)).memory) == {"prefill", "decode"}


def test_a_tables_cost_is_the_plans(nano: Checkpoint) -> None:
    plan = make_plan(nano, Knobs(k=2, tokens=288))
    cost = cost_of(plan, {"qa": ASKED})
    assert (cost.parameters, cost.bytes) == (plan.as_dict()["parameters"], plan.bytes)
    assert cost.work["qa"].vision_tokens == 144 + 12 * 12


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("640x480:32:8", Workload((640, 480), 32, 8)),
        ("32:8", Workload(None, 32, 8)),
        ("1x1:1:1", Workload((1, 1), 1, 1)),
    ],
)
def test_workloads_are_written_short(text: str, expected: Workload) -> None:
    assert parse_workload(text) == expected


@pytest.mark.parametrize("text", ["", "8", "640x480", "640x:1:1", "0x4:1:1", "4:0", "99999x99999:1:1", "1:1:1", "٣:1"])
def test_other_workloads_are_refused(text: str) -> None:
    with pytest.raises(KnobError, match="a workload is WIDTHxHEIGHT:PROMPT:NEW"):
        parse_workload(text)
