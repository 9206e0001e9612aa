"""Scores: one number per block that says how much the model needs it, and where the number comes from.

Read from knobcast's own form (schema 1) and from foreign ones: a plain `{"3": 0.0092, ...}`, possibly partial, or
that nested under `merged_scores`, `train_scores` or `importance_scores`. Whether the entries suffice is not
decided here but by the choice that needs them (`importance/search/`).
"""

import hashlib
import json
import math
import re
from codecs import BOM_UTF8
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from importance.atomic import write_atomically
from transform.checkpoint import Checkpoint
from transform.errors import ScoresError
from transform.regular_file import IrregularError, read_regular
from transform.strict_json import Record, parse

T = TypeVar("T")
PRESETS = Path(__file__).parent / "presets"
PREFIX = "preset:"
NESTED = ("merged_scores", "train_scores", "importance_scores")
MORE, LESS = "more important", "less important"
MAX_BYTES = 1_000_000
# Enough to tell checkpoints apart: training moves every tensor. Hashing all 27 GB would take minutes.
DIGEST_TENSORS, DIGEST_BYTES = 256, 4096


@dataclass(frozen=True)
class Scores:
    """Scores of some or all blocks, by original block index.

    metric, unit: what was measured. higher_means: `more important` or `less important`. interval: (low, high) of a
    score, such as a 95 % bootstrap interval. samples: how many items were scored. model_digest: `model_digest()` of
    the checkpoint they were measured on, None where unknown. file_digest: SHA-256 of the file that they came
    from, None where that isn't known. notes: whatever else the file says, such as provenance and noise.
    """

    values: Mapping[int, float]
    metric: str = "unknown"
    unit: str = "unknown"
    higher_means: str = MORE
    stderr: Mapping[int, float] = field(default_factory=dict)
    interval: Mapping[int, tuple[float, float]] = field(default_factory=dict)
    baseline: float | None = None
    samples: int | None = None
    model_digest: str | None = None
    data_digest: str | None = None
    source: str = "scores"
    notes: Record = field(default_factory=dict)
    file_digest: str | None = field(default=None, compare=False)

    @property
    def importance(self) -> dict[int, float]:
        """Values with one direction: the higher, the more the model needs the block."""
        sign = 1.0 if self.higher_means == MORE else -1.0
        return {block: sign * value for block, value in self.values.items()}

    def to_json(self) -> dict[str, object]:
        """The canonical form, schema 1."""
        entries: list[dict[str, float]] = []
        for block, value in sorted(self.values.items()):
            entry: dict[str, float] = {"index": block, "score": value}
            if block in self.stderr:
                entry["stderr"] = self.stderr[block]
            if block in self.interval:
                entry["low"], entry["high"] = self.interval[block]
            entries.append(entry)
        return {
            "schema": 1,
            "metric": self.metric,
            "unit": self.unit,
            "higher_means": self.higher_means,
            "baseline": self.baseline,
            "samples": self.samples,
            "model_digest": self.model_digest,
            "data_digest": self.data_digest,
            **{key: value for key, value in self.notes.items() if key not in _KNOWN},
            "blocks": entries,
        }


