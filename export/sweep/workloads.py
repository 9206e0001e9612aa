"""What a variant is asked in use, by names: `[workload.qa] image = "640x480", prompt = 32, new = 8`. No torch."""

import re
from collections.abc import Mapping

from export.sweep.table import Workload
from transform.errors import KnobError

EXAMPLE = '[workload.qa] with image = "640x480", prompt = 32, new = 8'
USUAL = {"qa": ("640x480", 32, 8)}  # a question about a photograph and a short answer
MOST_PIXELS = 1 << 26
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,30}")
_SIZE = re.compile(r"([0-9]{1,5})x([0-9]{1,5})")
_KEYS = ("image", "prompt", "new")


def usual_workloads(sees_images: bool) -> dict[str, Workload]:
    """What is measured where nothing is said."""
    return {n: Workload(_size(image, n) if sees_images else None, p, new) for n, (image, p, new) in USUAL.items()}


def parse_workloads(raw: object, sees_images: bool, where: str) -> dict[str, Workload]:
    """The tables under `workload` of a TOML file, None where it has none; raises KnobError. `where`: the file, for
    messages."""
    if raw is None or raw == {}:
        raise KnobError(f"{where}: at least one workload is needed, got none. Write {EXAMPLE}.")
    if not isinstance(raw, Mapping):
        raise KnobError(f"{where}: workloads are tables with a name each, got {str(raw)[:60]}. Write {EXAMPLE}.")
    return {name: _workload(name, value, sees_images, where) for name, value in raw.items()}


def _workload(name: str, value: object, sees_images: bool, where: str) -> Workload:
    if not _NAME.fullmatch(name):
        raise KnobError(
            f"{where}: a workload's name has small letters, digits, - and _, at most 31, got {name[:40]!r}."
        )
    if not isinstance(value, Mapping) or value.keys() - set(_KEYS) or not {"prompt", "new"} <= value.keys():
        has = sorted(value) if isinstance(value, Mapping) else value
        raise KnobError(
            f"{where}: workload {name} has the keys image (where there is one), prompt and new as in {EXAMPLE}, "
            f"got {str(has)[:80]}."
        )
    image = value.get("image")
    if image is not None and not sees_images:
        raise KnobError(f"{where}: workload {name} has an image, and this model sees none. Leave the image out.")
    size = None if image is None else _size(image, name)
    least = {"prompt": 1, "new": 2}  # the first token comes with the prefill: one makes no step to be timed
    for key, smallest in least.items():
        if type(value[key]) is not int or value[key] < smallest:
            raise KnobError(
                f"{where}: workload {name}: {key} must be a whole number from {smallest}, got {value[key]!r}."
            )
    return Workload(size, value["prompt"], value["new"])


def _size(text: object, name: str) -> tuple[int, int]:
    found = _SIZE.fullmatch(text) if isinstance(text, str) else None
    size = (int(found[1]), int(found[2])) if found else (0, 0)
    if min(size) < 2 or size[0] * size[1] > MOST_PIXELS:
        raise KnobError(
            f"workload {name}: image must be WIDTHxHEIGHT in pixels as in 640x480, at most {MOST_PIXELS:,} of them, "
            f"got {str(text)[:40]!r}."
        )
    return size
