"""A family's data file -> `Architecture`, every field of its type and the parts agreeing with each other.

A file is a difference: `like` names the file whose sections it adds to or replaces entries of. A name that begins with
an underscore is no family's, only a start for others.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from enum import StrEnum
from functools import cache
from inspect import Parameter, signature
from pathlib import Path
from types import UnionType
from typing import TypeVar, get_args, get_origin, get_type_hints

from transform.architectures.records import Architecture, QkNorm
from transform.architectures.settings import RESOLVED, Settings
from transform.architectures.values import shown
from transform.architectures.vocabulary import LISTED_TOP_K, TOP_K
from transform.errors import ArchitectureError
from transform.strict_json import parse

HERE = Path(__file__).parent
_INDEX = re.compile(r"\{(\w*)\}")
_SYMBOL = re.compile(r"(\d+\*)?[A-Za-z]\w*|\d+")
_DOTTED = re.compile(r"[a-z]\w*(\.\w+)+")
T = TypeVar("T")


def known_model_types() -> tuple[str, ...]:
    """Every `model_type` that has a data file."""
    return tuple(sorted(path.stem for path in HERE.glob("[!_]*.json")))


@cache
def read_architecture(model_type: str) -> Architecture:
    """The family of a known `model_type`; raises ArchitectureError where its file isn't what it must be."""
    family = _record(Architecture, _merged(model_type), f"{model_type}.json")
    for wrong in _disagreements(family):
        raise ArchitectureError(f"{model_type}.json: {wrong}. Correct the file.")
    if family.model_type != model_type:
        raise ArchitectureError(f"{model_type}.json: model_type must be the file's name, got {family.model_type!r}.")
    return family


def _merged(name: str, *heirs: str) -> dict[str, object]:
    try:
        own: dict[str, object] = parse((HERE / f"{name}.json").read_bytes())
    except (OSError, ValueError) as error:  # not JSON, or no name of a file
        raise ArchitectureError(
            f"{name}.json must be a JSON file that means one thing: {error}. Correct it."
        ) from error
    if (base := own.pop("like", None)) is None:
        return own
    if base in (name, *heirs) or not isinstance(base, str):
        raise ArchitectureError(f"{name}.json: like must name a file that isn't like it, got {base!r}. Correct it.")
    merged = _merged(base, name, *heirs)
    for key, value in own.items():
        inherited = merged.get(key)
        merged[key] = inherited | value if isinstance(inherited, dict) and isinstance(value, dict) else value
    if isinstance(roles := merged.get("roles"), dict):  # null takes a role back
        merged["roles"] = {role: tensor for role, tensor in roles.items() if tensor is not None}
    return merged


def _record(kind: type[T], raw: object, where: str) -> T:
    """A JSON object as a record: no key is missing, none unknown, every value of the field's type."""
    if not isinstance(raw, dict):
        raise _refused(where, "an object", raw)
    types = get_type_hints(kind)
    needed = {name for name, parameter in signature(kind).parameters.items() if parameter.default is Parameter.empty}
    if missing := sorted(needed - raw.keys()):
        raise ArchitectureError(f"{where}: {', '.join(missing)} must be there. Add what is missing.")
    if unknown := sorted(raw.keys() - types.keys()):
        raise ArchitectureError(f"{where}: nothing reads {', '.join(unknown)}. It must be one of {', '.join(types)}.")
    return kind(**{name: _value(types[name], value, f"{where}: {name}") for name, value in raw.items()})


def _value(kind: object, raw: object, where: str) -> object:
    outer, inner = get_origin(kind), get_args(kind)
    if kind is object:
        return raw
    if outer is UnionType:  # of a record and None, which takes back what another file says
        return None if raw is None else _value(inner[0], raw, where)
    if outer is tuple and isinstance(raw, list):
        return tuple(_value(inner[0], value, where) for value in raw)
    if outer is Mapping and isinstance(raw, dict):
        return {key: _value(inner[1], value, f"{where}.{key}") for key, value in raw.items()}
    if isinstance(kind, type):
        if is_dataclass(kind) or issubclass(kind, tuple):
            return _record(kind, raw, where)
        if type(raw) is kind:
            return raw
        if issubclass(kind, StrEnum) and raw in list(kind):
            return kind(str(raw))
    raise _refused(where, _spelled(kind), raw)


