"""`family.json`: what the members of a family have in common, and each of them. Read strictly, found in one way."""

import re
from collections.abc import Mapping
from dataclasses import asdict, astuple, dataclass
from pathlib import Path

from transform.errors import KnobError, VerificationError
from transform.forms import Form, form_named
from transform.strict_json import Record, read_json
from transform.strict_record import parse_record

FILE = "family.json"
SCHEMA = 1
AGAIN = "Export the family again."
_POLICY = ("tokens", "resize", "rule")
_NAME = re.compile(r"k[0-9x.]+-b[0-9]+")
_WORD = re.compile(r"[a-z0-9]+")  # as in Plan.extras


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
        read = parse_record(_File, record, FILE, AGAIN)
        names = [member.name for member in read.members]
        if read.schema != SCHEMA or read.model != Path(read.model).name:
            raise VerificationError(f"{FILE}: must be a family of schema {SCHEMA} with the name of its model. {AGAIN}")
        spelt = [*map(_NAME.fullmatch, names), *map(_WORD.fullmatch, read.extras)]
        if not all(spelt) or any(len(one.blocks_kept) != len(one.top_k) for one in read.members):
            raise VerificationError(f"{FILE}: members must have names as k4-b12 and one k per kept block. {AGAIN}")
        if not names or len(set(names)) < len(names):
            raise VerificationError(f"{FILE}: must list members with different names. {AGAIN}")
        try:
            form = form_named(read.form)
        except KnobError as error:
            raise VerificationError(f"{FILE}: {error} {AGAIN}") from error
        policy = None if read.vision is None else astuple(read.vision)
        return cls(read.model, form, read.extras, policy, read.members)


@dataclass(frozen=True)
class _Vision:
    tokens: int | str | None
    resize: str
    rule: str


@dataclass(frozen=True)
class _File:
    schema: int
    model: str
    form: str
    extras: tuple[str, ...]
    vision: _Vision | None
    members: tuple[Member, ...]


def read_family(directory: Path) -> Family:
    """The family in `directory`; raises KnobError where it is none, VerificationError where its record is damaged."""
    if not (directory / FILE).is_file():
        raise KnobError(
            f"{directory}: no {FILE}, so it is no family. Give a directory made with --family, or leave --member out."
        )
    return Family.parse(read_json(directory / FILE))
