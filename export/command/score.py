"""`knobcast score`: which blocks matter, as the scores that `knobcast export --blocks N` goes by."""

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from export.command.measuring import Measuring
from export.command.once import CommandLineError, OnceCommand
from export.command.sample_files import SampleFiles
from export.command.score_files import score_blocks
from export.command.work import Work, check_writable
from transform.errors import KnobError

if TYPE_CHECKING:
    from typer._click.core import Context

Plot = Annotated[Path | None, typer.Option("--plot", help="A bar chart of the scores, .svg or .png.")]
_MOVED = {
    "--search": "knobcast search MODEL --data FILE --strategy exact",
    "--mean-k": "knobcast share MODEL --data FILE --mean-k 5",
    "--merge": "knobcast merge A.json B.json --model MODEL",
}


class ScoreCommand(OnceCommand):
    """Tells whoever asks for what this command once did besides which command does it now."""

    def parse_args(self, ctx: "Context", args: list[str]) -> list[str]:
        """Refuse the options that have moved, by name."""
        moved = next((option for word in args if (option := word.split("=")[0]) in _MOVED), None)
        if moved is not None and not ctx.resilient_parsing:
            raise CommandLineError(f"{moved} is a command of its own now: {_MOVED[moved]}.")
        return super().parse_args(ctx, args)


def score(
    how: Measuring,
    files: SampleFiles,
    work: Work,
    validate: Annotated[
        Path | None, typer.Option("--validate", help="Other samples: how far do the rankings agree (Spearman)?")
    ] = None,
    validate_annotations: Annotated[
        Path | None, typer.Option("--validate-annotations", help="The answers to the VQAv2 questions of --validate.")
    ] = None,
    plot: Plot = None,
) -> None:
    """Measure which blocks matter, on your own samples: what --blocks N goes by."""
    if validate is None and validate_annotations is not None:
        raise KnobError("--validate-annotations only make sense with --validate. Add it, or leave them out.")
    target = work.target(how.checkpoint, "scores.json")
    check_plot(plot)
    setting = how.setting(files)
    other = None
    if validate is not None:
        other = replace(
            setting, data=(validate,), annotations=validate_annotations, limit=None, metric=setting.chosen.name
        )
        other.check()
    from importance.ablation import single_ablations
    from importance.configurations import Cost

    cost = Cost.of(single_ablations(setting.full) if setting.chosen.kind == "ablation" else [setting.full])
    work.do(setting, target, cost, 1, lambda scorer: score_blocks(scorer, other, target, work.force, plot), other)


def check_plot(plot: Path | None) -> None:
    """Refuse a chart that can't be drawn."""
    if plot is None:
        return
    check_writable(plot)
    if plot.suffix.lower() not in (".svg", ".png"):
        raise KnobError(f"--plot writes .svg or .png, got {plot.name}. Rename it.")
    if find_spec("matplotlib") is None:
        raise KnobError('a plot needs matplotlib: pip install -e ".[plot]". Or leave --plot out.')