def _spelled(kind: object) -> str:
    """What a type is called in JSON."""
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        return f"one of {', '.join(kind)}"
    names: dict[object, str] = {
        str: "a text",
        bool: "true or false",
        float: "a number",
        tuple: "a list",
        Mapping: "an object",
    }
    return names[get_origin(kind) or kind]


def _refused(where: str, wanted: str, raw: object) -> ArchitectureError:
    return ArchitectureError(f"{where} must be {wanted}, got {shown(raw)}. Correct the file.")


def _disagreements(family: Architecture) -> Iterator[str]:
    """The rules between parts that are broken."""
    settings, roles = {field.name for field in fields(Settings)} - RESOLVED, family.roles
    if settings != family.keys.keys() | family.defaults.keys():
        yield f"keys and defaults must name {', '.join(sorted(settings))}"
    if family.depth_key not in family.keys.get("layers", ()):
        yield f"depth_key must be among the keys of layers, got {family.depth_key!r}"
    spelt = family.keys.get("top_k", ())
    if (spelt and family.top_k_key not in spelt) or not set(spelt) <= set(TOP_K):
        yield f"top_k_key must be among the keys of top_k and one of {', '.join(TOP_K)}, got {family.top_k_key!r}"
    if family.per_block_top_k and family.top_k_key not in LISTED_TOP_K:
        yield f"per_block_top_k must be false unless k stands under {' or '.join(LISTED_TOP_K)}"
    for block in (family.block, *family.also):
        if not block.endswith(".{i}."):
            yield f"block must end in .{{i}}., got {block!r}"
    if wrong := sorted(set(family.dims.values()) - {*settings, "head_dim"}):
        yield f"dims must name settings, got {', '.join(wrong)}"
    for role, tensor in roles.items():
        if not tensor.names or any(set("{}") & set(_INDEX.sub("", name)) for name in tensor.names):
            yield f"roles.{role}: must have at least one name, with nothing but an index in braces"
        indices = {index for name in tensor.names for index in _INDEX.findall(name)}
        if wrong := sorted(indices - {"i", "e", *family.counts}):
            yield f"roles.{role}: names count by i, e and what counts says, got {', '.join(wrong)}"
        if wrong := [symbol for symbol in tensor.shape if not _SYMBOL.fullmatch(symbol)]:
            yield f"roles.{role}: a shape has numbers, symbols and their multiples such as 3*d, got {', '.join(wrong)}"
    held = {role for parts in family.fused.values() for role in parts}
    if wrong := sorted({*(family.modality.tables if family.complete else ()), *held} - roles.keys()):
        yield f"roles must have {', '.join(wrong)}"
    normed = family.qk_norm is not QkNorm.NONE
    if family.complete and any((role in roles) != normed for role in ("attention.q_norm", "attention.k_norm")):
        yield f"qk_norm is {family.qk_norm.value}: roles must have both norms of attention, or neither if it is none"
    if family.complete and (wrong := sorted(_modules_of(family) - family.modules.keys())):
        yield f"modules must have {', '.join(wrong)}"
    if family.prompt.template.count("{prompt}") != 1 or not family.prompt.begin:
        yield "prompt must have {prompt} once in its template, and what a sequence begins with"
    named = (
        *([family.model_class] if family.model_class else []),
        *((family.images.code, family.images.processor) if family.images else ()),
    )
    if wrong := [name for name in named if not _DOTTED.fullmatch(name)]:
        yield f"classes and code must be dotted names, got {', '.join(wrong)}"


def _modules_of(family: Architecture) -> set[str]:
    """The roles of a block's parameters in memory, where the experts of a block are one array per product."""
    held = {role for role, tensor in family.roles.items() if tensor.of_blocks and "{e}" not in tensor.names[0]}
    fused = {f"attention.{part}" for part in "qkv"} if "attention.qkv" in held else set()
    return (held - {"attention.qkv"}) | fused | {"expert.gate_up", "expert.down"}
