"""The main job on real checkpoints: complete, equal to the dynamic knobs, tamper-evident, deterministic."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

import transform.machine
from export.files.integrity import check_graph_bounds, sha256_file
from export.gate.blockwise import blockwise_gate
from export.gate.copied import check_copied
from export.gate.verify import verify_directory
from export.variant import export_variant
from tests.support.models import BLOCKWISE, save_source
from tests.support.paths import ROOT
from tests.support.variants import digests, record_sums
from transform.errors import KnobcastError, VerificationError, WriteError
from transform.knobs import Knobs
from transform.ownership import SUMS
from transform.plan import make_plan
from transform.read import read_checkpoint
from transform.source import DEFAULT


def export(source: Path, out: Path, knobs: Knobs, **options: Any) -> dict[str, Any]:
    return export_variant(make_plan(read_checkpoint(source), knobs), out, **options)


@pytest.fixture(scope="module")
def nano_variant(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("variants") / "nano"
    export(DEFAULT, out, Knobs(k=4, keep=tuple(i for i in range(16) if i not in (3, 4, 7, 12)), tokens=432))
    return out


@pytest.fixture
def tampered(nano_variant: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(nano_variant, tmp_path / "tampered"))


SETTINGS = [
    Knobs(k=2),
    Knobs(keep=(0, 1, 3)),
    Knobs(k=(4, 2, 1), keep=(0, 2, 3)),
    Knobs(k=1, keep=(1, 2), tokens=288),
    Knobs(k=3, keep=(3,), tokens="low"),
    Knobs(k=2, keep=(0, 3), dtype="bfloat16"),
    Knobs(keep=(0, 1), tokens=720, dtype="float16"),
]


@pytest.mark.parametrize("knobs", SETTINGS, ids=str)
def test_a_variant_equals_the_dynamic_knobs(molmo: Path, tmp_path: Path, knobs: Knobs) -> None:
    manifest = export(molmo, tmp_path / "v", knobs)
    checked = manifest["verification"]
    assert set(checked["static_vs_dynamic"].values()) == {0.0}
    assert set(checked["static_vs_dynamic"]) == {"prefill", "decode", "padded", "image"}
    assert {"prefill", "decode", "padded", "embeddings"} <= checked["onnx_vs_torch"].keys()
    assert checked["other_k"]["difference"] > 1e-3
    verify_directory(tmp_path / "v", lambda _: None)


@pytest.mark.parametrize("knobs", [Knobs(k=2, keep=(0, 2, 3, 5)), Knobs(keep=(1, 4)), Knobs(dtype="float16")], ids=str)
def test_an_olmoe_variant_loads_in_stock_transformers(olmoe: Path, tmp_path: Path, knobs: Knobs) -> None:
    from transformers import AutoModelForCausalLM

    manifest = export(olmoe, tmp_path / "v", knobs)
    assert set(manifest["verification"]["static_vs_dynamic"].values()) == {0.0}
    _, report = AutoModelForCausalLM.from_pretrained(tmp_path / "v", output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))


@pytest.mark.parametrize("knobs", SETTINGS[:3] + SETTINGS[5:6], ids=str)
def test_the_blockwise_gate_agrees(molmo: Path, tmp_path: Path, knobs: Knobs) -> None:
    plan = make_plan(read_checkpoint(molmo), knobs)
    export_variant(plan, tmp_path / "v", verify=False)
    checked = blockwise_gate(plan, read_checkpoint(tmp_path / "v"), True, lambda _: None)
    assert set(checked.static_vs_dynamic.values()) == {0.0}
    assert checked.onnx_vs_torch["prefill"] < 1e-4
    assert "embeddings" in checked.onnx_vs_torch


def test_sums_are_those_of_the_files_and_a_changed_byte_is_seen(molmo: Path, tmp_path: Path) -> None:
    """In matrices, and behind a multiple of what is read at once."""
    plan = make_plan(read_checkpoint(molmo), Knobs(k=2, keep=(0, 3)))
    export_variant(plan, tmp_path / "v", verify=False, onnx=False)
    written = read_checkpoint(tmp_path / "v")
    count, sums = check_copied(plan.target, written)
    files = sorted((tmp_path / "v").glob("*.safetensors"))
    assert count == len(written.tensors)
    assert sums == {file.name: sha256_file(file) for file in files}
    last = max(written.tensors.values(), key=lambda tensor: (tensor.file, tensor.start))
    for tensor in (written.tensor("expert.down", 1, 2), last):
        data = bytearray(tensor.file.read_bytes())
        data[tensor.start + tensor.nbytes - 1] ^= 1
        before = tensor.file.read_bytes()
        tensor.file.write_bytes(data)
        with pytest.raises(VerificationError, match="must hold the source's bytes"):
            check_copied(plan.target, written)
        tensor.file.write_bytes(before)


def test_what_is_cast_is_summed_and_not_compared(molmo: Path, tmp_path: Path) -> None:
    plan = make_plan(read_checkpoint(molmo), Knobs(k=2, keep=(0,), dtype="float16"))
    export_variant(plan, tmp_path / "v", verify=False, onnx=False)
    count, sums = check_copied(plan.target, read_checkpoint(tmp_path / "v"))
    assert count == 0
    assert sums == {file.name: sha256_file(file) for file in (tmp_path / "v").glob("*.safetensors")}


def test_a_variant_proven_block_by_block_has_the_golden_picture(
    molmo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transform.machine, "free_memory", lambda: 0)
    manifest = export(molmo, tmp_path / "v", Knobs(k=2, keep=(0, 3), tokens=288))
    assert manifest["verification"]["mode"] == "blockwise"
    assert "sums" not in manifest["verification"]
    found = verify_directory(tmp_path / "v", lambda _: None)
    assert 0 <= found["preprocess_vs_golden"]["images"] <= 1e-5
    golden = dict(load_file(tmp_path / "v" / "golden.safetensors"))
    golden["preprocess.images"] = golden["preprocess.images"] + 1
    save_file(golden, tmp_path / "v" / "golden.safetensors")
    record_sums(tmp_path / "v")
    with pytest.raises(VerificationError, match="must cut pictures"):
        verify_directory(tmp_path / "v", lambda _: None)


def test_a_resident_variant_keeps_its_golden_outputs(molmo: Path, tmp_path: Path) -> None:
    export(molmo, tmp_path / "v", Knobs(k=2, keep=(0,), tokens=288))
    golden = load_file(tmp_path / "v" / "golden.safetensors")
    pictures = {name: value for name, value in golden.items() if name.startswith("preprocess.")}
    save_file(pictures, tmp_path / "v" / "golden.safetensors")
    record_sums(tmp_path / "v")
    with pytest.raises(VerificationError, match="must hold the outputs that were recorded"):
        verify_directory(tmp_path / "v", lambda _: None)


def test_the_blockwise_gate_sees_a_swapped_expert(molmo: Path, tmp_path: Path) -> None:
    plan = make_plan(read_checkpoint(molmo), Knobs(k=2, keep=(0, 3), dtype="bfloat16"))
    export_variant(plan, tmp_path / "v", verify=False)
    _swap_experts(tmp_path / "v" / "model.safetensors", "model.transformer.blocks.1.mlp.experts.")
    with pytest.raises(VerificationError, match="difference 0"):
        blockwise_gate(plan, read_checkpoint(tmp_path / "v"), False, lambda _: None)


def _swap_experts(file: Path, prefix: str) -> None:
    """Exchange the byte ranges of two experts' weights."""
    checkpoint = {e.name: e for e in _entries(file)}
    data = bytearray(file.read_bytes())
    for part in ("gate_proj", "up_proj", "down_proj"):
        a, b = (checkpoint[f"{prefix}{e}.{part}.weight"] for e in (0, 1))
        one, two = data[a.start : a.start + a.nbytes], data[b.start : b.start + b.nbytes]
        data[a.start : a.start + a.nbytes], data[b.start : b.start + b.nbytes] = two, one
    file.write_bytes(bytes(data))


