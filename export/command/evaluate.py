"""`knobcast evaluate`: the accuracy of a model with knobs at run time, or of a variant as it is."""

from typing import Annotated

import typer

from export.command.options import TASKS, Json, MaxNewTokens
from export.command.output import Console, print_json, remarks, say_note, show_warnings
from export.command.request import RunTimeRequest
from export.command.sample_files import SampleFiles


def evaluate(
    request: RunTimeRequest,
    files: SampleFiles,
    metric: Annotated[str, typer.Option("--metric", help=TASKS)] = "exact_match",
    max_new_tokens: MaxNewTokens = 16,
    as_json: Json = False,
) -> None:
    """Measure accuracy: a model with knobs at run time, or a variant as it is."""
    from export.command.bars import sample_bar
    from export.command.show import show_evaluation
    from importance.readers.read import read_samples
    from importance.tasks import check_samples, metric_named

    measure = metric_named(metric)
    paths, plan = files.paths("evaluating"), request.plan
    samples = read_samples(paths, files.most, annotations=files.annotations, images=files.images, say=say_note)
    check_samples(samples, measure)
    show_warnings(plan.warnings)
    with sample_bar(remarks, len(samples)) as (say, progress):
        from importance.evaluate import evaluate_plan  # torch: only now that everything else is known to be right
        from transform.load import quiet_transformers

        quiet_transformers()
        found = evaluate_plan(plan, samples, max_new_tokens=max_new_tokens, metric=measure, say=say, progress=progress)
    if as_json:
        print_json(found.as_dict())
    else:
        show_evaluation(found.as_dict(), Console(highlight=False))
