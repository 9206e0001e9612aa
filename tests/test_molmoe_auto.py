"""The files that travel: Auto classes where knobcast isn't importable, the processor, and what imports what."""

import ast
import hashlib
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
from transformers import AutoTokenizer

from tests.support.models import small_tokenizer
from tests.support.molmo_parity import CASES, outputs
from tests.support.paths import FIXTURES
from tests.support.pictures import synthetic_image
from transform import molmoe
from transform.molmoe import AUTO_MAP, TRAVELLING_FILES, MolmoEProcessor, processor_config
from transform.molmoe.preprocessing import preprocess

HOME = Path(molmoe.__file__).parent
PUBLISHED = Path(__file__).parents[2] / "shared" / "reference" / "molmo" / "tokenizer"


@pytest.fixture(scope="module")
def variant(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fixtures' checkpoint as a variant directory, with a budget of 432 tokens."""
    directory = tmp_path_factory.mktemp("variant")
    shutil.copy(FIXTURES / "model.safetensors", directory)
    config = json.loads((FIXTURES / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, "auto_map": AUTO_MAP}))
    for name in TRAVELLING_FILES:
        shutil.copy(HOME / name, directory)
    small_tokenizer(config["vocab_size"]).save_pretrained(directory)
    (directory / "processor_config.json").write_text(json.dumps(processor_config(432, "pad", "canvas", 12)))
    return directory


SCRIPT = """
import importlib.util, json, sys
from pathlib import Path

# an editable install puts the checkout on the path, by an entry or by a finder of its own
sys.path = [entry for entry in sys.path if not (Path(entry) / "transform").is_dir()]
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in repr(finder)]

import numpy as np
import torch
from PIL import Image
from transformers import (
    AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor, GenerationConfig
)

assert importlib.util.find_spec("transform") is None, "knobcast must not be importable here"
directory, out = sys.argv[1:]
model, info = AutoModelForImageTextToText.from_pretrained(
    directory, trust_remote_code=True, dtype=torch.float32, output_loading_info=True
)
processor = AutoProcessor.from_pretrained(directory, trust_remote_code=True)
config = AutoConfig.from_pretrained(directory, trust_remote_code=True)
image = (np.arange(330 * 540 * 3) % 251).astype(np.uint8).reshape(330, 540, 3)
batch = processor(text=["what is this?", "this?"], images=[image, None])
ids = model.generate(**batch, max_new_tokens=4, do_sample=False)
text = processor(text="what is this?")
# a published Molmo program, word for word but for stop_strings, which transformers can't look up among whole words
processor = AutoProcessor.from_pretrained(directory, trust_remote_code=True, dtype="auto", device_map="auto")
published = AutoModelForCausalLM.from_pretrained(directory, trust_remote_code=True, dtype=torch.float32)
inputs = processor.process(images=[Image.fromarray(image)], text="what is this?")
inputs = {k: v.to(published.device).unsqueeze(0) for k, v in inputs.items()}
output = published.generate_from_batch(
    inputs,
    GenerationConfig(max_new_tokens=4),
    tokenizer=processor.tokenizer
)
generated_tokens = output[0, inputs["input_ids"].size(1):]
generated_text = processor.tokenizer.decode(generated_tokens, skip_special_tokens=True)
one = processor(text="what is this?", images=image)
ours = model.generate(**one, max_new_tokens=4, do_sample=False)[0, one["input_ids"].shape[1]:]
assert type(published) is type(model)
assert generated_tokens.tolist() == ours.tolist() and len(ours) > 0
model.save_pretrained(out + "/saved")
processor.save_pretrained(out + "/saved")
again = AutoModelForImageTextToText.from_pretrained(out + "/saved", trust_remote_code=True, dtype=torch.float32)
processor = AutoProcessor.from_pretrained(out + "/saved", trust_remote_code=True)
assert processor.vision_tokens == 432
same = torch.equal(again(**text).logits, model(**text).logits)
print(json.dumps({
    "problems": sum(len(info[key]) for key in ("missing_keys", "unexpected_keys", "mismatched_keys")),
    "classes": [type(thing).__name__ for thing in (config, model, processor)],
    "module": type(model).__module__.split(".")[0],
    "shapes": {name: list(value.shape) for name, value in batch.items()},
    "ids": ids[:, -4:].tolist(), "same": same, "keys": sorted(info),
}))
"""


