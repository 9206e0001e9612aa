"""Read `io.json` of a variant, which may come from anywhere: every field that is used later has the type it must have.

Fields that older exports don't have may be absent; what they say is then what such an export meant. `io_spec.py` writes
the file.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict, cast

from export.run.providers import Providers, check_providers
from export.run.static_plan import read_static
from transform.errors import CheckpointError, VerificationError
from transform.forms import ACTIVATIONS, NAMES, REFERENCE, Form, form_named
from transform.image_settings import RESIZES
from transform.molmoe.tiling import RULES, TIERS, TOKENS_PER_CROP
from transform.strict_json import read_json

FILE = "io.json"
Role = Literal["image_start", "image_end", "image_patch", "image_column"]
ROLES: tuple[Role, ...] = ("image_start", "image_end", "image_patch", "image_column")
LONGEST = 4096  # characters of an option; onnxruntime takes no longer ones
_LARGEST = 1 << 31
_MOST_CROPS = 1000  # of a picture: 65 thousand tokens
# Parts of the names of options that have a place as their value, or an address in memory.
_FILES = ("file", "path", "folder", "dir", "lib", "plugin", "prefix", "dump", "profil", "load_config", "external")
_OPTIONS = f"session options, none of which names a file, strings of at most {LONGEST:,} characters"
_DTYPES = ("float32", "float16", "int64", "uint8")
Rule = tuple[str, Callable[[Any], bool], str]


class SpecialIds(TypedDict):
    """Ids of the tokens with a role, those of the image for image models; an end of -1 is never made."""

    bos: int
    eos: list[int]
    image_start: NotRequired[int]
    image_end: NotRequired[int]
    image_patch: NotRequired[int]
    image_column: NotRequired[int]


class Value(TypedDict):
    """An input or output; a text in a shape names a free axis."""

    name: str
    dtype: str
    shape: list[int | str]


class Signature(TypedDict):
    """What a graph takes and gives."""

    inputs: list[Value]
    outputs: list[Value]


class Policy(TypedDict, total=False):
    """How pictures are cut, as `preprocess` takes it."""

    tokens: int | str | None
    max_crops: int
    resize: str
    rule: str


class Static(TypedDict):
    """The part about static graphs, as far as `read_static` doesn't read it."""

    providers: Providers


class Io(TypedDict):
    """A checked io.json as far as it is read. Older exports lack what may be absent; null counts as absent."""

    session_options: dict[str, str]
    layers: int
    top_k: list[int]
    max_positions: int
    model_type: str
    special_ids: SpecialIds
    form: NotRequired[str]
    activations: NotRequired[str]
    providers: NotRequired[Providers]
    vision_session_options: NotRequired[dict[str, str]]
    graphs: NotRequired[dict[str, Signature]]
    vision: NotRequired[Policy]
    static: NotRequired[Static]
    embedding_rows: NotRequired[object]  # not checked


def read_io(directory: Path) -> Io:
    """io.json of a variant; raises VerificationError for a field that isn't what it must be."""
    try:
        io = read_json(directory / FILE, way_out="Export the variant again.")
    except CheckpointError as error:
        raise VerificationError(str(error)) from error
    seeing = (directory / "vision.onnx").is_file()
    for key, fits, meaning in (*_ALWAYS, *(_SEEING if seeing else ())):
        if key not in io:
            raise _refused(f"{key} must be {meaning}, there is none")
        if not fits(io[key]):
            raise _refused(f"{key} must be {meaning}, got {_short(io[key])}")
    for key, fits, meaning in _SOMETIMES:
        if io.get(key) is not None and not fits(io[key]):
            raise _refused(f"{key} must be {meaning}, got {_short(io[key])}")
    if io.get("providers"):
        check_providers(io["providers"])
    if read_static(io) is not None:
        check_providers(io["static"]["providers"])
    return cast("Io", {key: value for key, value in io.items() if value is not None})


