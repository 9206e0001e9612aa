"""What is asked of a setting, and what that takes by arithmetic, as a sweep's table keeps it. Never measured."""

from collections.abc import Mapping
from dataclasses import dataclass


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