def test_auto_classes_without_knobcast(variant: Path, tmp_path: Path) -> None:
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    env |= {"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    moved = tmp_path / "elsewhere" / "model"
    shutil.copytree(variant, moved)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(moved), str(tmp_path)],
        cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["problems"] == 0
    assert found["classes"] == ["MolmoEConfig", "MolmoEForConditionalGeneration", "MolmoEProcessor"]
    assert found["module"] == "transformers_modules"
    assert found["shapes"]["images"] == [2, 3, 576, 588]
    assert found["same"]
    saved = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert saved["model_type"] == "molmo"
    # the same from here, with knobcast's own classes
    from transform.load import load_model

    image = (np.arange(330 * 540 * 3) % 251).astype(np.uint8).reshape(330, 540, 3)
    processor = MolmoEProcessor.from_pretrained(variant)
    batch = processor(text=["what is this?", "this?"], images=[image, None])
    ids = load_model(variant).generate(**batch, max_new_tokens=4, do_sample=False)
    assert ids[:, -4:].tolist() == found["ids"]


def test_travelling_files_are_complete_and_import_only_each_other() -> None:
    assert set(TRAVELLING_FILES) == {path.name for path in HOME.glob("*.py")} - {"__init__.py"}
    own = {name.removesuffix(".py") for name in TRAVELLING_FILES}
    for name in TRAVELLING_FILES:
        for node in ast.walk(ast.parse((HOME / name).read_text())):
            if isinstance(node, ast.ImportFrom) and node.level:
                assert node.level == 1
                assert node.module in own
            elif isinstance(node, ast.Import | ast.ImportFrom):
                modules = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""]
                assert not {m.split(".")[0] for m in modules} & {"transform", "export", "importance"}
    for where in AUTO_MAP.values():
        assert where.split(".")[0] in own


def test_the_package_and_tiling_import_no_torch() -> None:
    code = (
        "import sys, transform.molmoe, transform.molmoe.tiling\n"
        "transform.molmoe.processor_config(432, 'pad', 'canvas', 12)\n"
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=HOME.parents[1]).returncode == 0
    with pytest.raises(AttributeError, match="has no attribute 'Nothing'"):
        _ = molmoe.Nothing


# --- the processor ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def processor() -> Any:
    return MolmoEProcessor(small_tokenizer(250), vocab_size=250)


def test_prompt_format(processor: Any) -> None:
    row = processor(text="what is this?")
    words = [249, 10, 12, 13, 14, 15, 16, 11, 12]  # <eos> as BOS, User : what is this ? Assistant :
    assert row["input_ids"].tolist() == [words]
    assert sorted(row) == ["attention_mask", "input_ids"]
    assert processor(text="what is this?", raw=True)["input_ids"].tolist() == [[249, 13, 14, 15, 16]]
    assert processor.decode(row["input_ids"][0, 1:]) == "User : what is this ? Assistant :"


def test_image_token_ids() -> None:
    assert MolmoEProcessor(small_tokenizer(250), vocab_size=250).image_token_ids == (250, 251, 252, 253)
    assert MolmoEProcessor(small_tokenizer(250, image_tokens=True)).image_token_ids == (263, 262, 261, 260)
    with pytest.raises(ValueError, match="Pass vocab_size"):
        _ = MolmoEProcessor(small_tokenizer(250)).image_token_ids


@pytest.mark.parametrize("side", ["right", "left"])
def test_batches(processor: Any, side: str) -> None:
    images = [synthetic_image(300, 280, 0), None, synthetic_image(540, 330, 1)]
    texts = ["what is this?", "this?", "this is this?"]
    batch = processor(texts, images, padding_side=side)
    length = batch["input_ids"].shape[1]
    for b, (text, image) in enumerate(zip(texts, images, strict=True)):
        alone = processor(text, image)
        n = alone["input_ids"].shape[1]
        valid = slice(0, n) if side == "right" else slice(length - n, length)
        assert batch["input_ids"][b, valid].tolist() == alone["input_ids"][0].tolist()
        assert batch["attention_mask"][b].sum() == batch["attention_mask"][b, valid].sum() == n
        if image is None:
            assert all((batch[name][b] == -1).all() for name in ("images", "image_masks", "image_input_idx"))
            continue
        crops = alone["images"].shape[1]
        assert torch.equal(batch["images"][b, :crops], alone["images"][0])
        assert (batch["images"][b, crops:] == -1).all()
        index = batch["image_input_idx"][b]
        assert (batch["input_ids"][b, index[index >= 0].long()] == 252).all()
        assert (index >= 0).sum() == (batch["input_ids"][b] == 252).sum()


