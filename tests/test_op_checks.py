"""The self-tests of onnxruntime's operators: they pass here, and each known trap would be caught."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from export.gate.op_checks import (
    LIMITS,
    Check,
    check_cpu_moe,
    check_operators,
    missing_cuda,
)
from export.gate.op_rig import Block, Rig, block_graph, make_block, relative
from export.graph.builder import CONTRIB, Graph
from export.graph.norm import rms_norm
from export.numpy_run import NumpySession
from export.run.session_options import SESSION_OPTIONS
from tests.support.paths import ROOT
from transform.architectures import Settings
from transform.checkpoint import Checkpoint
from transform.errors import VerificationError
from transform.forms import form_named
from transform.read import read_checkpoint

VERSION = tuple(int(part) for part in onnxruntime.__version__.split(".")[:2])


@pytest.fixture(scope="module")
def settings() -> Settings:
    return read_checkpoint(ROOT / "artifacts" / "molmoe-nano").settings


def with_k(settings: Settings, *k: int, experts: int = 64, norm: bool = False) -> Settings:
    return replace(settings, top_k=k, layers=len(k), experts=experts, norm_top_k=norm)


@pytest.mark.parametrize("form", ["cpu", "int4", "int8"])
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize(("k", "experts"), [((1,), 4), ((8, 4, 4), 64), ((3,), 3)])
def test_this_onnxruntime_passes(form: str, norm: bool, k: tuple[int, ...], experts: int, settings: Settings) -> None:
    found = check_operators(form_named(form), with_k(settings, *k, experts=experts, norm=norm))
    assert found["onnxruntime"] == onnxruntime.__version__
    assert found["provider"] == "cpu"
    limited = [entry for entry in found["checks"].values() if "limit" in entry]
    assert all(entry["difference"] <= entry["limit"] for entry in limited)
    experts_checked = [name for name in found["checks"] if name.startswith(("QMoE", "Gemm per expert"))]
    assert {int(name.rpartition("k ")[2]) for name in experts_checked} == set(k)


def test_checks_are_few_and_the_same_in_every_run(settings: Settings) -> None:
    for form in ("cpu", "cuda", "int4", "int8"):
        found = check_operators(form_named(form), settings)
        assert found == check_operators(form_named(form), settings)
        assert 3 <= len(found["checks"]) <= 12


def test_the_cuda_form_says_what_was_not_run(settings: Settings) -> None:
    found = check_operators(form_named("cuda"), settings)
    assert any(name.startswith("SimplifiedLayerNormalization") for name in found["checks"])
    reason = missing_cuda()
    if reason is None:
        assert found["provider"] == "cuda"
        assert any(name.startswith("MoE, gate and up in turns") for name in found["checks"])
    else:
        assert found["not_run"] == f"MoE: {reason}"
        with pytest.raises(VerificationError, match=r"must load to be used|must be built"):
            check_operators(form_named("cuda"), settings, "cuda")


def test_no_torch_is_imported() -> None:
    code = (
        "import sys; from transform.read import read_checkpoint; from pathlib import Path;"
        "from export.gate.op_checks import check_operators; from transform.forms import form_named;"
        "check_operators(form_named('int4'), read_checkpoint(Path('artifacts/molmoe-nano')).settings);"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


# Traps


@pytest.mark.parametrize("rows", ["n", 5])
def test_the_fused_moe_of_the_cpu_is_caught(rows: int | str, settings: Settings) -> None:
    """Silently wrong up to onnxruntime 1.31: the check must see it, and must pass where it was mended."""
    check = check_cpu_moe(with_k(settings, 4), rows)
    assert check.passed == (VERSION >= (1, 32))
    if not check.passed:
        assert check.difference > 0.1


@pytest.mark.parametrize("form", ["int4", "int8"])
def test_without_router_weights_the_result_is_another(form: str, settings: Settings) -> None:
    found = check_operators(form_named(form), with_k(settings, 4))["checks"]
    (without,) = (entry for name, entry in found.items() if "without router_weights" in name)
    assert without["difference"] > 1e-2


def test_repacked_eight_bits_stay_within_their_limit(tmp_path: Path, settings: Settings) -> None:
    """Their kernel rounds activations to 8 bits, which is seen; without repacking they are exact."""
    kept = Rig(tmp_path, options=[{}])
    block = make_block(kept, with_k(settings, 4), 4, bits=8)
    repacked = difference(kept, block)
    kept.options = [SESSION_OPTIONS]
    assert 1e-3 < repacked < form_named("int8").tolerance
    assert difference(kept, block) < LIMITS["float32"]


# Wrong weights and wrong attributes


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path)


def difference(rig: Rig, block: Block, change: Callable[[Any], None] = lambda _: None) -> float:
    graph = block_graph(block.checkpoint, form_named("int4"))
    return relative(rig.run(graph, block.tokens, change), block.expected(block.tokens))


def attribute(name: str, value: Any) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        (node,) = (node for node in model.graph.node if node.op_type == "QMoE")
        (found,) = (a for a in node.attribute if a.name == name)
        setattr(found, "f" if isinstance(value, float) else "i", value)

    return change


def test_the_block_that_is_damaged_below_is_right(rig: Rig, settings: Settings) -> None:
    assert difference(rig, make_block(rig, with_k(settings, 4), 4, bits=4)) < LIMITS["float32"]


@pytest.mark.parametrize(
    "change", [attribute("activation_alpha", 1.702), attribute("activation_beta", 1.0), attribute("k", 3)]
)
def test_another_attribute_shows(change: Callable[[Any], None], rig: Rig, settings: Settings) -> None:
    assert difference(rig, make_block(rig, with_k(settings, 4), 4, bits=4), change) > 1e-2


def swapped_halves(codes: Any) -> Any:
    return codes >> 4 | codes << 4


def another_zero(codes: Any) -> Any:
    return np.where(codes & 15, codes - 1, codes).astype(np.uint8)  # as if the low halves' zero were 7


def concatenated(codes: Any) -> Any:
    rows = codes.reshape(-1, 2 * 96, 32)
    return np.concatenate((rows[:, 0::2], rows[:, 1::2]), axis=1)  # all gates, then all ups


@pytest.mark.parametrize("damage", [swapped_halves, another_zero, concatenated])
def test_another_layout_shows(damage: Callable[[Any], Any], rig: Rig, settings: Settings) -> None:
    block = make_block(rig, with_k(settings, 4), 4, bits=4)
    pack = block.checkpoint.tensor("expert.gate", 0).pack
    assert pack is not None
    file = np.memmap(pack.codes.file, np.uint8, "r+", pack.codes.start, (pack.codes.nbytes,))
    file[:] = damage(file).reshape(-1)
    file.flush()
    assert difference(rig, block) > 1e-2


# Refusals


def test_a_wrong_operator_refuses_the_export(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("export.gate.op_rig.rms_norm", lambda g, x, weight, eps: rms_norm(g, x, weight, 4 * eps))
    with pytest.raises(VerificationError) as refused:
        check_operators(form_named("int4"), settings)
    message = str(refused.value)
    assert "SimplifiedLayerNormalization (epsilon" in message
    assert f"onnxruntime {onnxruntime.__version__} differs by 0." in message
    assert "--form cpu" in message


def test_an_operator_that_is_missing_refuses_the_export(rig: Rig, settings: Settings) -> None:
    def unknown(g: Graph, checkpoint: Checkpoint, i: int, x: str) -> str:
        return g.op("MoEOfTomorrow", x, domain=CONTRIB)

    graph = block_graph(make_block(rig, with_k(settings, 2), 2).checkpoint, form_named("int4"), experts=unknown)
    with pytest.raises(VerificationError, match=r"MoEOfTomorrow.*onnxruntime [0-9].*--form cpu"):
        rig.run(graph, np.zeros((1, 64), np.float32))


@pytest.mark.parametrize(("value", "passed"), [(float("nan"), False), (float("inf"), False), (1e-6, True)])
def test_what_is_not_a_number_fails(value: float, passed: bool) -> None:
    assert Check("MoE", "k 4", value, LIMITS["float32"]).passed == passed
    assert Check("MoE", "k 4", value, None).passed


def test_results_that_are_not_numbers_are_seen() -> None:
    expected = np.ones((2, 3))
    bad = expected.copy()
    bad[1, 2] = np.nan
    assert np.isnan(relative([expected, bad], expected))
    assert relative([expected[:1]], expected) == float("inf")


@pytest.mark.parametrize("norm", [False, True])
def test_the_fused_float16_block_means_what_is_expected(norm: bool, rig: Rig, settings: Settings) -> None:
    """What a GPU is measured against, here against numpy."""
    block = make_block(rig, with_k(settings, 4, norm=norm), 4, "F16")
    path = rig.directory / "block.onnx"
    block_graph(block.checkpoint, form_named("cuda")).write(path)
    x = block.tokens.astype(np.float16)
    assert relative(NumpySession(path).run(None, {"x": x}), block.expected(x)) < LIMITS["float16"]
