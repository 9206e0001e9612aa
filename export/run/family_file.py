"""`family.json`: what the members of a family have in common, and each of them. Read strictly, found in one way."""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

from transform.errors import KnobError, VerificationError
from transform.forms import Form, form_named
from transform.strict_json import Record, read_json

FILE = "family.json"
SCHEMA = 1
_POLICY = ("tokens", "resize", "rule")
_COUNTS = ("parameters", "active_parameters", "weight_bytes", "graph_bytes")
_NAME = re.compile(r"k[0-9x.]+-b[0-9]+")
_WORD = re.compile(r"[a-z0-9]+")  # as in Plan.extras
_MALFORMED = (KeyError, TypeError, ValueError, AttributeError)
Kind = TypeVar("Kind")


@dataclass(frozen=True)
class Member:
    """A decoder graph over the family's weights."""

    name: str  # k4-b12
    blocks_kept: tuple[int, ...]  # of the family's, ascending
    top_k: tuple[int, ...]  # one per kept block
    parameters: int
    active_parameters: int
    weight_bytes: int
    graph_bytes: int
    sha256: str  # of the graph
    warnings: tuple[str, ...]
    verification: Mapping[str, object] | str  # as manifests have it

    @property
    def graph(self) -> str:
        """The decoder's file."""
        return f"text-{self.name}.onnx"

    @property
    def overlay(self) -> str:
        """What it changes in genai_config.json."""
        return f"genai_config-{self.name}.json"

    def as_dict(self) -> Record:
        """For JSON."""
        facts = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}
        return {"name": self.name, "graph": self.graph, "overlay": self.overlay, **facts}

    @classmethod
    def parse(cls, entry: Record) -> "Member":
        """What `as_dict` gave; raises one of the errors in _MALFORMED."""
        total, active, weights, graph = (_is(int, entry[name]) for name in _COUNTS)
        blocks, top_k = (tuple(_is(int, n) for n in _is(list, entry[name])) for name in ("blocks_kept", "top_k"))
        warnings = tuple(_is(str, warning) for warning in _is(list, entry["warnings"]))
        made = cls(
            _spelt(_NAME, entry["name"]), blocks, top_k, total, active, weights, graph, _is(str, entry["sha256"]),
            warnings, entry["verification"],
        )  # fmt: skip
        if entry["graph"] != made.graph or len(blocks) != len(top_k):
            raise ValueError(entry)
        return made


@dataclass(frozen=True)
class Family:
    """One directory's members."""

    model: str  # begins the names of members made standalone
    form: Form
    extras: tuple[str, ...]  # ends them
    policy: tuple[int | str | None, str, str] | None  # tokens, resize and rule; None: no eyes
    members: tuple[Member, ...]

    def member(self, name: str) -> Member:
        """The one of this name; raises KnobError where there is none."""
        found = next((member for member in self.members if member.name == name), None)
        if found is None:
            names = ", ".join(member.name for member in self.members)
            raise KnobError(f"--member must be one of the family's members, {names}; got {name[:40]!r}.")
        return found

    def as_dict(self) -> Record:
        """For JSON."""
        return {
            "schema": SCHEMA,
            "model": self.model,
            "form": self.form.name,
            "extras": list(self.extras),
            "vision": dict(zip(_POLICY, self.policy, strict=True)) if self.policy else None,
            "members": [member.as_dict() for member in self.members],
        }

    @classmethod
    def parse(cls, record: Record) -> "Family":
        """What `as_dict` gave; raises VerificationError."""
        try:
            model, vision = _is(str, record["model"]), record["vision"]
            policy = None if vision is None else tuple(vision[name] for name in _POLICY)
            if policy and not (len(vision) == len(policy) and isinstance(policy[0], int | str | None)):
                raise ValueError(vision)
            if record["schema"] != SCHEMA or model != Path(model).name:
                raise ValueError(record)
            form = form_named(record["form"])
            extras = tuple(_spelt(_WORD, word) for word in _is(list, record["extras"]))
            members = tuple(Member.parse(entry) for entry in _is(list, record["members"]))
        except (*_MALFORMED, KnobError) as error:
            raise VerificationError(f"{FILE}: not a family of schema {SCHEMA}. Export the family again.") from error
        if not members or len({member.name for member in members}) < len(members):
            raise VerificationError(f"{FILE}: must list members with different names. Export the family again.")
        return cls(model, form, extras, policy, members)


def read_family(directory: Path) -> Family:
    """The family in `directory`; raises KnobError where it is none, VerificationError where its record is damaged."""
    if not (directory / FILE).is_file():
        raise KnobError(
            f"{directory}: no {FILE}, so it is no family. Give a directory made with --family, or leave --member out."
        )
    return Family.parse(read_json(directory / FILE))


def _is(kind: type[Kind], value: object) -> Kind:
    if type(value) is not kind:  # True is no number
        raise TypeError(value)
    return value


def _spelt(pattern: re.Pattern[str], word: object) -> str:
    text = _is(str, word)
    if not pattern.fullmatch(text):
        raise ValueError(text)
    return text
