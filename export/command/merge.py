"""`knobcast merge`: scores of several data sets become one file."""

from pathlib import Path
from typing import Annotated

import typer

from export.command.once import joined
from export.command.options import Json, Revision
from export.command.output import print_json
from export.command.score import Plot, check_plot
from export.command.score_files import show_result, write_plot
from export.command.work import Force, Out, check_writable, refuse_existing
from transform.errors import KnobError


def merge(
    files: Annotated[list[Path], typer.Argument(help="Scores files of one model.")],
    model: Annotated[
        str | None, typer.Option("--model", help="Directory or hub id; absent: the embedded default model.")
    ] = None,
    revision: Revision = None,
    how: Annotated[str, typer.Option("--how", help="mean, weighted or median.")] = "mean",
    weights: Annotated[list[str] | None, typer.Option("--weights", help="--how weighted: 0.6,0.4.")] = None,
    plot: Plot = None,
    out: Out = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Merge scores of several data sets, each normalised first."""
    from importance.atomic import sweep_staged
    from importance.merge import merge_scores
    from importance.scores import model_digest, read_scores, write_scores
    from transform.read import read_checkpoint
    from transform.source import resolve

    shares = None if weights is None else _floats(str(joined(weights)))
    checkpoint = read_checkpoint(resolve(model, revision))
    target = (out or checkpoint.path / "scores.json").resolve()
    check_writable(target)
    check_plot(plot)
    layers, digest = checkpoint.settings.layers, model_digest(checkpoint)
    scores = [read_scores(file, layers, digest) for file in files]
    found = merge_scores(scores, how=how, weights=shares)
    sweep_staged(target.parent, target.name)
    refuse_existing(target, out is None, force)
    write_scores(found, target, force)
    if plot is not None:
        write_plot(found, plot, layers)
    if as_json:
        print_json({**found.to_json(), "out": str(target)})
    else:
        show_result(found.to_json(), target, layers)


def _floats(text: str) -> list[float]:
    try:
        return [float(weight) for weight in text.split(",")]
    except ValueError as error:
        raise KnobError(
            f"--weights must be numbers with commas between them, such as 0.6,0.4: got {text!r}."
        ) from error
