"""The engine: many configurations of one model, each block computed once per distinct state before it.

A configuration says for every block how many experts a token gets, 0 drops the block. The state before block j
depends only on the first j entries, so configurations form a prefix trie, walked a level at a time: all states of a
level go through the block while its weights are at hand, stacked into one call while calls are small. Where they
would not fit into memory the level is split and walked half by half, in the limit depth first.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from importance.around import Masks
from importance.blocks import Blocks
from importance.calling import Memory, ScoringError, at_k, call
from importance.chunks import Chunk
from importance.configurations import Config
from importance.self_check import insist_on_agreement
from transform.choices import find_choices, find_decoder

TOKENS_PER_CALL = {"cpu": 256, "cuda": 4096}  # beyond, stacking gains nothing: the call is bound by arithmetic
LIVE_BYTES = 1 << 30  # of all states that are kept at a time


class Past(NamedTuple):
    """Keys and values [B, heads, S, c] of one block, and the experts per token that it ran with."""

    block: int
    k: int
    keys: Tensor
    values: Tensor


@dataclass(eq=False)
class State:
    """The residual stream [B, S, d] before a block, and the configurations (indices) that agree up to there."""

    number: int  # of the chunk
    chunk: Chunk
    hidden: Tensor
    configs: list[int]
    past: tuple[Past, ...] = ()  # where keys and values are remembered
    k: int = 0  # in the block that is computed next; 0: it is dropped


@dataclass
class Report:
    """What a run cost. block_evaluations: states through blocks; calls: stacked ones count once."""

    block_evaluations: int = 0
    calls: int = 0
    bytes_read: int = 0

    def as_dict(self) -> dict[str, int]:
        """For `--json`."""
        return dict(vars(self))


Reader = Callable[[State, Tensor], None]
"""Takes a finished state and its logits [U, V]. The full model, where it was asked for, comes first of each chunk."""


@dataclass(frozen=True, eq=False)
class Step:
    """The full model's way through one block: the state before it, the stream [B, S, d] behind it, and how to run it
    again on what ran (other states may be stacked below)."""

    index: int
    block: nn.Module
    state: State
    after: Tensor
    again: Callable[[], Tensor]


Watcher = Callable[[Step], None]


@dataclass(eq=False)
class Engine:
    """full: the model as it is, one k per block (1 for a block without router). tokens_per_call: stack states up to so
    many tokens, 0 never. remember: keep keys and values, which greedy answers go on from."""

    blocks: Blocks
    full: Config
    tokens_per_call: int | None = None
    live_bytes: int = LIVE_BYTES
    remember: bool = False
    watchers: Sequence[Watcher] = ()
    report: Report = field(default_factory=Report)
    _configs: list[Config] = field(default_factory=list)

    @torch.no_grad()
    def run(self, chunks: Iterable[Chunk], configs: Sequence[Config], read: Reader, together: bool = False) -> None:
        """Every configuration on every chunk, one chunk after the other; `together`: side by side, as many as
        `live_bytes` holds with all their states, so that each block is asked for once for all of them.

        Raises ScoringError before anything is read where the engine would not give the model's own logits.
        """
        self._configs = list(configs)
        for config in self._configs:
            if len(config) != self.blocks.layers or not any(config):
                raise ScoringError(
                    f"a configuration has one number per block, {self.blocks.layers} here, and keeps at least one: "
                    f"got {config}."
                )
        ks = {k for config in (self.full, *self._configs) for k in config}
        everything = list(range(len(self._configs)))
        enter = self.blocks.around.entering
        states = (State(i, chunk, enter(chunk.hidden), list(everything)) for i, chunk in enumerate(chunks))
        for frontier in self._passes(states, together):
            insist_on_agreement(self.blocks, frontier[0].chunk, ks, self.remember)
            self._walk(0, frontier, read, self.live_bytes)
        self.report.bytes_read = self.blocks.bytes_read

    def _passes(self, states: Iterable[State], together: bool) -> Iterator[list[State]]:
        """Chunks that go through the blocks side by side: one, or as many as may live with all their states."""
        frontier: list[State] = []
        size = 0
        for state in states:
            needed = state.hidden.nbytes * len(state.configs)
            if frontier and (not together or size + needed > self.live_bytes):
                yield frontier
                frontier, size = [], 0
            frontier.append(state)
            size += needed
        if frontier:
            yield frontier

    def _walk(self, level: int, frontier: list[State], read: Reader, budget: int) -> None:
        """From before block `level` to the end. Empties `frontier`, so that no state lives longer than it must. Where
        the states behind the block would take more than `budget` bytes, one half waits while the other is finished."""
        if level == self.blocks.layers:
            self._finish(frontier, read)
            return
        if len(frontier) > 1 and self._needed(level, frontier) > budget:
            half = (len(frontier) + 1) // 2
            first, second = frontier[:half], frontier[half:]
            frontier.clear()
            self._walk(level, first, read, budget - _bytes(second))
            self._walk(level, second, read, budget)
            return
        following: list[State] = []
        with self.blocks.block(level) as block:
            for state, k, configs in self._branches(level, frontier):
                following.append(State(state.number, state.chunk, state.hidden, configs, state.past, k))
            frontier.clear()
            self._compute(level, block, following)
        self._walk(level + 1, following, read, budget)

    def _needed(self, level: int, frontier: list[State]) -> int:
        """Bytes of the states behind this block, what they share counted once."""
        grown = 3 if self.remember else 1  # keys and values are as wide as the stream, or narrower
        ks = [{self._configs[config][level] for config in state.configs} for state in frontier]
        new = sum(len(k - {0}) * grown * state.hidden.nbytes for k, state in zip(ks, frontier, strict=True))
        return new + _bytes([state for k, state in zip(ks, frontier, strict=True) if 0 in k or self.remember])

    def _branches(self, level: int, frontier: list[State]) -> Iterable[tuple[State, int, list[int]]]:
        """(state, k, configurations that give this block k), the full model's k first."""
        for state in frontier:
            by_k: dict[int, list[int]] = {}
            for config in state.configs:
                by_k.setdefault(self._configs[config][level], []).append(config)
            for k in sorted(by_k, key=lambda k: (k != self.full[level], -k)):
                yield state, k, by_k[k]

    def _compute(self, level: int, block: nn.Module, states: list[State]) -> None:
        """Run the block on those of `states` that have it, in place; the stream of the others goes on as it is."""
        waiting: dict[tuple[int, int], list[State]] = {}
        for state in states:
            if state.k:
                waiting.setdefault((state.number, state.k), []).append(state)
        places: dict[int, _Places] = {}  # per chunk: the same for all states
        for (number, k), group in waiting.items():
            step = max(1, self._stack(group[0]) // group[0].chunk.tokens)
            if number not in places:
                places[number] = self._places(level, group[0])
            for start in range(0, len(group), step):
                self._call(level, block, k, group[start : start + step], places[number])

    def _places(self, level: int, state: State) -> "_Places":
        chunk = state.chunk
        masks = Masks(chunk.allowed, chunk.positions, chunk.positions, state.hidden.dtype)
        mask = masks.of(self.blocks.around.windows[level])
        return _Places(mask, chunk.positions, self.blocks.rotary(state.hidden, chunk.positions))

    def _stack(self, state: State) -> int:
        if self.tokens_per_call is not None:
            return self.tokens_per_call
        return TOKENS_PER_CALL.get(state.hidden.device.type, TOKENS_PER_CALL["cuda"])

    def _call(self, level: int, block: nn.Module, k: int, states: list[State], places: "_Places") -> None:
        chunk, count = states[0].chunk, len(states)
        before = states[0].hidden if count == 1 else torch.cat([state.hidden for state in states])
        mask, positions, rotary = places if count == 1 or len(chunk.positions) == 1 else places.repeated(count)

        def run(memory: "Memory | None" = None) -> Tensor:
            with at_k(block, k):
                return call(block, before, mask, positions, rotary, memory)

        memory = Memory() if self.remember else None
        after = run(memory)
        self.report.calls += 1
        self.report.block_evaluations += count
        rows = len(chunk.positions)
        if self._is_full(states[0], level):
            for watch in self.watchers:
                watch(Step(level, block, states[0], after[:rows], run))
        for n, state in enumerate(states):
            state.hidden = after[n * rows : (n + 1) * rows]
            if memory is not None:
                keys, values = (t[n * rows : (n + 1) * rows] for t in (memory.keys, memory.values))
                state.past = (*state.past, Past(level, k, keys, values))

    def _is_full(self, state: State, level: int) -> bool:
        return self._configs[state.configs[0]][: level + 1] == self.full[: level + 1]

    def _finish(self, states: list[State], read: Reader) -> None:
        with self.blocks.head() as head:
            for state in states:
                logits = head(state.hidden.flatten(0, 1)[state.chunk.where])
                if not torch.isfinite(logits).all():
                    raise ScoringError(
                        "a model must give finite logits to be scored, this one gives NaN or infinity with the "
                        f"configuration {self._configs[state.configs[0]]}. Its weights are damaged, or this block "
                        "can't be dropped alone."
                    )
                read(state, logits)
        states.clear()


class _Places(NamedTuple):
    """Where tokens stand: mask [B, 1, S, S], positions [B, S], cos and sin [B, S, c]. One row serves any number."""

    mask: Tensor
    positions: Tensor
    rotary: tuple[Tensor, Tensor]

    def repeated(self, count: int) -> "_Places":
        """For `count` states below each other."""
        cos, sin = (part.repeat(count, 1, 1) for part in self.rotary)
        return _Places(self.mask.repeat(count, 1, 1, 1), self.positions.repeat(count, 1), (cos, sin))


def _bytes(states: Sequence[State]) -> int:
    """Of streams, keys and values, what states share counted once."""
    found = {id(state.hidden): state.hidden.nbytes for state in states}
    for state in states:
        found |= {id(past.keys): past.keys.nbytes + past.values.nbytes for past in state.past}
    return sum(found.values())


def extend(
    blocks: Blocks, past: Sequence[Past], hidden: Tensor, positions: Tensor, allowed: Tensor, keys: Tensor
) -> tuple[Tensor, tuple[Past, ...]]:
    """New tokens [1, n, d], as embedded, behind what `past` remembers: logits [n, V], and the longer past.

    allowed: [1, n, all], whom they see; keys [1, all]: the positions of all tokens, theirs at the end.
    """
    hidden = blocks.around.entering(hidden)
    rotary, masks = blocks.rotary(hidden, positions), Masks(allowed, positions, keys, hidden.dtype)
    longer = []
    for entry in past:
        memory = Memory((entry.keys, entry.values))
        with blocks.block(entry.block) as block, at_k(block, entry.k):
            hidden = call(block, hidden, masks.of(blocks.around.windows[entry.block]), positions, rotary, memory)
        longer.append(Past(entry.block, entry.k, memory.keys, memory.values))
    with blocks.head() as head:
        return head(hidden[0]), tuple(longer)


def full_config(model: nn.Module) -> Config:
    """The model as it is: each block's k, 1 for a block without router."""
    found = []
    for block in find_decoder(model).layers:
        choices = find_choices(block)
        found.append(choices[0].k if choices else 1)
    return tuple(found)