def model_digest(checkpoint: Checkpoint) -> str:
    """SHA-256 that ties scores to weights: the tensor table and the first 4096 bytes of 256 evenly spread tensors.

    Reads at most 1 MB, so that a plan for a 27 GB checkpoint still answers at once. The config isn't part of it:
    the same weights under another top-k keep their scores.
    """
    tensors = [checkpoint.tensors[name] for name in sorted(checkpoint.tensors)]
    table = [(t.name, t.dtype, t.shape) for t in tensors]
    digest = hashlib.sha256(json.dumps(table, separators=(",", ":")).encode())
    picked = min(len(tensors), DIGEST_TENSORS)
    for n in range(picked):
        tensor = tensors[n * len(tensors) // picked]
        with tensor.file.open("rb") as file:
            file.seek(tensor.start)
            digest.update(file.read(min(tensor.nbytes, DIGEST_BYTES)))
    return digest.hexdigest()


def read_scores(source: str | Path, layers: int, model_digest: str | None = None) -> Scores:
    """Scores from a file or `preset:NAME`, checked for a model of `layers` blocks; ScoresError says what is wrong.

    `model_digest`: the model's own; a file measured on another model is refused.
    """
    scores = parse_scores(read_object(source), label(source), layers)
    check_model(scores.source, scores.model_digest, model_digest)
    return scores


def write_scores(scores: Scores, path: Path, force: bool = False) -> None:
    """Write scores in the canonical form, whole or not at all; what `read_scores` would refuse is never written.

    WriteError: the file exists and `force` isn't given, or its folder doesn't exist.
    """
    content = scores.to_json()
    write_object(content, path, lambda raw: parse_scores(raw, path.name, max(scores.values, default=0) + 1), force)


def write_object(
    content: Mapping[str, object], path: Path, check: Callable[[dict[str, object]], object], force: bool = False
) -> None:
    """Write a JSON object that a reader accepts: `check` gets it as a reader would and raises what it refuses."""
    try:
        text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise ScoresError(f"{path.name}: scores must be finite numbers and notes JSON ({error}).") from error
    if len(text.encode()) > MAX_BYTES:
        raise ScoresError(f"{path.name}: a scores file has at most {MAX_BYTES:,} bytes, got {len(text.encode()):,}.")
    check(json.loads(text))
    write_atomically(path, text, force)


def check_model(source: str, measured: str | None, model: str | None) -> None:
    """Refuse scores or sets that were measured on another model; an unknown model passes."""
    if None not in (measured, model) and measured != model:
        raise ScoresError(
            f"{source}: scores must come from the model they are used for. They were measured on "
            f"{str(measured)[:12]}…, this model is {str(model)[:12]}…. Score this model, or set "
            '"model_digest" in the file to null if you mean to use scores of another model.'
        )


def preset_names() -> tuple[str, ...]:
    """The presets that `preset:NAME` knows."""
    return tuple(sorted(path.stem for path in PRESETS.glob("*.json")))


def presets_for(model_type: str, layers: int) -> tuple[str, ...]:
    """Those that speak of the blocks of such a model."""
    stored = {name: read_object(PREFIX + name) for name in preset_names()}
    return tuple(name for name, raw in stored.items() if (raw["model_type"], raw["layers"]) == (model_type, layers))


def label(source: str | Path) -> str:
    """How messages call a source: `preset:NAME` or the file's name."""
    return str(source) if str(source).startswith(PREFIX) else Path(source).name


def read_object(source: str | Path) -> dict[str, object]:
    """The JSON object of a scores file or preset, without duplicate keys, NaN or infinities."""
    path = _place(source)
    shown = label(source)
    try:
        found = parse(read_regular(path, MAX_BYTES).removeprefix(BOM_UTF8))
    except OSError as error:
        raise ScoresError(f"{path}: cannot be read ({error.strerror}). Check the path.") from error
    except IrregularError as error:
        raise ScoresError(f"{shown}: {error}. Give a scores file, or score the model again.") from error
    if not isinstance(found, dict):
        raise ScoresError(f"{shown}: must hold a JSON object, got a {type(found).__name__}. {_FORMS}")
    return found


def _place(source: str | Path) -> Path:
    """Where a source lies; raises ScoresError for a preset that there is none of."""
    path = Path(source)
    if str(source).startswith(PREFIX):
        name = str(source).removeprefix(PREFIX)
        if name not in preset_names():
            raise ScoresError(
                f"preset:NAME needs one of the {len(preset_names())} presets, got {name!r}. "
                f"Use {', '.join(preset_names())}."
            )
        path = PRESETS / f"{name}.json"
    return path


def file_digest(source: str | Path) -> str:
    """SHA-256 of a scores file or preset, which `read_object` has read."""
    return hashlib.sha256(read_regular(_place(source), MAX_BYTES)).hexdigest()


def parse_scores(raw: Mapping[str, object], source: str, layers: int) -> Scores:
    """Scores from a parsed file of any accepted form."""
    if "sets" in raw:
        sets = raw["sets"] if isinstance(raw["sets"], Iterable) else ()
        raise ScoresError(
            f"{source}: holds sets of blocks, not one score per block. Use it to choose a number of blocks it has: "
            f"{', '.join(sorted(map(str, sets), key=lambda name: (len(name), name)))}."
        )
    if "schema" in raw or "blocks" in raw:
        return _canonical(raw, source, layers)
    nested = next((key for key in NESTED if key in raw), None)
    entries = raw if nested is None else raw[nested]
    if not isinstance(entries, Mapping):
        raise ScoresError(f"{source}: {nested} must hold an object of block index to score. {_FORMS}")
    values = {_index(key, source, layers): _number(value, f"block {key}", source) for key, value in entries.items()}
    return Scores(values=_some(values, source), metric=nested or "unknown", source=source)


_FORMS = (
    'Accepted: {"schema": 1, ..., "blocks": [{"index", "score", "stderr", "low", "high"}]} or {"3": 0.0092, ...}, '
    f"the latter also under {', '.join(NESTED)}."
)
_KNOWN = {"schema", "metric", "unit", "higher_means", "baseline", "samples", "model_digest", "data_digest", "blocks"}
_DIRECTIONS = {MORE: MORE, "more_important": MORE, "keep": MORE, LESS: LESS, "less_important": LESS, "drop": LESS}


def _canonical(raw: Mapping[str, object], source: str, layers: int) -> Scores:
    if type(raw.get("schema")) is not int or raw["schema"] != 1:
        raise ScoresError(f"{source}: schema must be 1, got {raw.get('schema')!r}. {_FORMS}")
    blocks = raw.get("blocks")
    if not isinstance(blocks, list) or not all(
        isinstance(b, Mapping) and {"index", "score"} <= b.keys() for b in blocks
    ):
        raise ScoresError(f"{source}: blocks must be a list of objects with index and score. {_FORMS}")
    direction = raw.get("higher_means", MORE)
    if not isinstance(direction, str) or direction not in _DIRECTIONS:
        raise ScoresError(
            f"{source}: higher_means must be {MORE!r} or {LESS!r}, got {direction!r}. Say which way the scores run."
        )
    values: dict[int, float] = {}
    stderr: dict[int, float] = {}
    interval: dict[int, tuple[float, float]] = {}
    for entry in blocks:
        index = _index(entry["index"], source, layers)
        if index in values:
            raise ScoresError(f"{source}: each block has one score, block {index} has two. Remove one of them.")
        values[index] = _number(entry["score"], f"block {index}", source)
        if entry.get("stderr") is not None:
            stderr[index] = _number(entry["stderr"], f"stderr of block {index}", source)
            if stderr[index] < 0:
                raise ScoresError(f"{source}: a stderr is 0 or more, block {index} has {entry['stderr']!r}.")
        if entry.get("low") is not None or entry.get("high") is not None:
            low, high = (_number(entry.get(key), f"{key} of block {index}", source) for key in ("low", "high"))
            if low > high:
                raise ScoresError(
                    f"{source}: an interval is low <= high, block {index} has {low} to {high}. Swap them."
                )
            interval[index] = (low, high)  # the score may lie outside: a percentile interval needn't hold the mean
    texts = {key: optional(raw, key, str, source, _FORMS) for key in ("metric", "unit", "model_digest", "data_digest")}
    samples = optional(raw, "samples", int, source, _FORMS)
    return Scores(
        values=_some(values, source),
        metric=texts["metric"] or "unknown",
        unit=texts["unit"] or "unknown",
        higher_means=_DIRECTIONS[direction],
        stderr=stderr,
        interval=interval,
        baseline=None if raw.get("baseline") is None else _number(raw["baseline"], "baseline", source),
        samples=samples,
        model_digest=texts["model_digest"],
        data_digest=texts["data_digest"],
        source=source,
        notes={key: value for key, value in raw.items() if key not in _KNOWN},
    )


def optional(raw: Mapping[str, object], key: str, kind: type[T], source: str, forms: str) -> T | None:
    """A value of this kind, None where it is null or absent; ScoresError for any other."""
    value = raw.get(key)
    if value is not None and (not isinstance(value, kind) or isinstance(value, bool)):
        raise ScoresError(f"{source}: {key} must be a {kind.__name__} or null, got {value!r}. {forms}")
    return value


def _index(key: object, source: str, layers: int) -> int:
    if type(key) is not int and not (isinstance(key, str) and re.fullmatch(r"[+-]?[0-9]+", key, re.ASCII)):
        shown = repr(key)[:80]
        raise ScoresError(f"{source}: scores belong to block indices from 0 to {layers - 1}, got {shown}. {_FORMS}")
    # One spelling per index, so that "3" and "03" can't be two scores of one block.
    if isinstance(key, str) and re.fullmatch(r"0|[1-9][0-9]{0,5}", key, re.ASCII):
        key = int(key)
    if type(key) is not int or not 0 <= key < layers:
        raise ScoresError(
            f"{source}: block indices run from 0 to {layers - 1} (the model has {layers} blocks), got {key!r}. "
            "Use scores of this model, numbered from 0."
        )
    return key


def _number(value: object, what: str, source: str) -> float:
    try:
        number = float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
    except OverflowError:
        number = math.inf
    if number is None or not math.isfinite(number):
        raise ScoresError(f"{source}: scores must be finite numbers, {what} has {value!r}. Score it again.")
    return number


def _some(values: dict[int, float], source: str) -> dict[int, float]:
    if not values:
        raise ScoresError(f"{source}: at least one block must have a score, 0 have one. {_FORMS}")
    return values
