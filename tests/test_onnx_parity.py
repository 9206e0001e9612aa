"""The emitted MolmoE graphs against the reference's numbers, every case in every variant."""

import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from safetensors.numpy import load_file
from safetensors.torch import load_file as load_torch_file
from safetensors.torch import save_file as save_torch_file

from export.graph.emit import emit_graphs
from tests.support.graphs import empty_cache, greedy, session, step
from tests.support.molmo_parity import VARIANTS, crops_of, formula_crops, kept_features, knobs_of
from tests.support.paths import FIXTURES
from tests.support.variants import retell, write_variant
from transform.arrays import Array
from transform.forms import REFERENCE
from transform.read import read_checkpoint

CASES = json.loads((FIXTURES / "parity_cases.json").read_text())
INPUTS = load_file(FIXTURES / "parity_inputs.safetensors")
OUTPUTS = load_file(FIXTURES / "parity_outputs.safetensors")


@pytest.fixture(scope="module")
def variants(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("variants")
    return {name: write_variant(FIXTURES, root / name, *knobs_of(name)) for name in VARIANTS}


@pytest.fixture(scope="module")
def features(variants: dict[str, Path]) -> Callable[[str], Array]:
    """Kept image features of a case, row after row; the tower is the same in all variants."""
    vision = session(variants["full"], "vision.onnx")
    width = vision.get_outputs()[0].shape[1]

    @cache
    def of(case: str) -> Array:
        if CASES["cases"][case]["kind"] == "text":
            return np.zeros((0, width), np.float32)
        crops, masks, index = crops_of(case), INPUTS[f"{case}/image_masks"], INPUTS[f"{case}/image_input_idx"]
        rows = [
            vision.run(None, {"images": c, "image_masks": m, "feature_index": kept_features(i)})[0]
            for c, m, i in zip(crops, masks, index, strict=True)
            if (i >= 0).any()
        ]
        return np.concatenate(rows)

    return of


@pytest.fixture(scope="module")
def sessions(variants: dict[str, Path]) -> Callable[[str], tuple[Any, Any]]:
    """embedding.onnx and text.onnx of a variant, opened once."""

    @cache
    def of(variant: str) -> tuple[Any, Any]:
        return session(variants[variant], "embedding.onnx"), session(variants[variant], "text.onnx")

    return of


@pytest.mark.parametrize("case", [c for c, record in CASES["cases"].items() if record["kind"] != "text"])
def test_image_features_equal_the_reference(case: str, features: Callable[[str], Array]) -> None:
    theirs = []
    for row, index in zip(OUTPUTS[f"{case}/image_features"], INPUTS[f"{case}/image_input_idx"], strict=True):
        theirs.append(row.reshape(-1, row.shape[-1])[kept_features(index)])
    np.testing.assert_allclose(features(case), np.concatenate(theirs), rtol=0, atol=5e-4)


@pytest.mark.parametrize("case", CASES["cases"])
def test_logits_and_greedy_ids_equal_the_reference(
    case: str, sessions: Callable[[str], tuple[Any, Any]], features: Callable[[str], Array]
) -> None:
    for variant in CASES["cases"][case]["variants"]:
        embedding, text = sessions(variant)
        none = np.zeros((0, embedding.get_outputs()[0].shape[2]), np.float32)

        def embed(ids: Array, image_features: Array = none, embedding: Any = embedding) -> dict[str, Array]:
            return {"inputs_embeds": embedding.run(None, {"input_ids": ids, "image_features": image_features})[0]}

        ids = INPUTS[f"{case}/input_ids"]
        theirs_ids = OUTPUTS[f"{case}/{variant}/greedy"]
        mask = (ids >= 0).astype(np.int64)
        ours_ids, logits = greedy(text, embed, embed(ids, features(case)), mask, theirs_ids.shape[1])
        places = INPUTS[f"{case}/logit_positions"].astype(np.int64)
        ours = np.take_along_axis(logits, places[:, :, None], axis=1)
        theirs = OUTPUTS[f"{case}/{variant}/logits_sel"]
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4, err_msg=variant)
        np.testing.assert_array_equal(ours_ids, theirs_ids, err_msg=variant)


def test_embeddings_equal_the_reference(
    sessions: Callable[[str], tuple[Any, Any]], features: Callable[[str], Array]
) -> None:
    embedding, _ = sessions("full")
    for name in [n for n in OUTPUTS if n.endswith("/full/embeddings")]:
        case = name.split("/")[0]
        given = {"input_ids": INPUTS[f"{case}/input_ids"], "image_features": features(case)}
        np.testing.assert_allclose(embedding.run(None, given)[0], OUTPUTS[name], rtol=0, atol=5e-4)


