"""Variants of stock models pass the whole gate: as one, block by block, and by the program from another folder."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import export.gate.choose
from export.gate.verify import verify_directory
from export.variant import export_variant
from tests.support.paths import ROOT
from tests.support.stock_models import one_thread as one_thread
from tests.support.zoo import ZOO, make
from transform.knobs import Knobs
from transform.plan import make_plan
from transform.read import read_checkpoint
from transform.strict_json import Record

# One of each kind: MTP layers, recurrent blocks, pictures, lists of k, a built-in k, no experts, windows, two routers.
KINDS = (
    "deepseek_v3", "nemotron_h", "glm4_moe_lite", "qwen3_5_moe", "qwen3_vl_moe", "hunyuan_v1_moe-lists", "phimoe",
    "molmo2", "gemma4", "ernie4_5_vl_moe", "aria", "jamba", "granitemoehybrid",
)  # fmt: skip
WHOLE = "gemma4-shared"  # one tensor holds inputs of all its blocks: none of them can be looked at alone


def rows(core: str, *others: str) -> list[object]:
    """All kinds, of which `core` runs always."""
    return [pytest.param(name, marks=() if name == core else pytest.mark.extra) for name in (*KINDS, *others)]


KEEP = {"jamba": (0, 1, 2, 3), "gemma4": (0, 1, 2, 3), WHOLE: (0, 1, 2, 3, 4, 5)}


def exported(name: str, folder: Path) -> Record:
    """The manifest of a variant with another k and without a block, its graphs left out."""
    plan = make_plan(
        read_checkpoint(make(name, folder / "source")),
        Knobs(None if ZOO[name].fixed else 2, KEEP.get(name, (0, 1, 2, 3, 5))),
    )
    return export_variant(plan, folder / "variant", onnx=False)


@pytest.mark.parametrize("name", rows("glm4_moe_lite", WHOLE))
def test_a_variant_passes_the_gate(name: str, tmp_path: Path) -> None:
    manifest = exported(name, tmp_path)
    found = manifest["verification"]
    assert (found["mode"], set(found["static_vs_dynamic"].values())) == ("resident", {0.0})
    assert found["as_user"]["reload"] == {"missing": 0, "mismatched": 0, "unexpected": 0}
    assert ZOO[name].fixed or found["other_k"]["difference"] > 0
    config = json.loads((tmp_path / "variant" / "config.json").read_text())
    source = json.loads((tmp_path / "source" / "config.json").read_text())
    assert "auto_map" not in config
    assert config["architectures"] == source["architectures"]
    assert not list((tmp_path / "variant").glob("*.py"))
    verify_directory(tmp_path / "variant")


@pytest.mark.parametrize("name", rows("nemotron_h"))
def test_a_variant_passes_block_by_block(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export.gate.choose, "fits", lambda _: False)
    found = exported(name, tmp_path)["verification"]
    assert (found["mode"], set(found["static_vs_dynamic"].values())) == ("blockwise", {0.0})
    assert ZOO[name].fixed or found["other_k"]["difference"] > 0
    verify_directory(tmp_path / "variant")


@pytest.mark.extra
def test_the_program_makes_one_from_another_folder(tmp_path: Path) -> None:
    """In a process of its own, the user's way in another one; what predicts further tokens is named and left out."""
    make("deepseek_v3", tmp_path / "source")
    words = ["export", "source", "--k", "2", "--drop-blocks", "1", "--json", "--out", "variant"]
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "export.command.main", *words],
        cwd=tmp_path, env=env, capture_output=True, text=True, check=True,
    )  # fmt: skip
    manifest = json.loads(done.stdout)
    assert manifest["left_out"][0].endswith("they belong to all blocks")
    assert manifest["graphs"].startswith("no graphs for this family yet")
    assert manifest["top_k"] == [0, 2, 2, 2, 2]
    card = (tmp_path / "variant" / "README.md").read_text()
    assert "no graphs for this family yet" in card
    assert "from transformers import DeepseekV3ForCausalLM" in card
    config = json.loads((tmp_path / "variant" / "config.json").read_text())
    assert (config["first_k_dense_replace"], config["num_nextn_predict_layers"]) == (1, 0)