def test_budgets(processor: Any) -> None:
    fixed = MolmoEProcessor(small_tokenizer(250), vision_tokens=720, vocab_size=250)
    square, image = synthetic_image(300, 280, 0), synthetic_image(640, 480, 0)
    assert processor("this?", image)["images"].shape[1] == 7  # stock: 2x3 tiles
    assert fixed("this?", square)["images"].shape[1] == 5
    assert fixed("this?", square, tokens=288)["images"].shape[1] == 2
    assert fixed("this?", image, tokens="low")["images"].shape[1] <= 4
    with pytest.raises(ValueError, match="neighbours are 288 and 432"):
        fixed("this?", image, tokens=300)


def test_refusals(processor: Any) -> None:
    image = synthetic_image(300, 280, 0)
    with pytest.raises(ValueError, match="1 prompts and 2 images"):
        processor("this?", [image, image])
    with pytest.raises(ValueError, match="a prompt must be given"):
        processor(images=image)
    with pytest.raises(ValueError, match="padding_side must be"):
        processor("this?", padding_side="up")


def test_numpy_and_settings(processor: Any, tmp_path: Path) -> None:
    image = synthetic_image(300, 280, 0)
    batch = processor("this?", image, return_tensors="np")
    assert isinstance(batch["images"], np.ndarray)
    kept: dict[str, Any] = {"vision_tokens": 288, "resize": "fill", "rule": "linear", "max_crops": 4}
    MolmoEProcessor(small_tokenizer(250), **kept, vocab_size=250).save_pretrained(tmp_path)
    again = MolmoEProcessor.from_pretrained(tmp_path)
    assert {name: getattr(again, name) for name in kept} == kept
    ours = again("this?", image)["images"][0].numpy()
    assert np.array_equal(ours, preprocess(image, 288, resize="fill", rule="linear").images)


RECORDS = json.loads((FIXTURES / "prompts.json").read_text())["records"]


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason="the published tokenizer isn't beside this checkout")
@pytest.mark.parametrize("record", RECORDS, ids=lambda r: r["text"][:20] or "empty")
def test_published_tokenizer(record: dict[str, Any]) -> None:
    published = MolmoEProcessor(AutoTokenizer.from_pretrained(PUBLISHED))
    assert published(record["text"])["input_ids"][0].tolist() == record["input_ids_text_only"]
    theirs = record.get("input_ids_with_image_300x280_seed5")
    if theirs is None:
        return
    ours = published(record["text"], synthetic_image(300, 280, 5))
    ids = ours["input_ids"][0].numpy()
    assert len(ids) == theirs["length"]
    assert ids[: len(theirs["head"])].tolist() == theirs["head"]
    assert ids[-len(theirs["tail"]) :].tolist() == theirs["tail"]
    assert hashlib.sha256(ids.astype("<i4").tobytes()).hexdigest() == theirs["sha256_int32"]
    index = ours["image_input_idx"][0].numpy()
    assert hashlib.sha256(index.astype("<i4").tobytes()).hexdigest() == theirs["image_input_idx_sha256_int32"]
    for name, shape in theirs["shapes"].items():
        assert list(ours[name].shape[1:]) == shape
        assert str(ours[name].dtype) == theirs["dtypes"][name]


def test_the_processor_feeds_the_reference_case(variant: Path) -> None:
    from transform.load import load_model

    case = next(name for name, record in CASES.items() if record["kind"] == "end_to_end")
    width, height = CASES[case]["image_size_wh"]
    image = synthetic_image(width, height, CASES[case]["image_seed"])
    batch = MolmoEProcessor.from_pretrained(variant)(
        "this?", image, tokens=144 * CASES[case]["num_crops_incl_global"][0]
    )
    with torch.no_grad():
        ours = load_model(variant).get_image_features(batch["images"], batch["image_masks"])
    torch.testing.assert_close(ours, outputs()[f"{case}/image_features"], rtol=0, atol=5e-4)
