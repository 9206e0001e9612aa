"""Quantised weights: nearest codes, the layout of the kernels, the same values whoever reads them, no other file."""

import json
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import load_file, save_file

import transform.load
import transform.packed
from tests.support.full_size import SIZES, released_config, write_sparse_molmoe
from tests.support.paths import ROOT
from transform.arrays import Array
from transform.checkpoint import Checkpoint
from transform.depth import drop_blocks
from transform.dtype import cast
from transform.errors import CheckpointError, WriteError
from transform.forms import form_named
from transform.load import load_model, load_view, load_with_report
from transform.packed import dequantise, fake_quantised, write_packed
from transform.packed_layout import FILES, Packing, packed_bytes, packing_for
from transform.packing import decode, encode
from transform.read import read_checkpoint
from transform.sizes import parameters, weight_bytes
from transform.top_k import set_top_k
from transform.write import write_checkpoint

NANO = ROOT / "artifacts" / "molmoe-nano"


def every(source: Checkpoint, bits: int, block: int = 32) -> Packing:
    """Decoder and tables in `bits`, the vision side in 8."""
    return Packing(bits, block, bits, 8 if source.architecture.modality.sees_images else None)


def packed(source: Checkpoint, target: Path, bits: int, block: int = 32) -> Checkpoint:
    target.mkdir()
    write_packed(source, target, every(source, bits, block))
    return read_checkpoint(target)


@pytest.fixture(scope="module")
def sources(molmo: Path, olmoe: Path) -> dict[str, Path]:
    return {"molmo": molmo, "olmoe": olmoe, "nano": NANO}


# Arithmetic


@pytest.mark.parametrize("dtype", ["<f4", "<f2"])
@pytest.mark.parametrize("bits", [4, 8])
@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), exponent=st.integers(-30, 12), columns=st.integers(1, 100))
def test_every_code_is_the_nearest(bits: int, dtype: str, seed: int, exponent: int, columns: int) -> None:
    """Half a scale, but for the one side that has a code less: there at most a whole one."""
    rng = np.random.default_rng(seed)
    values = (rng.standard_normal((3, columns)) * 2.0**exponent).astype(np.float32)
    values[rng.random(values.shape) < 0.2] = 0
    codes, scales = encode(values, bits, 16, dtype, "w")
    restored = decode(codes, scales, bits, columns)
    scale = np.repeat(scales.astype(np.float64), 16, axis=1)[:, :columns]
    error = np.abs(restored.astype(np.float64) - values)
    with np.errstate(divide="ignore", invalid="ignore"):
        last = values / scale > 2 ** (bits - 1) - 0.5
    assert (error <= np.where(last, 1.0, 0.5) * np.abs(scale) * (1 + 2.0**-20) + 0.05 * last * np.abs(scale)).all()
    assert (restored[values == 0] == 0).all()


def test_low_bits_come_first_and_all_codes_are_used() -> None:
    values = np.arange(-8, 8, dtype=np.float32)[None] * 3
    codes, scales = encode(values, 4, 16, "<f4", "w")
    assert codes.tobytes() == bytes.fromhex("1032547698badcfe")
    assert scales.tolist() == [[3.0]]
    flipped, scales = encode(-values, 4, 16, "<f4", "w")
    assert (flipped.tobytes(), scales.tolist()) == (codes.tobytes(), [[-3.0]])


