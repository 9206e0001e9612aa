"""`knobcast score`: rank blocks, search sets of them, or share out experts, and write what `knobcast export` reads.

Ten lines around each of `importance/`'s functions; nothing here imports torch before everything else is known to be
right.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape

from export.command.once import given_options, joined
from export.command.options import (
    SAMPLES,
    TASKS,
    Annotations,
    Images,
    Json,
    Limit,
    MaxNewTokens,
    Model,
    Revision,
    Tokens,
    print_json,
    say_note,
    stderr,
)
from export.command.score_files import merge_files, score_blocks, search_sets, share_experts, show_result
from importance.atomic import sweep_staged
from importance.store import job_folder
from transform.errors import KnobError, WriteError
from transform.strict_json import Record

if TYPE_CHECKING:
    from importance.score import Scorer, Setting

METRICS = "accuracy, nll, kl, block_influence, angular, activation, gradient, attention or router_mass"
WITH_MERGE = {"--merge", "--how", "--weights", "--plot", "--out", "--force", "--json"}
SEARCHES = "one_shot, window, greedy, beam or exact"


def score(
    ctx: typer.Context,
    model: Model = None,
    revision: Revision = None,
    data: Annotated[list[Path] | None, typer.Option("--data", help=SAMPLES)] = None,
    annotations: Annotations = None,
    images: Images = None,
    limit: Limit = None,
    metric: Annotated[
        str | None,
        typer.Option("--metric", help=f"{METRICS}. Absent: accuracy, or kl where samples have no answers."),
    ] = None,
    task: Annotated[str, typer.Option("--task", help=f"How an answer is graded: {TASKS}")] = "exact_match",
    scoring: Annotated[
        str | None,
        typer.Option("--scoring", help="Accuracy by: generate (greedy answers), likelihood (one pass), choices."),
    ] = None,
    tokens: Tokens = None,
    k: Annotated[str | None, typer.Option("--k", help="Experts per token while scoring; absent: the model's.")] = None,
    max_new_tokens: MaxNewTokens = 16,
    vision_weight: Annotated[
        str, typer.Option("--vision-weight", help="Share of vision tokens in stream metrics, 0 to 1; `count`: as many.")
    ] = "0.5",
    search: Annotated[
        str | None, typer.Option("--search", help=f"Search sets of blocks: {SEARCHES}. Writes sets.json.")
    ] = None,
    max_drop: Annotated[
        int | None, typer.Option("--max-drop", min=1, help="The most blocks a search drops; absent: 4.")
    ] = None,
    protect: Annotated[
        list[str] | None, typer.Option("--protect", help="Blocks a search keeps: 0,15 (absent: first and last); none.")
    ] = None,
    nested: Annotated[bool, typer.Option("--nested", help="exact: each set part of the next one.")] = False,
    beam_width: Annotated[
        int | None, typer.Option("--beam-width", min=1, help="Sets of each size that beam keeps; absent: 3.")
    ] = None,
    mean_k: Annotated[
        float | None, typer.Option("--mean-k", help="Share out experts: the best k per block with this mean.")
    ] = None,
    ks: Annotated[
        list[str] | None, typer.Option("--ks", help="The k that --mean-k tries in each block; absent: 1,2,4,6.")
    ] = None,
    validate: Annotated[
        Path | None, typer.Option("--validate", help="Other samples: how far do the rankings agree (Spearman)?")
    ] = None,
    merge: Annotated[
        list[Path] | None, typer.Option("--merge", help="Merge scores files instead of scoring; repeat it.")
    ] = None,
    validate_annotations: Annotated[
        Path | None, typer.Option("--validate-annotations", help="The answers to the VQAv2 questions of --validate.")
    ] = None,
    how: Annotated[str | None, typer.Option("--how", help="--merge by mean (default), weighted or median.")] = None,
    weights: Annotated[list[str] | None, typer.Option("--weights", help="--how weighted: 0.6,0.4.")] = None,
    stream: Annotated[
        bool, typer.Option("--stream", help="Read blocks from disk one at a time: a model larger than memory.")
    ] = False,
    executor: Annotated[str, typer.Option("--executor", help="local, processes or ray.")] = "local",
    workers: Annotated[int | None, typer.Option("--workers", min=1, help="Jobs at once.")] = None,
    jobs: Annotated[
        Path | None, typer.Option("--jobs", help="Folder of finished jobs, kept; absent: OUT.jobs until it is done.")
    ] = None,
    plot: Annotated[Path | None, typer.Option("--plot", help="A bar chart of the scores, .svg or .png.")] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Default: scores.json (sets.json, widths.json) beside the model.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what it would cost and stop.")] = False,
    as_json: Json = False,
) -> None:
    """Measure which blocks matter, on your own samples: what --blocks N goes by."""
    from transform.knobs import parse_count, parse_tokens
    from transform.read import read_checkpoint
    from transform.source import resolve

    checkpoint = read_checkpoint(resolve(model, revision))
    kept, shares, tries = joined(protect), joined(weights), joined(ks)
    _only_with("--merge", bool(merge), {"--how": how, "--weights": shares})
    _only_with("--search", search is not None, {
        "--max-drop": max_drop, "--protect": kept, "--nested": nested or None, "--beam-width": beam_width,
    })  # fmt: skip
    _only_with("--mean-k", mean_k is not None, {"--ks": tries})
    _only_with("--validate", validate is not None, {"--validate-annotations": validate_annotations})
    purposes = {"--search": search, "--mean-k": mean_k, "--merge": merge or None}
    given = [option for option, value in purposes.items() if value is not None]
    if len(given) > 1:
        raise KnobError(f"{' and '.join(given)} are different tasks: one at a time. Leave one of them out.")
    if given and (validate is not None or (plot is not None and not merge)):
        raise KnobError(f"--validate and --plot are for scores of blocks, {given[0]} makes none. Leave them out.")
    name = "scores.json" if search is None and mean_k is None else "sets.json" if search else "widths.json"
    target = (out or checkpoint.path / name).resolve()
    _check_outputs(target, plot)
    if not dry_run:
        sweep_staged(target.parent, target.name)
    if target.exists() and not force and not dry_run:
        raise WriteError(f"{target} exists; pass --force or choose another --out.")
    if merge:
        idle = sorted(given_options(ctx) - WITH_MERGE)
        if idle:
            raise KnobError(f"--merge only reads and writes scores files. Leave {', '.join(idle)} out.")
        merge_files(
            merge,
            how or "mean",
            None if shares is None else _floats(shares),
            checkpoint,
            target,
            force,
            plot,
            as_json,
        )
        return
    if not data:
        raise KnobError("scoring needs samples: give --data FILE (.jsonl, VQAv2 questions or .parquet).")

    from importance.score import Setting
    from transform.load import quiet_transformers

    quiet_transformers()
    setting = Setting(
        checkpoint, tuple(data), annotations, images, parse_count(limit, "--limit"), metric, task, scoring,
        parse_tokens(tokens), parse_count(k, "--k"), max_new_tokens, stream, _weight(vision_weight),
    )  # fmt: skip
    setting.check()
    if scoring is not None and setting.chosen.name != "accuracy":
        raise KnobError(f"--scoring says how accuracy is measured, the metric is {setting.chosen.name}. Leave it out.")
    if mean_k is not None and setting.chosen.kind != "ablation":
        raise KnobError(
            f"--mean-k asks what fewer experts cost, by accuracy, nll or kl; {setting.chosen.name} says nothing about "
            "that. Choose one of these with --metric."
        )
    other = None
    if validate is not None:
        other = replace(
            setting, data=(validate,), annotations=validate_annotations, limit=None, metric=setting.chosen.name
        )
        other.check()
    for line in [*setting.notes, *([] if other is None else other.notes)]:
        say_note(line)
    largest = max(setting.full)
    tried = _numbers(tries) if tries is not None else [n for n in (1, 2, 4, 6) if n < largest]
    if mean_k is not None and not (tried and min(tried) <= mean_k <= largest):
        raise KnobError(
            f"--mean-k must be from the least of --ks to the model's k: from {min(tried, default=largest)} to "
            f"{largest}, got {mean_k:g}. Choose one between, or smaller --ks."
        )
    free = len(setting.full) - (2 if kept is None else len(_protected(kept) or ()))
    most = max_drop if max_drop is not None else max(1, min(4, free))
    width = 3 if beam_width is None else beam_width
    cost = _cost(setting, search, most, _protected(kept), width, nested, tried, mean_k)
    if not as_json or not dry_run:
        _show_cost(cost, Console(highlight=False) if dry_run else stderr)
    if dry_run:
        if as_json:
            print_json({**cost, "out": str(target)})
        return
    for one in (setting, other):
        if one is not None:
            one.look()
    store = jobs or target.with_name(f"{target.name}.jobs")
    total = len(setting.samples) * cost["passes"] + (0 if other is None else len(other.samples))
    with (
        job_folder(store, jobs is not None, lambda: not force and target.exists()),
        _kept(store),
        _scorer(setting, store, executor, workers, total) as scorer,
    ):
        if search is not None:
            options = {"protected": _protected(kept), "nested": nested, "width": width}
            result = search_sets(scorer, search, most, options, target, force)
        elif mean_k is not None:
            result = share_experts(scorer, mean_k, tried, target, force)
        else:
            result = score_blocks(scorer, other, target, force, plot)
    if as_json:
        print_json({**result, "engine": scorer.report, "out": str(target)})
    else:
        show_result(result, target, checkpoint.settings.layers)


def _cost(
    setting: "Setting",
    search: str | None,
    max_drop: int,
    protected: frozenset[int] | None,
    width: int,
    nested: bool,
    ks: list[int],
    mean_k: float | None,
) -> Record:
    """What a run takes at most, before it starts. passes: how often the samples are gone through."""
    from importance.ablation import single_ablations
    from importance.allocation import profile_configs
    from importance.configurations import Cost
    from importance.search import expected_cost

    full, passes = setting.full, 1
    if search is not None:
        cost = expected_cost(search, full, max_drop, protected, width, nested=nested)
        passes = max_drop if search in ("greedy", "beam") else 2 if search == "one_shot" else 1
    elif mean_k is not None:
        cost, passes = Cost.of([full, *profile_configs(full, ks)]), 2
    elif setting.chosen.kind == "ablation":
        cost = Cost.of(single_ablations(full))
    else:
        cost = Cost.of([full])
    return {
        "metric": setting.chosen.name,
        "samples": len(setting.samples),
        "jobs": len(setting.shards()),
        "configurations": cost.sets,
        "block_evaluations": cost.block_evaluations,
        "naive_block_evaluations": cost.naive_block_evaluations,
        "full_passes": round(cost.block_evaluations / len(full), 2),
        "passes": passes,
    }


def _show_cost(cost: Record, console: Console) -> None:
    console.print(
        f"{cost['metric']} on {cost['samples']} samples, {cost['configurations']:,} configurations: "
        f"{cost['block_evaluations']:,} block evaluations per picture (one by one: "
        f"{cost['naive_block_evaluations']:,}), as much as {cost['full_passes']:,} passes of the full model"
    )


@contextmanager
def _scorer(setting: "Setting", store: Path, executor: str, workers: int | None, total: int) -> Iterator["Scorer"]:
    from export.command.show import sample_bar
    from importance.executors import open_executor
    from importance.score import Scorer

    with (
        sample_bar(stderr, total) as (say, advance),
        open_executor(executor, workers) as pool,
    ):
        say("score")
        yield Scorer(setting, store, pool, advance)


@contextmanager
def _kept(store: Path) -> Iterator[None]:
    """Ctrl-C says where the finished jobs are."""
    try:
        yield
    except KeyboardInterrupt:
        done = len(list(store.glob("*.json"))) if store.is_dir() else 0
        kept = f"interrupted; {done} finished jobs are kept in {store}, the same command goes on from there"
        stderr.print(escape(kept), soft_wrap=True)
        raise typer.Exit(130) from None


def _only_with(option: str, given: bool, others: Record) -> None:
    """Options that mean something with another one only."""
    idle = [name for name, value in others.items() if value is not None]
    if idle and not given:
        raise KnobError(f"{', '.join(idle)} only make sense with {option}. Add it, or leave them out.")


def _check_outputs(target: Path, plot: Path | None) -> None:
    """Find out now, not after the work, that nothing can be written."""
    for path in (target, *([plot] if plot else [])):
        if path.is_dir():
            raise WriteError(f"{path} is a folder, and the name of a file is needed. Choose another.")
        folder = path.resolve().parent
        if not folder.is_dir() or not os.access(folder, os.W_OK):
            raise WriteError(f"{path} must lie in a folder that can be written to, {folder} is none. Choose another.")
    if plot is not None:
        if plot.suffix.lower() not in (".svg", ".png"):
            raise KnobError(f"--plot writes .svg or .png, got {plot.name}. Rename it.")
        if find_spec("matplotlib") is None:
            raise KnobError('a plot needs matplotlib: pip install -e ".[plot]". Or leave --plot out.')


def _weight(text: str) -> float | None:
    if text == "count":
        return None
    try:
        return float(text)
    except ValueError as error:
        raise KnobError(f"--vision-weight must be a number from 0 to 1, or count; got {text!r}.") from error


def _floats(text: str) -> list[float]:
    try:
        return [float(weight) for weight in text.split(",")]
    except ValueError as error:
        raise KnobError(
            f"--weights must be numbers with commas between them, such as 0.6,0.4: got {text!r}."
        ) from error


def _numbers(text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise KnobError(f"--ks must be whole numbers with commas between them, such as 1,2,4: got {text!r}.")
    return [int(part) for part in parts]


def _protected(text: str | None) -> frozenset[int] | None:
    from transform.knobs import parse_blocks

    if text == "none":
        return frozenset()
    blocks = parse_blocks(text, "--protect")
    return None if blocks is None else frozenset(blocks)
