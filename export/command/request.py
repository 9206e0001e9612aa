"""What is asked of a model, as values: the options of `plan`, `export` and `evaluate`, and the plan they stand for."""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from export.command.once import joined
from export.command.options import (
    Activations,
    Blocks,
    Drop,
    Dtype,
    Family,
    Form,
    Json,
    K,
    Keep,
    Member,
    Model,
    Prompt,
    Resize,
    Revision,
    Rule,
    Scores,
    Static,
    Tokens,
)
from transform.errors import KnobError
from transform.knobs import Knobs, parse_blocks, parse_count, parse_k, parse_tokens

if TYPE_CHECKING:
    from importance.choose import Source
    from transform.checkpoint import Checkpoint
    from transform.plan import Plan


@dataclass(frozen=True)
class RunTimeRequest:
    """A model, and the knobs that can be set on it while it runs. None is not said."""

    model: Model = None
    k: K = None
    blocks: Blocks = None
    keep_blocks: Keep = None
    drop_blocks: Drop = None
    tokens: Tokens = None
    scores: Scores = None
    revision: Revision = None

    @property
    def knobs(self) -> Knobs:
        """As they were typed, checked; which blocks stay is the plan's to say."""
        return Knobs(parse_k(self.k), tokens=parse_tokens(self.tokens))

    @cached_property
    def source(self) -> "Checkpoint":
        """The model, from its headers."""
        from transform.read import read_checkpoint
        from transform.source import resolve

        return read_checkpoint(resolve(self.model, self.revision))

    @cached_property
    def ranking(self) -> "Source | None":
        """What the blocks are ranked by, where a number of them is asked for that leaves some out."""
        from importance.choose import find_scores
        from importance.scores import model_digest

        blocks, layers = parse_count(self.blocks, "--blocks"), self.source.settings.layers
        if blocks is None or self.keep_blocks or self.drop_blocks or not 1 <= blocks < layers:
            return None
        family = self.source.architecture.model_type
        return find_scores(self.source.path, self.scores, layers, lambda: model_digest(self.source), family)

    @cached_property
    def plan(self) -> "Plan":
        """All of it, from headers; raises KnobError, ScoresError or CheckpointError."""
        from importance.choose import choose_blocks
        from transform.plan import make_plan

        knobs, blocks = self.knobs, parse_count(self.blocks, "--blocks")
        if self.scores is not None and blocks is None:
            raise KnobError(
                "--scores choose which blocks stay, so they need a number: give --blocks N, or leave them out."
            )
        keep = parse_blocks(joined(self.keep_blocks), "--keep-blocks")
        drop = parse_blocks(joined(self.drop_blocks), "--drop-blocks")
        kept = choose_blocks(self.source, blocks=blocks, keep=keep, drop=drop, scores=self.ranking)
        return make_plan(self.source, replace(knobs, keep=kept))


@dataclass(frozen=True)
class Request(RunTimeRequest):
    """The same, and how a variant of it is stored and takes pictures."""

    resize: Resize = None
    rule: Rule = None
    form: Form = None
    dtype: Dtype = "source"
    activations: Activations = None

    @property
    def knobs(self) -> Knobs:
        """As they were typed, checked; which blocks stay is the plan's to say."""
        said = super().knobs
        said = replace(said, dtype=self.dtype, form=self.form, activations=self.activations)
        return replace(said, resize=self.resize, rule=self.rule)


@dataclass(frozen=True)
class Graphs:
    """Which graphs a variant gets, or all those of a family."""

    family: Family = None
    member: Member = None
    static: Static = None
    prompt: Prompt = None
    onnx: Annotated[bool, typer.Option("--onnx/--no-onnx", help="Emit ONNX graphs.")] = True


@dataclass(frozen=True)
class Target:
    """Where a variant goes, and what is done on the way."""

    out: Annotated[Path | None, typer.Option("--out", help="Default: artifacts/MODEL-k4-b12-t432.")] = None
    force: Annotated[bool, typer.Option("--force", help="Replace an existing variant.")] = False
    verify: Annotated[bool, typer.Option("--verify/--no-verify", help="Prove the variant before it appears.")] = True
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and stop.")] = False
    measured: Annotated[
        Path | None, typer.Option("--measured", help="A sweep of MODEL: card and manifest say what it measured.")
    ] = None
    as_json: Json = False
