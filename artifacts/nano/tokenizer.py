"""The nano model's own tokenizer: byte-level BPE in the manner of GPT-NeoX, trained on sentences made here.

The corpus is questions and answers about simple pictures, built from word lists, so that it can be published and
rebuilt. Ids follow the released layout: padding is 1, the end of text is the last id of the vocabulary, the image
tokens come right behind it.
"""

import json
from itertools import product
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers, trainers

VOCAB = 744  # all bytes, padding, end of text, and 486 merges
END, PAD = "<|endoftext|>", "<|padding|>"
IMAGE_TOKENS = ("<im_start>", "<im_end>", "<im_patch>", "<im_col>", "<|image|>")

COLOURS = ("red", "green", "blue", "yellow", "black", "white", "orange", "purple", "brown", "grey", "pink")
SHAPES = ("circle", "square", "triangle", "line", "cross", "star", "ring", "arrow", "rectangle", "dot")
COUNTS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
RELATIONS = ("left of", "right of", "above", "below", "inside", "behind", "next to", "in front of")
SIZES = ("small", "large", "tiny", "big")
PLACES = ("top left", "top right", "bottom left", "bottom right", "middle", "top", "bottom", "centre", "corner")
COMMON = (
    "What is in the picture? Answer briefly.",
    "Describe this image. Describe the picture in one sentence.",
    "What can you see in this image? There are several shapes on a white background.",
    "Is there anything else? Yes, there is something. No, there is nothing.",
    "Which of these is larger? The first one. The second one. Both are the same size.",
    "Point to it. Count them all. Read the number. Write only the answer.",
    "How many shapes are there in total? How many colours are used?",
    "Are they the same colour? Do they have the same shape? Do they touch?",
)


def corpus() -> list[str]:
    """The training text; the same lines in the same order every time."""
    lines = [f" User: {line} Assistant: {line}" for line in COMMON] * 4
    for colour, shape in product(COLOURS, SHAPES):
        lines += [
            f" User: What colour is the {shape}? Assistant: The {shape} is {colour}.",
            f" User: Is there a {colour} {shape} in the picture? Assistant: Yes. There is a {colour} {shape}.",
            f" User: Which shape is {colour}? Assistant: The {shape}. {colour.capitalize()} {shape}s.",
        ]
    for (n, count), shape in product(enumerate(COUNTS), SHAPES):
        lines.append(f" User: How many {shape}s are there? Assistant: There are {count} {shape}s. {n}")
    for relation, (shape, other) in product(RELATIONS, zip(SHAPES, reversed(SHAPES), strict=True)):
        lines.append(f" User: What is {relation} the {shape}? Assistant: The {other} is {relation} the {shape}.")
    for size, place, shape in product(SIZES, PLACES, SHAPES[:4]):
        lines.append(f" User: Where is the {size} {shape}? Assistant: In the {place} of the image.")
    lines += [f" User: What number is shown? Assistant: {n} Number: {n * 7 % 100}, {n * 13 % 1000}" for n in range(100)]
    return lines


def train() -> dict[str, Any]:
    """The content of tokenizer.json."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB - 2, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    learnt = tokenizer.get_vocab()
    text = sorted(learnt, key=learnt.__getitem__)
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    if len(text) != VOCAB - 2:
        raise ValueError(f"the corpus must give {VOCAB - 2} tokens, it gives {len(text)}. Add sentences.")
    vocabulary = [text[0], PAD, *text[1:], END]
    specials = {PAD: 1, END: VOCAB - 1} | {token: VOCAB + n for n, token in enumerate(IMAGE_TOKENS)}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_added(token, n) for token, n in specials.items()],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: n for n, token in enumerate(vocabulary)},
            "merges": merges,
        },
    }


def write(directory: Path) -> None:
    """Train and write the three files that AutoTokenizer reads."""
    trained = train()
    files = {
        "tokenizer.json": trained,
        "tokenizer_config.json": {
            "add_bos_token": False,
            "add_eos_token": False,
            "add_prefix_space": False,
            "additional_special_tokens": list(IMAGE_TOKENS),
            "bos_token": None,
            "clean_up_tokenization_spaces": False,
            "eos_token": END,
            "model_max_length": 4096,
            "pad_token": PAD,
            "tokenizer_class": "PreTrainedTokenizerFast",
            "unk_token": None,
        },
        "special_tokens_map.json": {
            "additional_special_tokens": list(IMAGE_TOKENS),
            "eos_token": END,
            "pad_token": PAD,
        },
    }
    for name, content in files.items():
        text = json.dumps(content, indent=1, ensure_ascii=False)
        (directory / name).write_text(text + "\n", encoding="utf-8")


def _added(token: str, number: int) -> dict[str, Any]:
    return {
        "id": number,
        "content": token,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": True,
    }