@pytest.mark.parametrize(("bits", "zero"), [(4, 0x88), (8, 0x80)])
def test_blocks_of_zeros_and_padding_are_zeros(bits: int, zero: int) -> None:
    codes, scales = encode(np.zeros((2, 40), np.float32), bits, 32, "<f2", "w")
    assert (codes == zero).all() and (scales == 0).all()
    assert codes.shape == (2, 2, 32 * bits // 8)
    ones, _ = encode(np.ones((2, 40), np.float32), bits, 32, "<f2", "w")
    assert (ones[:, 1, 8 * bits // 8 :] == zero).all()


def test_the_smallest_values_are_not_lost_to_the_scales_type() -> None:
    """2^-25 / 8 is below float16: the smallest scale there is stands in, and the value is kept to half of it."""
    values = np.full((1, 16), 2.0**-22, np.float32)
    codes, scales = encode(values, 4, 16, "<f2", "w")
    assert np.abs(scales) == np.float16(2.0**-24)
    assert np.array_equal(decode(codes, scales, 4, 16), values)


def test_values_beyond_the_scales_type_are_refused() -> None:
    with pytest.raises(CheckpointError, match=r"w: its 4-bit blocks have float16 scales, .* up to 524032; .* 1e\+06"):
        encode(np.full((1, 16), 1e6, np.float32), 4, 16, "<f2", "w")
    encode(np.full((1, 16), 1e6, np.float32), 8, 16, "<f2", "w")
    encode(np.full((1, 16), 3e38, np.float32), 4, 16, "<f4", "w")


# The file


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("name", ["molmo", "olmoe", "nano"])
def test_names_shapes_and_bytes_are_accounted_for(
    sources: dict[str, Path], name: str, bits: int, tmp_path: Path
) -> None:
    source = read_checkpoint(sources[name])
    read: list[int] = []
    (tmp_path / "v").mkdir()
    packing = every(source, bits)
    write_packed(source, tmp_path / "v", packing, progress=read.append)
    written = read_checkpoint(tmp_path / "v")
    assert {n: t.shape for n, t in written.tensors.items()} == {n: t.shape for n, t in source.tensors.items()}
    assert sum(read) == sum(t.nbytes for t in source.tensors.values())
    held = load_file(tmp_path / "v" / FILES[bits])
    assert weight_bytes(written) == sum(a.nbytes for a in held.values()) == packed_bytes(source, packing)
    assert parameters(written) == parameters(source)
    about = {"quant_method": "knobcast", "bits": bits, "block_size": 32, "embedding_bits": bits}
    about |= {"scale_dtype": "float16"}
    about |= {"vision_bits": 8} if source.architecture.modality.sees_images else {}
    assert json.loads((tmp_path / "v" / "config.json").read_text()) == {**source.config, "quantization_config": about}
    assert all(t.start % 4 == 0 for t in written.tensors.values())
    for plain in (t for t in written.tensors.values() if t.pack is None):
        origin = source.tensors[plain.name]
        assert read_bytes(plain) == read_bytes(origin)


def read_bytes(tensor: Any) -> bytes:
    with tensor.file.open("rb") as file:
        file.seek(tensor.start)
        return bytes(file.read(tensor.nbytes))


@pytest.mark.parametrize("bits", [4, 8])
def test_experts_alternate_gate_and_up(molmo: Path, tmp_path: Path, bits: int) -> None:
    source = read_checkpoint(molmo)
    written = packed(source, tmp_path / "v", bits)
    held = load_file(tmp_path / "v" / FILES[bits])
    floats = load_file(molmo / "model.safetensors")
    codes, scales = held["blocks.2.experts.gate_up.codes"], held["blocks.2.experts.gate_up.scales"]
    assert codes.shape == (8, 64, 64 * bits // 8) and scales.shape == (8, 64, 2) and scales.dtype == np.float16
    for turn, part in enumerate(("gate", "up")):
        name = source.name(f"expert.{part}", 2, 5)
        ours = decode(codes[5, turn::2], scales[5, turn::2], bits, 64)
        assert np.array_equal(ours, dequantise(written.tensors[name]))
        assert np.abs(ours - floats[name]).max() <= np.abs(scales[5]).max()
    pack_of = [written.tensor(f"expert.{part}", 2, e).pack for part in ("gate", "up") for e in range(8)]
    assert len({(p.codes, p.scales) for p in pack_of if p}) == 1
    down = held["blocks.2.experts.down.codes"]
    assert down.shape == (8, 64, 32 * bits // 8)


@pytest.mark.parametrize(
    ("name", "bits", "dtype"),
    [
        ("molmo", 4, "source"),
        ("olmoe", 8, "source"),
        ("nano", 4, "source"),
        ("olmoe", 4, "bfloat16"),
        ("molmo", 8, "bfloat16"),
    ],
)
def test_loaded_values_equal_those_of_the_source_quantised_at_run_time(
    sources: dict[str, Path], tmp_path: Path, name: str, bits: int, dtype: str
) -> None:
    source = read_checkpoint(sources[name])
    written = packed(cast(source, dtype), tmp_path / "v", bits)
    expected = dict(fake_quantised(cast(source, dtype), every(source, bits)))
    assert expected.keys() == {n for n, t in written.tensors.items() if t.pack is not None}
    assert all(np.array_equal(dequantise(written.tensors[n]), make()) for n, make in expected.items())
    static, report = load_with_report(tmp_path / "v")
    assert report.clean
    view, _ = load_view(source, "float32" if dtype == "source" else dtype, packed=every(source, bits))
    ours, theirs = static.state_dict(), view.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[n], theirs[n]) for n in ours)
    assert not torch.equal(load_model(sources[name]).state_dict()["lm_head.weight"], ours["lm_head.weight"])
    kinds = {t.dtype for t in written.tensors.values()} - {f"I{bits}", "I8"}
    assert kinds == ({"BF16"} if dtype == "bfloat16" else {t.stored for t in source.tensors.values()})


def test_a_loaded_variant_knows_what_ends_an_answer(olmoe: Path, tmp_path: Path) -> None:
    packed(read_checkpoint(olmoe), tmp_path / "v", 4)
    model, theirs = load_model(tmp_path / "v"), load_model(olmoe)
    assert model.generation_config.eos_token_id == theirs.generation_config.eos_token_id == 2
    ids = torch.arange(5)[None]
    assert model.generate(ids, max_new_tokens=3, do_sample=False).shape == (1, 8)


@pytest.mark.parametrize("name", ["molmo", "olmoe"])
def test_passes_work_on_packed_checkpoints(sources: dict[str, Path], name: str, tmp_path: Path) -> None:
    """Dropping then packing equals packing then dropping."""
    source = read_checkpoint(sources[name])
    whole = set_top_k(drop_blocks(packed(source, tmp_path / "whole", 4), (0, 3)), 2)
    part = packed(set_top_k(drop_blocks(source, (0, 3)), 2), tmp_path / "part", 4)
    assert whole.settings == part.settings
    assert weight_bytes(whole) == weight_bytes(part)
    ours, theirs = (load_view(c)[0].state_dict() for c in (whole, part))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[n], theirs[n]) for n in ours)


@pytest.mark.parametrize("bits", [4, 8])
def test_variants_of_earlier_versions_stay_as_they_are(olmoe: Path, tmp_path: Path, bits: int) -> None:
    """Floats in the table, float32 scales of matrices, and a config that says neither."""
    earlier = Packing(bits, scales="float32")
    (tmp_path / "v").mkdir()
    write_packed(read_checkpoint(olmoe), tmp_path / "v", earlier)
    old = read_checkpoint(tmp_path / "v")
    assert old.config["quantization_config"] == {"quant_method": "knobcast", "bits": bits, "block_size": 32}
    (tmp_path / "part").mkdir()
    write_packed(set_top_k(drop_blocks(old, (0, 2)), 2), tmp_path / "part", earlier)
    part, held = read_checkpoint(tmp_path / "part"), load_file(tmp_path / "part" / FILES[bits])
    scales = {n: a.dtype for n, a in held.items() if n.endswith(".scales")}
    assert {scales[n] for n in scales if not n.startswith("blocks.")} == {np.dtype(np.float32)}
    assert part.tensor("embedding").pack is None
    assert np.array_equal(dequantise(part.tensor("attention.q", 1)), dequantise(old.tensor("attention.q", 2)))


def test_experts_keep_the_sources_spelling(molmo: Path, tmp_path: Path) -> None:
    (tmp_path / "flat").mkdir()
    tensors = load_file(molmo / "model.safetensors")
    flat = {n.replace(".attn.", ".").replace(".mlp.", "."): a for n, a in tensors.items()}
    save_file(flat, tmp_path / "flat" / "model.safetensors")
    (tmp_path / "flat" / "config.json").write_bytes((molmo / "config.json").read_bytes())
    source = read_checkpoint(tmp_path / "flat")
    assert source.tensors.keys() != tensors.keys()
    assert packed(source, tmp_path / "v", 4).tensors.keys() == source.tensors.keys()


# What onnxruntime makes of it


def run(node: Any, inputs: dict[str, Array], weights: dict[str, Array], before: tuple[Any, ...] = ()) -> Array:
    graph = helper.make_graph(
        [*before, node],
        "g",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, a.shape) for n, a in inputs.items()],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(a, n) for n, a in weights.items()],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    ran = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return ran.run(None, inputs)[0]


