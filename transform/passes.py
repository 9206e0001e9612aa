"""The contract of a pass: what it requires, its run, what it ensures, checked in this order at every call.

A pass takes a Checkpoint and gives another, from config and headers alone. What it requires of its setting is the
caller's to mend. What comes out is held against what the pass says it changes, tensor by tensor and key by key, and
against the architecture: a pass that breaks its word is named, and nothing is written.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import ClassVar, NamedTuple

from transform.architectures.vocabulary import check_block_lists
from transform.checkpoint import Checkpoint, check_blocks
from transform.errors import CheckpointError, KnobcastError


class PassError(KnobcastError):
    """A pass that didn't give what it ensures: its own fault, not its caller's."""


def broken_word(name: str, what: str) -> PassError:
    """For a pass of this name after which this holds and mustn't."""
    return PassError(
        f"a pass must give what it ensures: after {name}, {what}. Nothing was written; this is a fault of knobcast, "
        "please report it with the command."
    )


class Changes(NamedTuple):
    """What a pass changes of a checkpoint. All else stays: tensors with their names, dtypes, places and order, and the
    other keys of the config."""

    top_k: tuple[int, ...]  # k of each block of the result
    keys: tuple[str, ...] = ()  # of the config, that may get another value
    origin: Callable[[str], str] | None = None  # name of a tensor of the result -> its name in the source
    dtype: str | None = None  # that all tensors are to be written in
    order: bool = False  # of the tensors, and whether they go into one file


class Pass(ABC):
    """One change of a checkpoint; a subclass is a frozen dataclass of its setting."""

    name: ClassVar[str]

    def __call__(self, source: Checkpoint) -> Checkpoint:
        """The changed checkpoint, with the pass's name in `passes`; `source` itself where nothing changed."""
        self.requires(source)
        target = replace(self.run(source), passes=(*source.passes, self.name))
        if _content(target) == _content(source):
            return source
        broken = next(_broken(self.changes(source), source, target), None) or self.ensures(target)
        if broken:
            raise broken_word(self.name, broken)
        return target

    @abstractmethod
    def requires(self, source: Checkpoint) -> None:
        """Raise KnobError or CheckpointError where the setting, or this checkpoint, doesn't allow the change."""

    @abstractmethod
    def run(self, source: Checkpoint) -> Checkpoint:
        """The changed checkpoint; `source` stays as it is."""

    @abstractmethod
    def changes(self, source: Checkpoint) -> Changes:
        """What the result may differ in."""

    @abstractmethod
    def ensures(self, target: Checkpoint) -> str | None:
        """What is wrong with the result beyond `changes`, if anything."""


def _content(checkpoint: Checkpoint) -> tuple[object, ...]:
    """All that is written, the order of tensors included."""
    return checkpoint.joined, checkpoint.config, list(checkpoint.tensors.values())


def _broken(changes: Changes, source: Checkpoint, target: Checkpoint) -> Iterator[str]:
    """What a pass with these changes must ensure and doesn't."""
    try:
        check_block_lists(target.architecture.text_of(target.config), target.settings.layers)
        top_k, expected = target.settings.top_k, target.expected()
        if not target.architecture.complete:
            check_blocks(target)
            expected = dict.fromkeys(_kept(changes, source, target), ("", ()))
    except CheckpointError as error:
        yield str(error)
        return
    if top_k != changes.top_k:
        yield f"the blocks have k {top_k}, not {changes.top_k}"
    if lost := [name for name in expected if name not in target.tensors]:
        yield f"{len(lost)} of {len(expected)} tensors are lost, the first is {lost[0]!r}"
    if unknown := [name for name in target.tensors if name not in expected]:
        yield f"{len(unknown)} tensors have names unknown to {target.architecture.model_type}, one is {unknown[0]!r}"
    if target.tensors is not source.tensors:
        yield from _moved(changes, source, target)
    keys = source.config.keys() | target.config.keys()
    other = {key for key in keys if source.config.get(key) != target.config.get(key)} - set(changes.keys)
    if other:
        yield f"the config has another {min(other)}"
    if not changes.order and target.joined != source.joined:
        yield "the tensors go into other files"
    if (target.path, target.side_files) != (source.path, source.side_files):
        yield "other files travel along"


def _kept(changes: Changes, source: Checkpoint, target: Checkpoint) -> list[str]:
    """Names that the result must have, and no others, where no family says them: those whose origin is the source's,
    and all of the source's outside of blocks."""
    origins = {changes.origin(name) if changes.origin else name: name for name in target.tensors}
    blocks = {source.block_of(origin)[0] for origin in origins}
    lost = [
        name for name in source.tensors
        if name not in origins and source.block_of(name)[0] in blocks and not source.is_beyond(name)
    ]  # fmt: skip
    return [*target.tensors, *lost]


def _moved(changes: Changes, source: Checkpoint, target: Checkpoint) -> Iterator[str]:
    """Tensors that aren't the source's but for what changes."""
    place = {name: at for at, name in enumerate(source.tensors)}
    places = []
    for name, tensor in target.tensors.items():
        origin = name if changes.origin is None else changes.origin(name)
        before = source.tensors.get(origin)
        places.append(place.get(origin, -1))
        if tensor.name != name:
            yield f"a tensor is named twice, {name!r} and {tensor.name!r}"
        elif before is None or tensor.dtype != (changes.dtype or before.dtype) or tensor[2:] != before[2:]:
            yield f"{name!r} hasn't the bytes, the shape and the dtype that {origin!r} gives it"
    if not changes.order and places != sorted(places):
        yield "the tensors have another order"