def test_more_patch_tokens_than_features_are_embedded_as_they_are(variants: dict[str, Path]) -> None:
    # A model may generate a patch token: it has no feature then.
    embedding = session(variants["full"], "embedding.onnx")
    patch = CASES["special_token_ids"]["image_patch"]
    width = embedding.get_outputs()[0].shape[2]
    ids = np.array([[patch, 3, patch], [-1, patch, 0]])
    plain = embedding.run(None, {"input_ids": ids, "image_features": np.zeros((0, width), np.float32)})[0]
    rows = np.arange(2 * width, dtype=np.float32).reshape(2, width)
    ours = embedding.run(None, {"input_ids": ids, "image_features": rows})[0]
    expected = plain.copy()
    expected[0, 0] += rows[0]
    expected[0, 2] += rows[1]
    np.testing.assert_array_equal(ours, expected)
    np.testing.assert_array_equal(plain[1, 0], plain[1, 2])  # -1 is embedded as id 0


@pytest.mark.parametrize("padding", ["left", "holes"])
def test_other_masks_equal_the_unpadded_sequence(variants: dict[str, Path], padding: str) -> None:
    """Where the padding sits must not matter; a fully masked row must not become NaN."""
    embedding, text = (session(variants["k2_keep013"], name) for name in ("embedding.onnx", "text.onnx"))
    ids = INPUTS["text_only/input_ids"]
    n = ids.shape[1]
    gaps = np.zeros(n, np.int64) if padding == "left" else np.arange(n) % 3 // 2
    places = np.arange(n) + np.cumsum(gaps) + (5 if padding == "left" else 0)
    wide = np.full((1, places[-1] + 1), -1, np.int64)
    wide[:, places] = ids
    none = np.zeros((0, embedding.get_outputs()[0].shape[2]), np.float32)

    def embed(row: Array) -> dict[str, Array]:
        return {"inputs_embeds": embedding.run(None, {"input_ids": row, "image_features": none})[0]}

    theirs, theirs_logits = greedy(text, embed, embed(ids), np.ones_like(ids), 4)
    ours, logits = greedy(text, embed, embed(wide), (wide >= 0).astype(np.int64), 4)
    assert np.isfinite(logits).all()
    np.testing.assert_allclose(logits[:, places], theirs_logits, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(ours, theirs)


def test_several_tokens_with_a_cache_equal_one_prefill(variants: dict[str, Path]) -> None:
    embedding, text = (session(variants["k4212"], name) for name in ("embedding.onnx", "text.onnx"))
    ids = INPUTS["text_only/input_ids"]
    none = np.zeros((0, embedding.get_outputs()[0].shape[2]), np.float32)
    x = embedding.run(None, {"input_ids": ids, "image_features": none})[0]
    whole, _ = step(text, {"inputs_embeds": x}, np.ones_like(ids), empty_cache(text, 1))
    cache, parts = empty_cache(text, 1), []
    for start, stop in ((0, 5), (5, 6), (6, ids.shape[1])):
        logits, cache = step(text, {"inputs_embeds": x[:, start:stop]}, np.ones((1, stop), np.int64), cache)
        parts.append(logits)
    np.testing.assert_allclose(np.concatenate(parts, axis=1), whole, rtol=0, atol=1e-5)


def test_crop_with_the_padding_marker_has_no_tower_features(variants: dict[str, Path]) -> None:
    vision = session(variants["full"], "vision.onnx")
    crops, masks = formula_crops(3, 2), np.ones((2, 576), np.float32)
    index = np.arange(288, dtype=np.int64)
    plain = vision.run(None, {"images": crops, "image_masks": masks, "feature_index": index})[0]
    crops[1, 17, 3] = -1.0
    marked = vision.run(None, {"images": crops, "image_masks": masks, "feature_index": index})[0]
    np.testing.assert_array_equal(marked[:144], plain[:144])
    assert np.ptp(marked[144:], axis=0).max() < 1e-5  # all windows alike: nothing of the image is left
    assert np.ptp(plain[144:], axis=0).max() > 0.1


def test_a_fixed_crop_count_is_fixed_in_the_graph(tmp_path: Path) -> None:
    fixed = session(write_variant(FIXTURES, tmp_path / "fixed", tokens=432), "vision.onnx")
    assert [i.shape[0] for i in fixed.get_inputs()] == [3, 3, "features"]
    given = {"images": formula_crops(1, 2), "image_masks": np.ones((2, 576), np.float32)}
    with pytest.raises(Exception, match="invalid dimensions"):
        fixed.run(None, given | {"feature_index": np.zeros(1, np.int64)})


def test_unused_vision_blocks_are_not_in_the_graph(variants: dict[str, Path]) -> None:
    checkpoint = read_checkpoint(variants["full"])
    blocks = checkpoint.config["vision_backbone"]["image_num_layers"]
    last = max(layer % blocks for layer in checkpoint.config["vit_layers"])
    held = {t.name for t in onnx.load(variants["full"] / "vision.onnx", load_external_data=False).graph.initializer}
    for j in range(blocks):
        assert (checkpoint.name("vision.q.weight", j=j) in held) == (j <= last)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_16_bit_graphs_equal_the_same_weights_in_float32(dtype: torch.dtype, tmp_path: Path) -> None:
    stored = {name: tensor.to(dtype) for name, tensor in load_torch_file(FIXTURES / "model.safetensors").items()}
    variants = []
    for kind, tensors in (("narrow", stored), ("wide", {name: t.float() for name, t in stored.items()})):
        (tmp_path / kind).mkdir()
        save_torch_file(tensors, tmp_path / kind / "model.safetensors")
        shutil.copyfile(FIXTURES / "config.json", tmp_path / kind / "config.json")
        variants.append(write_variant(tmp_path / kind, tmp_path / f"{kind}_variant"))
    results = []
    case = next(c for c, record in CASES["cases"].items() if record["kind"] == "formula_crops")
    for variant in variants:
        vision, embedding, text = (session(variant, name) for name in ("vision.onnx", "embedding.onnx", "text.onnx"))
        index = kept_features(INPUTS[f"{case}/image_input_idx"][0])
        given = {"images": crops_of(case)[0], "image_masks": INPUTS[f"{case}/image_masks"][0], "feature_index": index}
        image = vision.run(None, given)[0]
        ids = INPUTS[f"{case}/input_ids"]
        x = embedding.run(None, {"input_ids": ids, "image_features": image})[0]
        logits, _ = step(text, {"inputs_embeds": x}, np.ones_like(ids), empty_cache(text, 1))
        results.append((image, x, logits))
    for name in ("vision.onnx", "embedding.onnx", "text.onnx"):
        onnx.checker.check_model(str(variants[0] / name), full_check=True)
    for ours, theirs in zip(*results, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["vision.onnx", "embedding.onnx", "text.onnx"])
def test_graphs_are_valid_and_use_ordinary_operators(name: str, variants: dict[str, Path]) -> None:
    path = variants["k2_keep013"] / name
    onnx.checker.check_model(str(path), full_check=True)
    model = onnx.load(path, load_external_data=False)
    assert [(o.domain, o.version <= 21) for o in model.opset_import] == [("", True)]
    assert model.ir_version <= 10


def test_every_weight_of_the_graphs_lies_in_the_checkpoint(variants: dict[str, Path]) -> None:
    tensors = read_checkpoint(variants["keep03"]).tensors
    for name in ("vision.onnx", "embedding.onnx", "text.onnx"):
        for held in onnx.load(variants["keep03"] / name, load_external_data=False).graph.initializer:
            entries = {e.key: e.value for e in held.external_data}
            if entries:
                t = tensors[held.name]
                assert entries == {"location": t.file.name, "offset": str(t.start), "length": str(t.nbytes)}
            else:
                assert len(held.raw_data) <= 8192  # constants of the graph, no weights


def test_same_checkpoint_same_bytes(variants: dict[str, Path], tmp_path: Path) -> None:
    again = emit_graphs(
        read_checkpoint(variants["k4212"]), tmp_path_graphs(variants["k4212"], tmp_path), None, REFERENCE
    )
    for path in again:
        first = Path(shutil.copyfile(variants["k4212"] / path.name, tmp_path / "first.onnx"))
        retell(first, {}, keep=False)  # `emit_graphs` was told nothing to say
        assert path.read_bytes() == first.read_bytes()


def tmp_path_graphs(source: Path, tmp_path: Path) -> Path:
    assert not (source / "tokenizer.json").exists()  # else the patch id would come from it
    return tmp_path


def test_io_json_describes_the_graphs(variants: dict[str, Path]) -> None:
    spec: dict[str, Any] = json.loads((variants["k4212"] / "io.json").read_text())
    config = json.loads((FIXTURES / "config.json").read_text())
    ids = CASES["special_token_ids"]
    assert spec["special_ids"] == {
        "bos": ids["bos"],
        "eos": [ids["eos"]],
        "image_start": ids["image_start"],
        "image_end": ids["image_end"],
        "image_patch": ids["image_patch"],
        "image_column": ids["image_col"],
    }
    assert spec["graphs"]["text.onnx"]["inputs"][:2] == [
        {"name": "inputs_embeds", "dtype": "float32", "shape": ["batch", "sequence", config["d_model"]]},
        {"name": "attention_mask", "dtype": "int64", "shape": ["batch", "total"]},
    ]
    assert [i["name"] for i in spec["graphs"]["vision.onnx"]["inputs"]] == ["images", "image_masks", "feature_index"]


def test_the_patch_token_comes_from_the_tokenizer(tmp_path: Path) -> None:
    from transform.special_tokens import image_token_ids

    checkpoint = read_checkpoint(FIXTURES)
    assert image_token_ids(checkpoint, tmp_path) == tuple(checkpoint.settings.vocab + n for n in range(4))
    tokens = [{"id": 9 - n, "content": t} for n, t in enumerate(("<im_start>", "<im_end>", "<im_patch>", "<im_col>"))]
    (tmp_path / "tokenizer.json").write_text(json.dumps({"added_tokens": tokens}))
    assert image_token_ids(checkpoint, tmp_path) == (9, 8, 7, 6)