def relative(ours: Array, theirs: Array) -> float:
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def multiply(x: Array, codes: Array, scales: Array, bits: int, columns: int, block: int) -> Array:
    node = helper.make_node(
        "MatMulNBits", ["x", "codes", "scales"], ["y"], domain="com.microsoft",
        N=len(codes), K=columns, bits=bits, block_size=block, accuracy_level=1,
    )  # fmt: skip
    return run(node, {"x": x}, {"codes": codes, "scales": scales})


@pytest.mark.parametrize("bits", [4, 8])
def test_matmulnbits_reads_the_files_matrices(molmo: Path, tmp_path: Path, bits: int) -> None:
    written = packed(read_checkpoint(molmo), tmp_path / "v", bits)
    held = load_file(tmp_path / "v" / FILES[bits])
    x = np.random.default_rng(0).standard_normal((5, 64)).astype(np.float32)
    for role in ("attention.qkv", "attention.out", "head"):
        tensor = written.tensor(role, 1)
        ours = multiply(x, held[f"{tensor.name}.codes"], held[f"{tensor.name}.scales"].astype(np.float32), bits, 64, 32)
        assert relative(ours, x @ dequantise(tensor).T) <= 1e-5


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("columns", "block"), [(80, 32), (33, 16), (300, 128)])
def test_matmulnbits_reads_padded_blocks(bits: int, columns: int, block: int) -> None:
    rng = np.random.default_rng(1)
    x, values = (rng.standard_normal((n, columns)).astype(np.float32) for n in (3, 24))
    codes, scales = encode(values, bits, block, "<f4", "w")
    ours = multiply(x, codes, scales, bits, columns, block)
    assert relative(ours, x @ decode(codes, scales, bits, columns).T) <= 1e-5