def _entries(file: Path) -> Any:
    from transform.safetensors_header import read_header

    return read_header(file)


@pytest.mark.parametrize("careful", [False, True])
def test_swapped_experts_fail_verify(tampered: Path, careful: bool) -> None:
    index = json.loads((tampered / "model.safetensors.index.json").read_text())["weight_map"]
    prefix = "model.transformer.blocks.5.mlp.experts."
    _swap_experts(tampered / index[f"{prefix}0.gate_proj.weight"], prefix)
    if careful:
        record_sums(tampered)
    with pytest.raises(VerificationError):
        verify_directory(tampered, lambda _: None)


@pytest.mark.parametrize("careful", [False, True])
def test_another_k_in_the_config_fails_verify(tampered: Path, careful: bool) -> None:
    config = json.loads((tampered / "config.json").read_text())
    (tampered / "config.json").write_text(json.dumps(config | {"moe_top_k": 3}))
    if careful:
        record_sums(tampered)
    with pytest.raises(VerificationError):
        verify_directory(tampered, lambda _: None)


@pytest.mark.parametrize("careful", [False, True])
def test_a_truncated_shard_fails_verify(tampered: Path, careful: bool) -> None:
    shard = sorted(tampered.glob("*.safetensors"))[-1]
    os.truncate(shard, shard.stat().st_size - 100)
    if careful:
        record_sums(tampered)
    with pytest.raises(KnobcastError):
        verify_directory(tampered, lambda _: None)


