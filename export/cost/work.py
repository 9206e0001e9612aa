"""What is asked of a setting, and what that takes by arithmetic, as a sweep's table keeps it. Never measured."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from transform.errors import KnobError

EXAMPLE = "640x480:32:8"
MOST_PIXELS = 1 << 26
_WORKLOAD = re.compile(r"(?:([0-9]{1,5})x([0-9]{1,5}):)?([0-9]{1,7}):([0-9]{1,7})")


@dataclass(frozen=True)
class Workload:
    """What a variant is asked in use: a picture of `image` (width, height) pixels, or none; `prompt` tokens of text;
    `new` tokens of answer."""

    image: tuple[int, int] | None
    prompt: int
    new: int


@dataclass(frozen=True)
class Work:
    """What a workload takes by arithmetic: counted from config and headers, not measured.

    `vision_tokens`: image features; `positions`: of the whole prompt; flops (2 per multiply and add) of the picture, of
    the prompt, of one further token; `kv_bytes`: the cache behind the last token.
    """

    vision_tokens: int
    positions: int
    vision_flops: int
    prefill_flops: int
    decode_flops: int
    kv_bytes: int


@dataclass(frozen=True)
class Cost:
    """Counted. `bytes`: weights and graphs on the device; `work`: per workload."""

    parameters: int
    active_parameters: int
    bytes: int
    work: Mapping[str, Work]


def parse_workload(text: str) -> Workload:
    """`640x480:32:8`: a picture of so many pixels, tokens of the prompt's text, tokens of the answer; `32:8` without a
    picture. Raises KnobError."""
    found = _WORKLOAD.fullmatch(text)
    numbers = [int(number) if number else 0 for number in found.groups()] if found else [0] * 4
    width, height, prompt, new = numbers
    pictured = found is not None and found[1] is not None
    if not prompt or not new or (pictured and not (width and height and width * height <= MOST_PIXELS)):
        raise KnobError(
            f"a workload is WIDTHxHEIGHT:PROMPT:NEW as in {EXAMPLE}, or PROMPT:NEW without a picture, whole numbers "
            f"from 1 and at most {MOST_PIXELS:,} pixels, got {text[:40]!r}. Write it so."
        )
    return Workload((width, height) if pictured else None, prompt, new)
