"""A JSON object as the record it was made of: every key and every value of its type, or a message that says where."""

import types
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from transform.errors import VerificationError

Made = TypeVar("Made")
_RULES = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}


def parse_record(kind: type[Made], value: object, where: str, way_out: str) -> Made:
    """`value` as the frozen dataclass `kind`: lists become tuples, objects mappings or records. A key may also be a
    property of the record, which must then be what it says.

    Raises VerificationError, which begins with `where` (a file's name) and ends with `way_out`.
    """
    found: Made = _Reader(way_out).read(kind, value, where)
    return found


class _Reader:
    def __init__(self, way_out: str) -> None:
        self._way_out = way_out

    def read(self, kind: Any, value: Any, where: str) -> Any:
        origin, inner = get_origin(kind), get_args(kind)
        if origin in (Union, types.UnionType):
            if value is None and type(None) in inner:
                return None
            choices = [one for one in inner if one is not type(None)]
            return self.read(next((one for one in choices if type(value) is one), choices[0]), value, where)
        if isinstance(kind, type) and is_dataclass(kind):
            return self._record(kind, value, where)
        if origin is tuple:
            return self._list(inner, value, where)
        if origin is not None:
            return self._mapping(inner[1], value, where)
        if kind is object:
            return value
        if kind is float and type(value) is int:
            return float(value)
        if type(value) is not kind:  # True is no number
            raise self._wrong(where, _RULES.get(kind, kind.__name__), value)
        return value

    def _record(self, kind: type, value: object, where: str) -> Any:
        known = {field.name: field for field in fields(kind)}
        derived = [name for name, member in vars(kind).items() if isinstance(member, property)]
        if not isinstance(value, Mapping) or value.keys() - known.keys() - set(derived):
            raise self._wrong(where, f"an object with the keys {', '.join(known)}", value)
        for name, field in known.items():
            if name not in value and field.default is MISSING and field.default_factory is MISSING:
                raise self._wrong(where, f"an object with {name!r}", value)
        hints = get_type_hints(kind)
        made = kind(**{n: self.read(hints[n], item, f"{where}: {n}") for n, item in value.items() if n in known})
        for name in derived:
            if name in value and value[name] != getattr(made, name):
                raise self._wrong(f"{where}: {name}", repr(getattr(made, name)), value[name])
        return made

    def _list(self, kinds: tuple[Any, ...], value: object, where: str) -> tuple[Any, ...]:
        if not isinstance(value, list | tuple):
            raise self._wrong(where, "a list", value)
        if kinds[-1] is Ellipsis:
            kinds = kinds[:1] * len(value)
        if len(kinds) != len(value):
            raise self._wrong(where, f"a list of {len(kinds)}", value)
        return tuple(
            self.read(kind, item, f"{where}[{n}]") for n, (kind, item) in enumerate(zip(kinds, value, strict=True))
        )

    def _mapping(self, kind: Any, value: object, where: str) -> Mapping[str, Any]:
        if not isinstance(value, Mapping):
            raise self._wrong(where, "an object", value)
        return {key: self.read(kind, item, f"{where}: {key}") for key, item in value.items()}

    def _wrong(self, where: str, rule: str, value: object) -> VerificationError:
        return VerificationError(f"{where} must be {rule}, got {str(value)[:40]}. {self._way_out}")
