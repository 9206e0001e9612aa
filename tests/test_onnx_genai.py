"""Variants generate in onnxruntime-genai what they generate elsewhere. It lives in an environment of its own."""

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from export.graph.decoder import text_graph
from export.run.bound import Bound
from export.run.graphs import Graphs
from tests.support.compared import loaded
from tests.support.decoders import DECODERS, DENSE, END_OF_TEXT, VOCABULARY, write_decoder
from tests.support.models import BLOCKWISE, random_ids, save_source
from tests.support.molmo_parity import crops_of, kept_features, knobs_of
from tests.support.paths import FIXTURES, PROGRAMS, ROOT
from tests.support.variants import write_variant
from transform.arrays import Array
from transform.depth import drop_blocks
from transform.forms import REFERENCE
from transform.read import read_checkpoint
from transform.top_k import set_top_k

PYTHON = ROOT / ".venv-genai" / "bin" / "python"
pytestmark = [
    pytest.mark.extra,
    pytest.mark.skipif(not PYTHON.exists(), reason="no .venv-genai: `make genai-env` creates it"),
]

CASES = json.loads((FIXTURES / "parity_cases.json").read_text())
END = CASES["special_token_ids"]["eos"]
INPUTS = load_file(FIXTURES / "parity_inputs.safetensors")
OUTPUTS = load_file(FIXTURES / "parity_outputs.safetensors")


def until_end(ids: Sequence[int], end: int) -> list[int]:
    """What comes before the end token: runtimes differ in whether they return the token itself."""
    listed = [int(i) for i in ids]
    return listed[: listed.index(end)] if end in listed else listed