def test_files_that_come_or_go_fail_verify(tampered: Path) -> None:
    (tampered / "extra.py").write_text("x = 1")
    with pytest.raises(VerificationError, match=r"extra\.py"):
        verify_directory(tampered, lambda _: None)


def test_a_graph_that_points_beyond_its_file_is_seen(tampered: Path) -> None:
    import onnx

    model = onnx.load(tampered / "text.onnx", load_external_data=False)
    entry = next(e for t in model.graph.initializer for e in t.external_data if e.key == "offset")
    entry.value = str(10**9)
    (tampered / "text.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(VerificationError, match="must lie inside model-00001"):
        check_graph_bounds(tampered)


def test_nothing_of_a_failed_gate_stays(molmo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NaN weights can't be proven equal to anything."""
    broken = tmp_path / "broken"
    broken.mkdir()
    tensors = load_file(molmo / "model.safetensors")
    tensors["model.transformer.blocks.1.attn.attn_out.weight"][:] = np.nan
    save_file(tensors, broken / "model.safetensors")
    shutil.copy(molmo / "config.json", broken)
    with pytest.raises(VerificationError):
        export(broken, tmp_path / "v", Knobs(k=2))
    assert [p.name for p in tmp_path.iterdir()] == ["broken"]


def test_the_same_input_gives_the_same_bytes(molmo: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        export(molmo, tmp_path / name, Knobs(k=2, keep=(0, 2, 3), tokens=432))
    assert digests(tmp_path / "a") == digests(tmp_path / "b")


def test_a_variant_names_no_place(nano_variant: Path) -> None:
    for file in nano_variant.iterdir():
        if file.suffix in (".json", ".md", ".onnx"):
            assert str(nano_variant.parent).encode() not in file.read_bytes()
            assert str(ROOT).encode() not in file.read_bytes()


def test_sha256sum_reads_the_sums(nano_variant: Path) -> None:
    done = subprocess.run(["sha256sum", "-c", "--quiet", SUMS], cwd=nano_variant, capture_output=True, check=False)
    assert done.returncode == 0, done.stdout


def test_a_variant_can_be_exported_again(nano_variant: Path, tmp_path: Path) -> None:
    manifest = export(nano_variant, tmp_path / "again", Knobs(k=2, keep=(0, 5, 11), tokens=288))
    assert set(manifest["verification"]["static_vs_dynamic"].values()) == {0.0}


def test_a_variant_of_a_variant_keeps_its_vision_budget(molmo: Path, tmp_path: Path) -> None:
    shutil.copytree(molmo, tmp_path / "source")
    shutil.copy(DEFAULT / "tokenizer.json", tmp_path / "source")
    plan = make_plan(read_checkpoint(tmp_path / "source"), Knobs(tokens=432, resize="fill", rule="linear"))
    export_variant(plan, tmp_path / "v", onnx=False, verify=False)
    source = read_checkpoint(tmp_path / "v")
    kept = make_plan(source, Knobs(k=2))
    assert kept.vision == plan.vision
    assert make_plan(source, Knobs(tokens=288)).vision == make_plan(plan.source, Knobs(tokens=288)).vision


@pytest.mark.parametrize(
    ("knobs", "said", "unsaid"),
    [
        (
            Knobs(k=2),
            ["from_pretrained", "equals the source with the same knobs at run time."],
            ["quantised", "--provider"],
        ),
        (
            Knobs(k=2, form="cuda"),
            ["from_pretrained", "as float16", "rounded alike", "numpy", "not a GPU"],
            ["quantised"],
        ),
        (
            Knobs(form="int4"),
            ["quantised to 4 bits", "quantised alike", "onnxruntime", "can't load"],
            ["from_pretrained"],
        ),
        (Knobs(form="int8"), ["quantised to 8 bits", "not repacked"], ["from_pretrained"]),
    ],
    ids=["cpu", "cuda", "int4", "int8"],
)
def test_the_card_says_what_a_form_is(tmp_path: Path, knobs: Knobs, said: list[str], unsaid: list[str]) -> None:
    save_source(tmp_path / "source", torch.bfloat16, **BLOCKWISE)
    manifest = export(tmp_path / "source", tmp_path / "v", knobs)
    card = (tmp_path / "v" / "README.md").read_text()
    assert manifest["verification"]["graphs_computed_by"] in card
    assert all(words in card for words in said), card
    assert not any(words in card for words in unsaid), card
    if knobs.form == "int4":
        export(tmp_path / "v", tmp_path / "again", Knobs(k=1), verify=False)
        again = (tmp_path / "again" / "README.md").read_text()
        assert (
            "quantised to 4 bits (attention, head, experts, embedding tables), in blocks of 32, as the source's are"
            in again
        )
        assert "equals" not in again  # nothing was verified


def test_a_taken_target_is_said_before_the_work(molmo: Path, tmp_path: Path) -> None:
    (tmp_path / "v").mkdir()
    (tmp_path / "v" / "x").write_text("x")
    with pytest.raises(WriteError, match="--force"):
        export(molmo, tmp_path / "v", Knobs(k=2))


STRANGER = """
import importlib.util, json, sys
assert importlib.util.find_spec("transform") is None and importlib.util.find_spec("export") is None
import numpy as np, torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor
d = sys.argv[1]
options = {"trust_remote_code": True, "dtype": torch.float32, "output_loading_info": True}
model, report = AutoModelForImageTextToText.from_pretrained(d, **options)
assert not any(report[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
processor = AutoProcessor.from_pretrained(d, trust_remote_code=True)
image = Image.fromarray(np.arange(120 * 90 * 3, dtype=np.uint32).astype(np.uint8).reshape(90, 120, 3))
inputs = processor(images=[image], text=["What is this?"], return_tensors="pt")
out = model.generate(**inputs, max_new_tokens=6, do_sample=False)
new = out[0, inputs["input_ids"].shape[1]:].tolist()
print(json.dumps({"inputs": {k: list(v.shape) for k, v in inputs.items()}, "new": new}))
"""


def test_a_moved_variant_works_where_knobcast_is_absent(nano_variant: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(nano_variant, tmp_path / "elsewhere" / "my variant")
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"HF_HOME": str(tmp_path / "hf")}
    environment |= {"HF_HUB_OFFLINE": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    # the editable install puts the checkout on sys.path: -S leaves it out, the packages are added back by hand
    packages = [p for p in sys.path if p.endswith("site-packages")]
    script = f"import sys; sys.path += {packages!r}\n{STRANGER}"
    done = subprocess.run(
        [sys.executable, "-S", "-c", script, str(moved)],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["inputs"]["images"] == [1, 3, 576, 588]  # 432 tokens: two tiles and the global view

    from export.run.answer import answer

    image = tmp_path / "photo.png"
    from PIL import Image

    array = np.arange(120 * 90 * 3, dtype=np.uint32).astype(np.uint8).reshape(90, 120, 3)
    Image.fromarray(array).save(image)
    ours = answer(moved, image, "What is this?", max_new_tokens=6)
    assert list(ours.ids) == said["new"][: len(ours.ids)]
    assert len(ours.ids) == 6 or ours.stopped == "end"


@pytest.mark.parametrize("stored", ["bfloat16", "float16"])
def test_sixteen_bit_sources_can_be_widened(molmo: Path, tmp_path: Path, stored: str) -> None:
    """Mapped tensors lie at odd places, and kernels round by alignment: both gates must not mistake that."""
    export(molmo, tmp_path / "source", Knobs(dtype=stored), onnx=False, verify=False)
    knobs = Knobs(k=2, keep=(0, 1, 3), dtype="float32")
    assert set(export(tmp_path / "source", tmp_path / "v", knobs)["verification"]["static_vs_dynamic"].values()) == {
        0.0
    }
    plan = make_plan(read_checkpoint(tmp_path / "source"), knobs)
    checked = blockwise_gate(plan, read_checkpoint(tmp_path / "v"), False, lambda _: None)
    assert set(checked.static_vs_dynamic.values()) == {0.0}


def test_a_model_that_torch_can_not_run_is_refused_with_the_reason(tmp_path: Path) -> None:
    """torch's grouped matrix product needs rows of a multiple of 16 bytes."""
    from transformers import OlmoeConfig, OlmoeForCausalLM

    sizes = {"hidden_size": 36, "intermediate_size": 18, "num_attention_heads": 2, "num_hidden_layers": 2}
    config = OlmoeConfig(vocab_size=64, num_experts=4, num_experts_per_tok=2, pad_token_id=1, eos_token_id=2, **sizes)
    OlmoeForCausalLM(config).save_pretrained(tmp_path / "odd")
    with pytest.raises(VerificationError, match="--no-verify"):
        export(tmp_path / "odd", tmp_path / "v", Knobs(k=1))
    assert not (tmp_path / "v").exists()


def test_missing_golden_outputs_fail_verify(tampered: Path) -> None:
    (tampered / "golden.safetensors").unlink()
    record_sums(tampered)
    with pytest.raises(VerificationError, match="golden"):
        verify_directory(tampered, lambda _: None)
