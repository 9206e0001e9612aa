"""`knobcast evaluate`: the accuracy of a model with knobs at run time, or of a variant as it is."""

from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from export.command.export import plan_of
from export.command.options import (
    TASKS,
    Annotations,
    Blocks,
    Data,
    Drop,
    Images,
    Json,
    K,
    Keep,
    Limit,
    MaxNewTokens,
    Model,
    Revision,
    Scores,
    Tokens,
    print_json,
    say_note,
    stderr,
)


def evaluate(
    data: Data,
    model: Model = None,
    k: K = None,
    blocks: Blocks = None,
    keep_blocks: Keep = None,
    drop_blocks: Drop = None,
    tokens: Tokens = None,
    scores: Scores = None,
    limit: Limit = None,
    metric: Annotated[str, typer.Option("--metric", help=TASKS)] = "exact_match",
    annotations: Annotations = None,
    images: Images = None,
    max_new_tokens: MaxNewTokens = 16,
    revision: Revision = None,
    as_json: Json = False,
) -> None:
    """Measure accuracy: a model with knobs at run time, or a variant as it is."""
    from export.command.show import sample_bar, show_evaluation
    from importance.readers.read import read_samples
    from importance.tasks import check_samples, metric_named
    from transform.knobs import parse_count

    measure = metric_named(metric)
    made = plan_of(model, k, blocks, keep_blocks, drop_blocks, tokens, scores, "source", None, None, None, revision)
    samples = read_samples(data, parse_count(limit, "--limit"), annotations=annotations, images=images, say=say_note)
    check_samples(samples, measure)
    for warning in made.warnings:
        stderr.print(f"[yellow]warning:[/yellow] {escape(warning)}", soft_wrap=True)
    with sample_bar(stderr, len(samples)) as (say, progress):
        from importance.evaluate import evaluate_plan  # torch: only now that everything else is known to be right
        from transform.load import quiet_transformers

        quiet_transformers()
        found = evaluate_plan(made, samples, max_new_tokens=max_new_tokens, metric=measure, say=say, progress=progress)
    if as_json:
        print_json(found.as_dict())
    else:
        show_evaluation(found.as_dict(), Console(highlight=False))