# With 8 bits the kernel rounds activations to int8 too, whatever accuracy it is asked for.
@pytest.mark.parametrize(("bits", "tolerance"), [(4, 1e-5), (8, 2e-2)])
@pytest.mark.parametrize("name", ["molmo", "nano"])
def test_qmoe_reads_the_files_experts(
    sources: dict[str, Path], name: str, tmp_path: Path, bits: int, tolerance: float
) -> None:
    written = packed(read_checkpoint(sources[name]), tmp_path / "v", bits)
    held = load_file(tmp_path / "v" / FILES[bits])
    k, experts = 3, written.settings.experts
    rng = np.random.default_rng(2)
    x = rng.standard_normal((7, written.settings.hidden)).astype(np.float32)
    logits = rng.standard_normal((7, experts)).astype(np.float32)
    names = [f"blocks.1.experts.{stem}.{kind}" for stem in ("gate_up", "down") for kind in ("codes", "scales")]
    node = helper.make_node(
        "QMoE", ["x", "logits", *names[:2], "", *names[2:], *[""] * 7, "weights"], ["y"], domain="com.microsoft",
        k=k, expert_weight_bits=bits, block_size=32, activation_type="swiglu", swiglu_fusion=1,
        activation_alpha=1.0, activation_beta=0.0, normalize_routing_weights=0,
    )  # fmt: skip
    softmax = helper.make_node("Softmax", ["logits"], ["weights"], axis=-1)
    ours = run(node, {"x": x, "logits": logits}, {n: held[n] for n in names}, (softmax,))

    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    theirs = np.zeros_like(x)
    for token, weights in enumerate(probabilities):
        for e in np.argsort(-weights)[:k]:
            gate, up, down = (dequantise(written.tensor(f"expert.{p}", 1, int(e))) for p in ("gate", "up", "down"))
            gated = gate @ x[token]
            theirs[token] += weights[e] * (down @ (gated / (1 + np.exp(-gated)) * (up @ x[token])))
    assert relative(ours, theirs) <= tolerance


# Size


