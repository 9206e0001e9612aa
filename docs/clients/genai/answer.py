"""Answers a prompt, about a picture or none, with a variant of an image model: greedy, on the CPU, in genai.

    python answer.py DIR --prompt "What colour is the circle?" [--image photo.png] [--max-new-tokens 64] [--threads 0]

The text goes to stdout, what can't be done to stderr: the rule, the numbers, the way out. All that is particular to the
variant is read from its io.json and genai_config.json. h, w sides of the picture; s ids of the prompt.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import onnxruntime_genai as og
from PIL import Image, ImageOps
from tokenizers import Tokenizer

FORMS = ("cpu", "int4", "int8")  # cuda's experts have no kernels on a CPU
MARKS = ("image_start", "image_end", "image_patch", "image_column")


def read_io(directory: Path) -> dict:
    """The variant's io.json."""
    try:
        io = json.loads((directory / "io.json").read_text("utf-8"))
    except (OSError, ValueError) as error:
        sys.exit(f"A variant must have an intact io.json: {directory}: {error}. Export it again.")
    if io["form"] not in FORMS:
        sys.exit(f"The form must be one of {', '.join(FORMS)} on a CPU, it is {io['form']}. Export another.")
    if "preprocess.onnx" not in io["graphs"]:
        sys.exit(f"A variant must have preprocess.onnx, of an image model: {directory} has none. Export it again.")
    return io


def pixels(file: Path, rule: dict) -> np.ndarray:
    """uint8 [h, w, 3]: RGB, upright, colours as they are stored; refused by io.json's rule."""
    try:
        with Image.open(file) as opened:
            if opened.mode == "F" or opened.mode.startswith("I"):
                sys.exit(f"Pixels must have 8 bits a colour: {file} is of pillow's mode {opened.mode}. Convert it.")
            image = np.asarray(ImageOps.exif_transpose(opened).convert("RGBA").convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # all that pillow raises
        sys.exit(f"The image must be whole and readable: {file}: {error}. Convert it.")
    short, long = sorted(image.shape[:2])
    size = f"{file} has {image.shape[1]}×{image.shape[0]}"
    if short < rule["least_side"] or long > rule["most_side"]:
        sys.exit(f"A side has {rule['least_side']} to {rule['most_side']} pixels: {size}. Scale it.")
    aspect = rule["aspect_below"]
    if aspect is not None and long >= aspect * short:
        sys.exit(f"The longer side must be less than {aspect} times the shorter one: {size}. Crop it.")
    return image


def prepare(directory: Path, io: dict, tokenizer: Tokenizer, given: argparse.Namespace) -> dict[str, np.ndarray]:
    """What genai takes: input_ids int32 [1, s], and with a picture what vision.onnx takes and how many ids it has."""
    prompt, fed = io["prompt"], {}
    text = prompt["before"] + given.prompt + prompt["after"]
    words = tokenizer.encode(text, add_special_tokens=prompt["add_special_tokens"]).ids
    if own := set(words) & {io["special_ids"][mark] for mark in MARKS}:
        token = tokenizer.id_to_token(min(own))
        sys.exit(f"A prompt must not contain the image's own tokens, such as {token}. Leave them out.")
    parts = {"begin": [prompt["begin"]], "image": [], "text": words}
    if given.image is not None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = given.threads
        cut = onnxruntime.InferenceSession(directory / "preprocess.onnx", options, providers=["CPUExecutionProvider"])
        names = ("images", "image_masks", "feature_index")
        *arrays, parts["image"] = cut.run([*names, "image_ids"], {"image": pixels(given.image, io["picture"])})
        fed = dict(zip(names, arrays, strict=True)) | {"num_image_tokens": np.array([len(arrays[-1])])}
    ids = np.concatenate([parts[part] for part in prompt["order"]]).astype(np.int32)[None]
    if ids.shape[1] >= io["max_positions"]:
        room = f"one of {io['max_positions']} positions, it has {ids.shape[1]} tokens"
        sys.exit(f"A prompt must leave {room}. Shorten it.")
    return {"input_ids": ids, **fed}


def generate(directory: Path, io: dict, fed: dict[str, np.ndarray], most: int, threads: int) -> list[int]:
    """The ids of the answer, without the one that ends it."""
    config = og.Config(str(directory))
    limit = {"session_options": {"intra_op_num_threads": threads}} if threads else {}
    config.overlay(json.dumps({"model": dict.fromkeys(("decoder", "vision", "embedding"), limit)}))
    model = og.Model(config)
    params = og.GeneratorParams(model)
    params.set_search_options(max_length=min(fed["input_ids"].shape[1] + most, io["max_positions"]), do_sample=False)
    generator = og.Generator(model, params)
    if "images" in fed:
        named = og.NamedTensors()
        for name, value in fed.items():
            named[name] = og.Tensor(value.astype(value.dtype.name))  # numpy has two kinds of int64, genai takes one
        generator.set_inputs(named)
    else:
        generator.append_tokens(fed["input_ids"])
    found: list[int] = []
    while not generator.is_done():
        generator.generate_next_token()
        token = int(generator.get_next_tokens()[0])
        if token in io["prompt"]["end"]:
            break
        found.append(token)
    return found


parser = argparse.ArgumentParser()
parser.add_argument("directory", type=Path)
parser.add_argument("--prompt", required=True)
parser.add_argument("--image", type=Path)
parser.add_argument("--max-new-tokens", type=int, default=64)
parser.add_argument("--threads", type=int, default=0)
given = parser.parse_args()
for name, value, least in (("max-new-tokens", given.max_new_tokens, 1), ("threads", given.threads, 0)):
    if value < least:
        sys.exit(f"--{name} must be a whole number from {least} on, got {value}. Give another.")
io, tokenizer = read_io(given.directory), Tokenizer.from_file(str(given.directory / "tokenizer.json"))
fed = prepare(given.directory, io, tokenizer, given)
print(tokenizer.decode(generate(given.directory, io, fed, given.max_new_tokens, given.threads)).strip())
