"""What the clients in `docs/clients/` are asked, and what `knobcast run` answers."""

import json
import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from tests.support.command import knobcast
from tests.support.paths import ROOT
from tests.support.variants import read_json, write_variant

QUESTIONS = ("What colour is the circle?", "Where is the square?", "How many blue shapes are there?")


class Run(NamedTuple):
    """An answer of `knobcast run`."""

    text: str
    ids: list[int]


def embedded(target: Path, form: str) -> Path:
    """A variant of the embedded model."""
    return write_variant(ROOT / "artifacts" / "molmoe-nano", target, k=4, tokens=432, form=form)


def draw_pictures(home: Path) -> tuple[Path, ...]:
    """PNG of a red circle and a blue square, of the same on its side in a palette, and of noise."""
    drawn = Image.new("RGB", (400, 300), "white")
    ImageDraw.Draw(drawn).ellipse((50, 60, 150, 160), fill="red")
    ImageDraw.Draw(drawn).rectangle((220, 120, 340, 240), fill="blue")
    noise = np.random.default_rng(0).integers(0, 256, (70, 310, 3), np.uint8)
    made = {"drawn": drawn, "turned": drawn.rotate(90, expand=True).convert("P"), "noise": Image.fromarray(noise)}
    for name, picture in made.items():
        picture.save(home / f"{name}.png")
    return tuple(home / f"{name}.png" for name in made)


def run(variant: Path, question: str, picture: Path | None = None, most: int = 64) -> Run:
    """By `knobcast run`."""
    given = () if picture is None else ("--image", picture)
    words = ("--prompt", question, "--threads", 1, "--max-new-tokens", most, *given)
    done = knobcast("run", variant, *words, "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    return Run(found["text"], found["ids"])


def ending(variant: Path, target: Path, ends: list[int]) -> Path:
    """A copy whose answers end at other ids."""
    shutil.copytree(variant, target)
    io, genai = read_json(target / "io.json"), read_json(target / "genai_config.json")
    io["prompt"]["end"] = io["special_ids"]["eos"] = ends
    genai["model"]["eos_token_id"] = ends
    (target / "io.json").write_text(json.dumps(io))
    (target / "genai_config.json").write_text(json.dumps(genai))
    return target


def unending(variant: Path, target: Path) -> Path:
    """A copy whose answers no id ends: the embedded model answers in a word or two."""
    return ending(variant, target, [read_json(variant / "genai_config.json")["model"]["vocab_size"] - 1])