def generate(directory: Path, inputs: dict[str, Array], count: int, end: int, overlay: Path | None = None) -> list[int]:
    file = directory / "test_inputs.safetensors"
    save_file({name: np.ascontiguousarray(value) for name, value in inputs.items()}, file)
    command = [str(PYTHON), str(PROGRAMS / "genai_generate.py"), str(directory), str(file), str(count)]
    command += [] if overlay is None else [str(overlay)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    file.unlink()
    assert done.returncode == 0, done.stderr
    return until_end(json.loads(done.stdout), end)


@pytest.mark.parametrize("variant", [v for v in CASES["variants"] if v in ("full", "k2_keep013", "k4212")])
def test_molmoe_text_without_image(variant: str, tmp_path: Path) -> None:
    theirs = OUTPUTS[f"text_only/{variant}/greedy"][0]
    inputs = {"input_ids": INPUTS["text_only/input_ids"]}
    assert generate(write_variant(FIXTURES, tmp_path / "v", *knobs_of(variant)), inputs, len(theirs), END) == until_end(
        theirs, END
    )


@pytest.mark.parametrize("fixed", [False, True], ids=["any_crops", "fixed_crops"])
@pytest.mark.parametrize("case", [c for c, r in CASES["cases"].items() if r["kind"] == "formula_crops"])
def test_molmoe_with_an_image(case: str, fixed: bool, tmp_path: Path) -> None:
    for variant in [v for v in ("full", "k2_keep013") if v in CASES["cases"][case]["variants"]]:
        crops = crops_of(case)[0]
        inputs = {
            "input_ids": INPUTS[f"{case}/input_ids"],
            "images": crops,
            "image_masks": INPUTS[f"{case}/image_masks"][0],
            "feature_index": kept_features(INPUTS[f"{case}/image_input_idx"][0]),
        }
        theirs = OUTPUTS[f"{case}/{variant}/greedy"][0]
        directory = write_variant(
            FIXTURES, tmp_path / variant, *knobs_of(variant), tokens=144 * len(crops) if fixed else None
        )
        assert generate(directory, inputs, len(theirs), END) == until_end(theirs, END)


@pytest.mark.parametrize("case", [c for c, r in CASES["cases"].items() if r["kind"] == "formula_crops"][:1])
def test_a_familys_member_with_an_image(case: str, tmp_path: Path) -> None:
    """The overlay names another decoder over the same vision and embedding graphs."""
    family, knobs = write_variant(FIXTURES, tmp_path / "family"), CASES["variants"]["k2_keep013"]
    member = set_top_k(drop_blocks(read_checkpoint(family), knobs["keep_blocks"]), knobs["top_k"])
    text_graph(member, REFERENCE).write(family / "text-k2-b3.onnx")
    overlay = tmp_path / "overlay.json"
    changed = {"filename": "text-k2-b3.onnx", "num_hidden_layers": len(knobs["keep_blocks"])}
    overlay.write_text(json.dumps({"model": {"decoder": changed}}))
    inputs = {
        "input_ids": INPUTS[f"{case}/input_ids"],
        "images": crops_of(case)[0],
        "image_masks": INPUTS[f"{case}/image_masks"][0],
        "feature_index": kept_features(INPUTS[f"{case}/image_input_idx"][0]),
    }
    theirs, whole = (OUTPUTS[f"{case}/{name}/greedy"][0] for name in ("k2_keep013", "full"))
    assert until_end(theirs, END) != until_end(whole, END)
    assert generate(family, inputs, len(theirs), END, overlay) == until_end(theirs, END)
    # another choice of features is another picture: the extra input reaches the graph
    turned = {**inputs, "feature_index": inputs["feature_index"][::-1]}
    assert generate(family, turned, len(theirs), END, overlay) != until_end(theirs, END)


@pytest.mark.parametrize("form", ["int4", "int8"])
def test_quantised_forms(form: str, tmp_path: Path) -> None:
    save_source(tmp_path / "source", **BLOCKWISE, num_key_value_heads=2)
    variant = write_variant(tmp_path / "source", tmp_path / form, k=2, form=form)
    ids = random_ids(1, 12)
    bound = Bound(Graphs(variant, threads=1))
    theirs = [int(bound.prefill(ids).argmax())]
    while len(theirs) < 24:
        theirs.append(int(bound.decode(theirs[-1]).argmax()))
    assert generate(variant, {"input_ids": ids}, 24, 95) == until_end(theirs, 95)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_olmoe_variant_generates_as_transformers(dtype: torch.dtype, tmp_path: Path) -> None:
    from transformers import OlmoeForCausalLM

    save_source(tmp_path / "source", dtype, num_key_value_heads=2, norm_topk_prob=True)
    variant = write_variant(tmp_path / "source", tmp_path / "variant", keep=[0, 2], k=2)
    assert read_checkpoint(variant).settings.top_k == (2, 2)
    model = OlmoeForCausalLM.from_pretrained(variant, dtype=torch.float32).eval()
    ids = torch.from_numpy(random_ids(1, 12))
    with torch.no_grad():
        theirs = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=24, do_sample=False)
    expected = until_end(theirs[0, 12:].tolist(), 95)
    assert len(expected) > 8  # else the prompt tests nothing
    assert generate(variant, {"input_ids": ids.numpy()}, 24, 95) == expected


@pytest.mark.parametrize("form", ["cpu", "int4", "int8"])
@pytest.mark.parametrize("name", DECODERS)
def test_every_family_generates_as_transformers(name: str, form: str, tmp_path: Path) -> None:
    """Beyond any window; grouped heads of a width of their own, sinks, tied heads, slabs."""
    source = write_decoder(name, tmp_path / "source", torch.bfloat16)
    variant = write_variant(source, tmp_path / "variant", k=None if name in DENSE else 3, form=form)
    model = loaded(variant, form)
    ids = torch.from_numpy(np.random.default_rng(5).integers(3, VOCABULARY - 2, (1, 12)))
    with torch.no_grad():
        theirs = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=24, do_sample=False)
    expected = until_end(theirs[0, 12:].tolist(), END_OF_TEXT)
    assert len(expected) > 8  # else the prompt tests nothing
    overlay = None
    if form == "int8":  # kernels for repacked 8-bit weights round activations
        overlay = tmp_path / "overlay.json"
        exact = {"session_options": {"session.disable_prepacking": "1"}}
        overlay.write_text(json.dumps({"model": {"decoder": exact}}))
    assert generate(variant, {"input_ids": ids.numpy()}, 24, END_OF_TEXT, overlay) == expected