def test_four_bits_take_three_tenths_of_the_released_models_bytes(molmo: Path, tmp_path: Path) -> None:
    source = read_checkpoint(write_sparse_molmoe(tmp_path / "full", released_config(molmo), "BF16"))
    for kept in (source, drop_blocks(source, range(12))):
        for name, most in (("int4", 0.30), ("int8", 0.54)):
            packing = packing_for(form_named(name), kept)
            assert packing is not None
            assert packed_bytes(kept, packing) <= most * weight_bytes(kept)


PACK = """
import re, sys
from pathlib import Path
from transform.read import read_checkpoint
from transform.packed import write_packed
from transform.packed_layout import Packing
write_packed(read_checkpoint(Path(sys.argv[1])), Path(sys.argv[2]), Packing(4, tables=4, vision=8))
assert not {"torch", "onnx"} & sys.modules.keys()
print(re.search(r"VmHWM:\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1])
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's account of a process's memory")
def test_writing_holds_a_few_rows(molmo: Path, tmp_path: Path) -> None:
    """Eight experts and half of the vocabulary at full width, 0.6 GB, in 150 MB."""
    config = released_config(molmo, n_layers=1, moe_num_experts=8)
    sizes = {**SIZES, "E": 8, "V": 25152, "v": 64, "m": 64, "a": 64, "h": 64, "f": 128}
    config |= {"embedding_size": 25152, "vocab_size": 25000}
    config["vision_backbone"] |= {"image_emb_dim": 64, "image_mlp_dim": 64, "image_num_layers": 1}
    source = write_sparse_molmoe(tmp_path / "wide", config, "F32", sizes)
    (tmp_path / "v").mkdir()
    command = [sys.executable, "-c", PACK, str(source), str(tmp_path / "v")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (source / "model.safetensors").stat().st_size > 600_000_000
    assert int(done.stdout) * 1024 <= 150_000_000
    assert weight_bytes(read_checkpoint(tmp_path / "v")) > 90_000_000


def test_how_many_rows_are_held_changes_nothing(molmo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed(read_checkpoint(molmo), tmp_path / "whole", 4)
    monkeypatch.setattr("transform.packed._AT_ONCE", 3 * 64)
    monkeypatch.setattr("transform.packing._AT_ONCE", 2 * 64)
    packed(read_checkpoint(molmo), tmp_path / "rows", 4)
    assert (tmp_path / "rows" / FILES[4]).read_bytes() == (tmp_path / "whole" / FILES[4]).read_bytes()


# Refusals


@pytest.mark.parametrize("from_source", [False, True])
def test_quantised_weights_are_loaded_without_holding_all_of_them_twice(
    molmo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, from_source: bool
) -> None:
    """Dequantised or rounded in memory: matrices that became part of the stacked experts are gone before the next."""
    alive: list[weakref.ref[Any]] = []
    most = 0

    def watched(make: Callable[..., Any], *given: Any) -> Any:
        nonlocal most
        values = make(*given)
        alive.append(weakref.ref(values))
        most = max(most, sum(reference() is not None for reference in alive))
        return values

    source = read_checkpoint(molmo)
    if from_source:
        right = transform.packed._fake_quantise
        monkeypatch.setattr(transform.packed, "_fake_quantise", lambda *given: watched(right, *given))
        load_view(source, packed=every(source, 4))
    else:
        view = packed(source, tmp_path / "v", 4)
        monkeypatch.setattr(transform.load, "dequantise", lambda tensor: watched(dequantise, tensor))
        load_view(view)
    vision = read_checkpoint(molmo).count("j") * 6 + 8  # tower; patches, pooling, projector
    matrices = 4 * 2 + 3 + vision  # attention, head, tables and vision side stay as they are made
    assert len(alive) == matrices + 4 * 3 * 8
    assert most <= matrices + 2 * 8


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused_by_name(molmo: Path, tmp_path: Path, value: float) -> None:
    source = damaged_source(molmo, tmp_path, "model.transformer.blocks.1.mlp.experts.3.up_proj.weight", value)
    with pytest.raises(CheckpointError, match=r"blocks\.1\.mlp\.experts\.3\.up_proj\.weight: .* NaN or infinity"):
        packed(source, tmp_path / "v", 4)
    with pytest.raises(CheckpointError, match="NaN or infinity"):
        for _, make in fake_quantised(source, every(source, 4)):
            make()


def damaged_source(molmo: Path, tmp_path: Path, name: str, value: float) -> Checkpoint:
    (tmp_path / "bad").mkdir()
    tensors = load_file(molmo / "model.safetensors")
    tensors[name][1, 2] = value
    save_file(tensors, tmp_path / "bad" / "model.safetensors")
    (tmp_path / "bad" / "config.json").write_bytes((molmo / "config.json").read_bytes())
    return read_checkpoint(tmp_path / "bad")


def test_experts_too_large_for_float16_scales_are_refused_by_name(molmo: Path, tmp_path: Path) -> None:
    name = "model.transformer.blocks.0.mlp.experts.7.down_proj.weight"
    with pytest.raises(CheckpointError, match=r"experts\.7\.down_proj\.weight: .*float16 scales"):
        packed(damaged_source(molmo, tmp_path, name, 1e6), tmp_path / "v", 4)


def test_widths_that_do_not_fill_blocks_are_refused(molmo: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"block 0: .*down must be a multiple of 64 .* it is 32"):
        packed(read_checkpoint(molmo), tmp_path / "v", 4, block=64)


@pytest.mark.parametrize(("bits", "block", "words"), [(5, 32, "4, 8 bits, got 5"), (4, 48, "values per scale, got 48")])
def test_formats_without_a_kernel_are_refused(molmo: Path, tmp_path: Path, bits: int, block: int, words: str) -> None:
    with pytest.raises(CheckpointError, match=words):
        packed(read_checkpoint(molmo), tmp_path / "v", bits, block)


def test_a_full_disk_is_noticed_before_the_first_byte(
    molmo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("usage", (), {"free": 500_000})  # the source's own 2.2 MB would not be needed
    monkeypatch.setattr("transform.write.shutil.disk_usage", lambda _: usage)
    with pytest.raises(WriteError, match=r"take [0-9,]+ bytes, 500,000 are free"):
        packed(read_checkpoint(molmo), tmp_path / "v", 4)
    assert not list((tmp_path / "v").iterdir())


def test_a_packed_checkpoint_is_final(molmo: Path, tmp_path: Path) -> None:
    written = packed(read_checkpoint(molmo), tmp_path / "v", 4)
    assert cast(written, "source") is written
    refused: tuple[Callable[[], object], ...] = (
        lambda: write_checkpoint(written, tmp_path / "v"),
        lambda: write_packed(written, tmp_path / "v", Packing(8)),
        lambda: cast(written, "bfloat16"),
        lambda: next(fake_quantised(written, Packing(4))),
        lambda: load_view(written, packed=Packing(4)),
    )
    for refuse in refused:
        with pytest.raises(CheckpointError, match=r"(?i)(is I4|to 4 bits).*export (again )?from (its|the) source"):
            refuse()


def test_another_libraries_quantisation_is_not_read_as_ours(molmo: Path, copy_of: Callable[[Path], Path]) -> None:
    directory = copy_of(molmo)
    config = json.loads((directory / "config.json").read_text()) | {"quantization_config": {"quant_method": "gptq"}}
    (directory / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="gptq"):
        read_checkpoint(directory)


GATE_UP = "blocks.1.experts.gate_up"
EXTRA = "model.transformer.wte.new_embedding"
PATCH = "model.vision_backbone.image_vit.patch_embedding.weight"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop("lm_head.weight.codes"), "first missing: 'lm_head.weight.codes'"),
        (lambda t: t.pop(f"{EXTRA}.codes"), "codes of .*new_embedding' are missing or empty"),
        (lambda t: t.pop(f"{EXTRA}.scales"), "first missing: .*new_embedding.scales'"),
        (lambda t: t.update({f"{EXTRA}.codes": t[f"{EXTRA}.codes"][..., :8]}), r"must be U8 of \[128, 2, 16\], it is"),
        (lambda t: t.pop(f"{PATCH}.codes"), "first missing: .*patch_embedding.weight.codes'"),
        (lambda t: t.pop("lm_head.weight.scales"), "first missing: 'lm_head.weight.scales'"),
        (lambda t: t.pop("blocks.0.experts.gate_up.codes"), "codes of .*experts.* are missing or empty"),
        (lambda t: t.pop(f"{GATE_UP}.codes"), f"first missing: '{GATE_UP}.codes'"),
        (lambda t: t.pop("model.transformer.ln_f.weight"), "1 missing, 0 unexpected"),
        (lambda t: t.update({"extra": np.zeros(3, np.float32)}), "first unexpected: 'extra'"),
        (lambda t: t.update({"lm_head.weight": np.zeros((256, 64), np.float32)}), "unexpected: 'lm_head.weight'"),
        (lambda t: t.update({"blocks.9.experts.down.codes": np.zeros((8, 64, 16), np.uint8)}), "first unexpected"),
        (lambda t: t.update({f"{GATE_UP}.scales": np.zeros((8, 64, 2), np.float32)}), "must be F16 of"),
        (lambda t: t.update({f"{GATE_UP}.codes": np.zeros((8, 64, 32), np.int8)}), "must be U8 of"),
        (lambda t: t.update({f"{GATE_UP}.codes": np.zeros((8, 66, 32), np.uint8)}), r"U8 of \[8, 64, 32\], it is"),
        (
            lambda t: t.update({"lm_head.weight.codes": np.zeros((9, 2, 16), np.uint8)}),
            r"codes' must be U8 of \[256, 2, 16\]",
        ),
        (
            lambda t: t.update({"lm_head.weight.codes": np.zeros((), np.uint8)}),
            r"codes' must be U8 of \[256, 2, 16\], it is U8 of \[\]",
        ),
        (lambda t: t.update({"blocks.0.experts.gate_up.codes": np.zeros((0, 0, 0), np.uint8)}), "missing or empty"),
        (lambda t: t.update({"model.transformer.ln_f.weight": np.zeros(64, np.float64)}), "F32, F16 or BF16"),
        (lambda t: t.update({"model.transformer.ln_f.weight": np.zeros(63, np.float32)}), "must have the shape"),
    ],
)
def test_files_that_do_not_fit_the_config_are_refused(
    molmo: Path, tmp_path: Path, change: Callable[[dict[str, Array]], object], words: str
) -> None:
    packed(read_checkpoint(molmo), tmp_path / "v", 4)
    held = load_file(tmp_path / "v" / FILES[4])
    change(held)
    save_file(held, tmp_path / "v" / FILES[4])
    with pytest.raises(CheckpointError, match=words):
        read_checkpoint(tmp_path / "v")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"bits": 8}, "model-int8.safetensors"),
        ({"bits": 3}, "4, 8 bits, got 3"),
        ({"bits": True}, "got True"),
        ({"zero": 7}, r"unknown keys \(zero\)"),
        ({"block_size": 16}, "must be F16 of"),
        ({"block_size": None}, "got None"),
        ({"block_size": 0}, "got 0"),
        ({"embedding_bits": 3}, "4, 8 bits, got 3"),
        ({"vision_bits": 4}, "must be U8 of"),
        ({"scale_dtype": "float32"}, "must be F32 of"),
        ({"scale_dtype": "bfloat16"}, "float16, float32 scales, got 'bfloat16'"),
    ],
)
def test_configs_that_do_not_fit_the_file_are_refused(
    molmo: Path, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    packed(read_checkpoint(molmo), tmp_path / "v", 4)
    config = json.loads((tmp_path / "v" / "config.json").read_text())
    config["quantization_config"] |= changes
    (tmp_path / "v" / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=words):
        read_checkpoint(tmp_path / "v")


def test_other_loaders_refuse_a_packed_directory(olmoe: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    packed(read_checkpoint(olmoe), tmp_path / "v", 4)
    with pytest.raises((OSError, ValueError)):
        AutoModelForCausalLM.from_pretrained(tmp_path / "v", local_files_only=True)


def test_a_shortened_source_is_an_error(molmo: Path, tmp_path: Path, copy_of: Callable[[Path], Path]) -> None:
    source = read_checkpoint(copy_of(molmo))
    file = source.path / "model.safetensors"
    with file.open("r+b") as handle:
        handle.truncate(file.stat().st_size // 2)
    with pytest.raises(CheckpointError, match="ended early"):
        packed(source, tmp_path / "v", 4)
