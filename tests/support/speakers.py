"""Tiny models that say words: the reference's random checkpoint with a tokenizer, and samples about drawn pictures."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast

from tests.support.paths import FIXTURES

VOCAB = 250  # of the reference's checkpoint, whose image tokens lie behind it


def speaking_molmo(directory: Path) -> Path:
    """The reference's MolmoE of 4 blocks and 8 experts, with a word for every id."""
    directory.mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):
        shutil.copyfile(FIXTURES / name, directory / name)
    words = {"<unk>": 0, "<pad>": 1, **{f"w{i}": i for i in range(2, VOCAB - 1)}, "<eos>": VOCAB - 1}
    images = ("<im_col>", "<im_patch>", "<im_end>", "<im_start>")
    model = Tokenizer(WordLevel(words | {n: VOCAB + 10 + i for i, n in enumerate(images)}, unk_token="<unk>"))
    model.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=model, unk_token="<unk>", pad_token="<pad>", eos_token="<eos>", bos_token=None
    ).save_pretrained(directory)
    return directory


def drawn_samples(folder: Path, answers: Sequence[str] = ("w7",), pictures: int = 3) -> Path:
    """A `.jsonl` of two questions about each picture, of two kinds, and one without a picture."""
    folder.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(1).integers(0, 256, (60, 90, 3), np.uint8)
    rows: list[dict[str, object]] = []
    for n in range(pictures):
        Image.fromarray(np.roll(noise, 7 * n, 1) // (n + 1)).save(folder / f"{n}.png")
        for kind, prompt in (("first", "w10 w11 w12"), ("second", "w20")):
            question = {"id": f"{n}-{kind}", "image": f"{n}.png", "prompt": prompt, "kind": kind}
            rows.append({**question, "answers": list(answers)})
    rows.append({"id": "none", "image": None, "prompt": "w30 w31", "answers": list(answers)})
    file = folder / "questions.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    return file
