"""What `score`, `search` and `share` measure, and how: their common options and the `Setting` they stand for."""

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Annotated

import typer

from export.command.options import TASKS, MaxNewTokens, Model, Revision, Tokens
from export.command.sample_files import SampleFiles
from importance.metrics import METRICS
from transform.errors import KnobError
from transform.knobs import parse_count, parse_tokens

if TYPE_CHECKING:
    from importance.score import Setting
    from transform.checkpoint import Checkpoint

_NAMES = [each.name for each in METRICS]


@dataclass(frozen=True)
class Measuring:
    """A model and a metric. None is not said."""

    model: Model = None
    revision: Revision = None
    metric: Annotated[
        str | None,
        typer.Option(
            "--metric",
            help=f"{', '.join(_NAMES[:-1])} or {_NAMES[-1]}. Absent: accuracy, or kl where samples have no answers.",
        ),
    ] = None
    task: Annotated[str, typer.Option("--task", help=f"How an answer is graded: {TASKS}")] = "exact_match"
    scoring: Annotated[
        str | None,
        typer.Option("--scoring", help="Accuracy by: generate (greedy answers), likelihood (one pass), choices."),
    ] = None
    tokens: Tokens = None
    k: Annotated[str | None, typer.Option("--k", help="Experts per token while scoring; absent: the model's.")] = None
    max_new_tokens: MaxNewTokens = 16
    vision_weight: Annotated[
        str, typer.Option("--vision-weight", help="Share of vision tokens in stream metrics, 0 to 1; `count`: as many.")
    ] = "0.5"
    stream: Annotated[
        bool, typer.Option("--stream", help="Read blocks from disk one at a time: a model larger than memory.")
    ] = False

    @cached_property
    def checkpoint(self) -> "Checkpoint":
        """The model, from its headers."""
        from transform.read import read_checkpoint
        from transform.source import resolve

        return read_checkpoint(resolve(self.model, self.revision))

    def setting(self, files: SampleFiles) -> "Setting":
        """What is scored on which samples, checked; raises KnobError or SamplesError."""
        paths = files.paths("scoring")
        from importance.score import Setting  # numpy, torch: only now
        from transform.load import quiet_transformers

        quiet_transformers()
        made = Setting(
            self.checkpoint, paths, files.annotations, files.images, files.most, self.metric, self.task, self.scoring,
            parse_tokens(self.tokens), parse_count(self.k, "--k"), self.max_new_tokens, self.stream,
            _weight(self.vision_weight),
        )  # fmt: skip
        made.check()
        if self.scoring is not None and made.chosen.name != "accuracy":
            raise KnobError(f"--scoring says how accuracy is measured, the metric is {made.chosen.name}. Leave it out.")
        return made


def _weight(text: str) -> float | None:
    if text == "count":
        return None
    try:
        return float(text)
    except ValueError as error:
        raise KnobError(f"--vision-weight must be a number from 0 to 1, or count; got {text!r}.") from error
