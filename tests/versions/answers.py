"""Greedy answers of a variant as its users get them: the Auto classes, its own files, nothing of knobcast importable.

usage: answers.py DIRECTORY PICTURE COUNT -> one JSON object on stdout: per prompt the `generated` ids, those of a loop
that has no cache, and how far their logits are apart. Runs under any admitted transformers.
"""

import importlib.abc
import json
import sys
from typing import Any


class Blocked(importlib.abc.MetaPathFinder):
    """No package of the checkout can be imported, wherever it is installed."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> None:
        """Raise ImportError for knobcast's own packages."""
        if fullname.split(".")[0] in ("transform", "export", "importance"):
            raise ImportError(f"{fullname} must not be needed by a variant")


sys.meta_path.insert(0, Blocked())

import torch  # noqa: E402
from PIL import Image  # noqa: E402
from transformers import AutoModelForImageTextToText, AutoProcessor  # noqa: E402

QUESTIONS = ("What colour is the circle?", "How many circles are there in the picture?", "Why?")


def answers(directory: str, picture: str, count: int) -> dict[str, Any]:
    """`count` new ids per prompt; the end token counts as any other, or short answers would decode nothing."""
    model = AutoModelForImageTextToText.from_pretrained(directory, trust_remote_code=True, dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(directory, trust_remote_code=True)
    model.generation_config.eos_token_id = None
    with Image.open(picture) as opened:
        image = opened.convert("RGB")
    colour, number, why = QUESTIONS
    return {
        "text": both(model, processor, [colour], [None], count),
        "picture": both(model, processor, [colour], [image], count),
        "batch": both(model, processor, [why, number, colour], [None, image, image], count),
    }


def both(model: Any, processor: Any, texts: list[str], images: list[Any], count: int) -> dict[str, Any]:
    """`generate` on all rows at once, padded on the right, and each row alone without a cache.

    `difference` is the largest one between their logits: after its answer a trained model ends the text again and
    again, whatever it was told, so equal ids alone would say little.
    """
    batch = processor(text=texts, images=images, padding_side="right")
    found = model.generate(
        **batch, max_new_tokens=count, do_sample=False, output_logits=True, return_dict_in_generate=True
    )
    plain = [loop(model, processor(text=text, images=image), count) for text, image in zip(texts, images, strict=True)]
    theirs = torch.stack([logits for _, logits in plain])  # [B, count, vocabulary]
    return {
        "generated": found.sequences[:, -count:].tolist(),
        "plain": [ids for ids, _ in plain],
        "difference": (torch.stack(found.logits, dim=1) - theirs).abs().max().item(),
    }


@torch.no_grad()
def loop(model: Any, prompt: Any, count: int) -> tuple[list[int], Any]:
    """The likeliest token, `count` times, the whole sequence computed anew for each; ids and logits [count, V]."""
    ids, rest = prompt["input_ids"], {name: prompt[name] for name in prompt if name.startswith("image")}
    rows = []
    for _ in range(count):
        rows.append(model(input_ids=ids, **rest, use_cache=False).logits[0, -1])
        ids = torch.cat((ids, rows[-1].argmax().view(1, 1)), dim=1)
    return ids[0, -count:].tolist(), torch.stack(rows)


if __name__ == "__main__":
    print(json.dumps(answers(sys.argv[1], sys.argv[2], int(sys.argv[3]))))