def form_in(io: Io) -> Form:
    """The form that a checked io.json names."""
    return form_named(io.get("form", REFERENCE.name))


def policy_in(vision: Mapping[str, object]) -> Policy:
    """How the `vision` of an io.json or a manifest has pictures cut."""
    return cast("Policy", {name: vision[name] for name in Policy.__annotations__ if name in vision})


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 < value < _LARGEST


def _is_id(value: Any) -> bool:
    return type(value) is int and 0 <= value < _LARGEST


def names_a_file(option: str) -> bool:
    """Whether an option has onnxruntime read, load or write what it names, as profiles and optimised models are."""
    return any(word in option.lower() for word in _FILES)


def _are_options(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(v, str) and len(k + v) <= LONGEST and not names_a_file(k) for k, v in value.items()
    )


def _are_special(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    ends = value.get("eos")
    # an end of -1 is a way to say never
    named = all(_is_id(value[role]) for role in ("bos", *ROLES) if role in value)
    return named and "bos" in value and isinstance(ends, list) and all(_is_id(i) or i == -1 for i in ends)


def _are_graphs(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(graph, dict) and _is_signature(graph) for graph in value.values())


def _is_signature(graph: Mapping[str, object]) -> bool:
    lists = [graph.get("inputs"), graph.get("outputs")]
    return all(isinstance(values, list) and all(map(_is_value, values)) for values in lists)


def _is_value(value: Any) -> bool:
    if not isinstance(value, dict) or not isinstance(value.get("name"), str) or value.get("dtype") not in _DTYPES:
        return False
    shape = value.get("shape")
    return isinstance(shape, list) and all(isinstance(d, str) or (type(d) is int and 0 <= d < _LARGEST) for d in shape)


def _is_policy(value: Any) -> bool:
    if not isinstance(value, dict) or "tokens" not in value:
        return False
    return (
        _is_budget(value["tokens"])
        and _is_count(crops := value.get("max_crops", 1))
        and crops <= _MOST_CROPS
        and value.get("resize", RESIZES[0]) in RESIZES
        and value.get("rule", RULES[0]) in RULES
    )


def _is_budget(tokens: Any) -> bool:
    if isinstance(tokens, str):
        return tokens in TIERS
    return tokens is None or (_is_count(tokens) and tokens <= _MOST_CROPS * TOKENS_PER_CROP)


def _is_layers(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_id, value))


_ALWAYS: tuple[Rule, ...] = (
    ("session_options", _are_options, _OPTIONS),
    ("layers", _is_count, "a number of blocks"),
    ("top_k", _is_layers, "experts per token, a list with one number per block, 0 where it has none"),
    ("max_positions", _is_count, "a number of tokens"),
    ("model_type", lambda value: isinstance(value, str) and bool(re.fullmatch(r"[\w.\-]{1,100}", value)), "a name"),
    ("special_ids", _are_special, "ids: bos, a list eos, and those of the image, each from 0"),
)
_SEEING: tuple[Rule, ...] = (
    ("special_ids", lambda value: all(role in value for role in ROLES), f"ids with {', '.join(ROLES)}"),
    ("vision", _is_policy, "how pictures are cut: tokens, max_crops, resize, rule"),
)
_SOMETIMES: tuple[Rule, ...] = (
    ("vision_session_options", _are_options, _OPTIONS),
    ("form", lambda value: isinstance(value, str) and value in NAMES, f"one of {', '.join(NAMES)}"),
    ("activations", lambda value: value in ACTIVATIONS, f"one of {', '.join(ACTIVATIONS)}"),
    ("graphs", _are_graphs, "graphs with inputs and outputs, each with name, dtype and shape"),
    ("vision", _is_policy, "how pictures are cut: tokens, max_crops, resize, rule"),
)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:60] + "…"


def _refused(why: str) -> VerificationError:
    return VerificationError(f"{FILE}: {why}. Export the variant again.")
