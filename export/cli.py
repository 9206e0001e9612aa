"""The command line: `knobcast export|plan|verify|run|…`. Each command is a few lines around one function.

`--json` prints one JSON object on stdout; progress and messages go to stderr. Nothing here imports torch.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from export.bench_command import bench
from export.commands import OnceCommand, joined
from export.derive_command import derive
from export.layout_command import layout
from export.options import (
    TASKS,
    Annotations,
    Blocks,
    Data,
    Drop,
    Dtype,
    Family,
    Form,
    Images,
    Json,
    K,
    Keep,
    Limit,
    MaxNewTokens,
    Member,
    Model,
    Prompt,
    Resize,
    Revision,
    Rule,
    Scores,
    Static,
    Tokens,
    print_json,
    say_note,
    stderr,
)
from export.score_command import score
from transform.errors import KnobcastError, KnobError

HELP = """Fixed, verified, smaller variants of mixture-of-experts checkpoints, with ONNX graphs.

`--json` prints one JSON object on stdout; progress and messages go to stderr.
"""

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, help=HELP)
app.command(cls=OnceCommand)(score)
app.command(cls=OnceCommand)(derive)
app.command(cls=OnceCommand)(bench)
app.command(cls=OnceCommand)(layout)


@app.command(cls=OnceCommand)
def plan(
    model: Model = None,
    k: K = None,
    blocks: Blocks = None,
    keep_blocks: Keep = None,
    drop_blocks: Drop = None,
    tokens: Tokens = None,
    scores: Scores = None,
    dtype: Dtype = "source",
    form: Form = None,
    resize: Resize = None,
    rule: Rule = None,
    revision: Revision = None,
    as_json: Json = False,
) -> None:
    """Show what a setting would do, from headers alone."""
    made = _plan(model, k, blocks, keep_blocks, drop_blocks, tokens, scores, dtype, resize, rule, form, revision)
    if as_json:
        print_json(made.as_dict())
    else:
        from export.show import show_plan

        show_plan(made, Console(highlight=False))


@app.command(cls=OnceCommand)
def export(
    model: Model = None,
    k: K = None,
    blocks: Blocks = None,
    keep_blocks: Keep = None,
    drop_blocks: Drop = None,
    tokens: Tokens = None,
    scores: Scores = None,
    dtype: Dtype = "source",
    form: Form = None,
    resize: Resize = None,
    rule: Rule = None,
    family: Family = None,
    member: Member = None,
    static: Static = None,
    prompt: Prompt = None,
    revision: Revision = None,
    out: Annotated[Path | None, typer.Option("--out", help="Default: artifacts/MODEL-k4-b12-t432.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing variant.")] = False,
    onnx: Annotated[bool, typer.Option("--onnx/--no-onnx", help="Emit ONNX graphs.")] = True,
    verify: Annotated[bool, typer.Option("--verify/--no-verify", help="Prove the variant before it appears.")] = True,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and stop.")] = False,
    as_json: Json = False,
) -> None:
    """Write a fixed, verified, standalone variant, or a family of them over one set of weights."""
    from export.show import progress_bars, show_plan, show_result
    from export.static import parse_static, plan_static
    from export.variant import export_variant
    from transform.plan import weight_bytes

    cache, chunk = parse_static(static, prompt)
    if cache is not None and not onnx:
        raise KnobError("--static adds graphs, and --no-onnx leaves all of them out. Leave out one of the two.")
    if family is not None or member is not None:
        from export.family_command import export_grid, member_plan

        chosen = {"--k": k, "--blocks": blocks, "--keep-blocks": joined(keep_blocks)}
        chosen["--drop-blocks"] = joined(drop_blocks)
    if family is not None:
        given = {**chosen, "--member": member, "--no-onnx": None if onnx else "", "--static": static}
        options = {"tokens": tokens, "scores": scores, "dtype": dtype, "form": form, "resize": resize, "rule": rule}
        export_grid(model, family, given, options, out, verify, force, dry_run, as_json, revision)
        return
    if member is not None:
        given = {**chosen, "--tokens": tokens, "--scores": scores, "--revision": revision}
        made, name = member_plan(model, member, given, dtype, form, resize, rule)
    else:
        made = _plan(model, k, blocks, keep_blocks, drop_blocks, tokens, scores, dtype, resize, rule, form, revision)
        name = made.name
    graphs = plan_static(made, cache, chunk) if cache is not None else None
    target = out or Path("artifacts") / (f"{name}-s{cache}" if cache is not None else name)
    if not as_json or not dry_run:
        show_plan(made, Console(highlight=False) if dry_run else stderr)
    if dry_run:
        if as_json:
            print_json({**made.as_dict(), **({"static": graphs.as_dict()} if graphs else {}), "out": str(target)})
        return
    with progress_bars(stderr, weight_bytes(made.target)) as (say, progress):
        manifest = export_variant(
            made, target, onnx=onnx, verify=verify, force=force, say=say, progress=progress, static=graphs
        )
    if as_json:
        print_json({**manifest, "out": str(target)})
    else:
        show_result(manifest, target, Console(highlight=False))


@app.command(cls=OnceCommand)
def verify(
    directory: Annotated[Path, typer.Argument(help="A variant or a family.")],
    as_json: Json = False,
) -> None:
    """Check a variant: its sums, its graphs' ranges, a fresh reload, its golden outputs."""
    from export.integrity import check_before_torch
    from export.show import progress_bars

    check_before_torch(directory)
    from export.family import FILE, verify_family
    from export.verify import verify_directory

    check = verify_family if (directory / FILE).is_file() else verify_directory
    with progress_bars(stderr, None) as (say, _):
        results = check(directory, say)
    if as_json:
        print_json({"directory": str(directory), "verification": "passed", **results})
    else:
        console = Console(highlight=False)
        console.print(f"[green]verified[/green] {escape(str(directory))}", soft_wrap=True)
        if isinstance(skipped := results.get("as_user"), str):
            console.print(f"loading it as users do was {escape(skipped)}", soft_wrap=True)


@app.command(cls=OnceCommand)
def run(
    directory: Annotated[Path, typer.Argument(help="A variant.")],
    prompt: Annotated[str, typer.Option("--prompt", help="The question.")],
    image: Annotated[Path | None, typer.Option("--image", help="A picture file.")] = None,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1, help="Longest answer.")] = 64,
    provider: Annotated[str, typer.Option("--provider", help="cpu, cuda or tensorrt.")] = "cpu",
    threads: Annotated[int, typer.Option("--threads", min=0, help="Of one operator; 0: all cores.")] = 0,
    member: Annotated[str | None, typer.Option("--member", help="Of a family, this decoder: k4-b12.")] = None,
    as_json: Json = False,
) -> None:
    """Answer a prompt about an image with onnxruntime alone."""
    from export.run import answer

    stream: Callable[[str], None] | None = None if as_json else lambda piece: print(piece, end="", flush=True)
    where: dict[str, Any] = {"provider": provider, "threads": threads, "member": member}
    given = answer(directory, image, prompt, max_new_tokens=max_new_tokens, stream=stream, **where)
    if as_json:
        print_json(given.as_dict())
    else:
        print()
        stderr.print(given.speed(), style="dim", soft_wrap=True)


@app.command(cls=OnceCommand)
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
    from export.show import sample_bar, show_evaluation
    from importance.samples import read_samples
    from importance.tasks import check_samples, metric_named
    from transform.knobs import parse_count

    measure = metric_named(metric)
    made = _plan(model, k, blocks, keep_blocks, drop_blocks, tokens, scores, "source", None, None, None, revision)
    samples = read_samples(data, parse_count(limit, "--limit"), annotations=annotations, images=images, say=say_note)
    check_samples(samples, measure)
    for warning in made.warnings:
        stderr.print(f"[yellow]warning:[/yellow] {escape(warning)}", soft_wrap=True)
    with sample_bar(stderr, len(samples)) as (say, progress):
        from export.gate import quiet_transformers
        from importance.evaluate import evaluate_plan  # torch: only now that everything else is known to be right

        quiet_transformers()
        found = evaluate_plan(made, samples, max_new_tokens=max_new_tokens, metric=measure, say=say, progress=progress)
    if as_json:
        print_json(found.as_dict())
    else:
        show_evaluation(found.as_dict(), Console(highlight=False))


def _plan(
    model: str | None,
    k: str | None,
    blocks: str | None,
    keep: list[str] | None,
    drop: list[str] | None,
    tokens: str | None,
    scores: str | None,
    dtype: str,
    resize: str | None,
    rule: str | None,
    form: str | None = None,
    revision: str | None = None,
) -> Any:
    """Parse the knobs, read the headers, choose the blocks, make the plan."""
    from importance.choose import choose_blocks
    from transform.checkpoint import read_checkpoint
    from transform.knobs import Knobs, parse_blocks, parse_count, parse_k, parse_tokens
    from transform.plan import make_plan
    from transform.source import resolve

    knobs = Knobs(parse_k(k), None, parse_tokens(tokens), dtype, form)
    wanted = parse_count(blocks, "--blocks")
    if scores is not None and wanted is None:
        raise KnobError("--scores choose which blocks stay, so they need a number: give --blocks N, or leave them out.")
    kept, dropped = parse_blocks(joined(keep), "--keep-blocks"), parse_blocks(joined(drop), "--drop-blocks")
    source = read_checkpoint(resolve(model, revision))
    chosen = choose_blocks(source, blocks=wanted, keep=kept, drop=dropped, scores=scores)
    return make_plan(source, replace(knobs, keep=chosen), resize, rule)


@contextmanager
def plain_errors() -> Iterator[None]:
    """One message on stderr and exit code 1 for everything knobcast refuses; 130 for Ctrl-C."""
    try:
        yield
    except KnobcastError as error:
        _refuse(error)
    except BaseException as error:
        if _interrupted(error):
            stderr.print("interrupted; nothing was written")
            sys.exit(130)
        if not isinstance(error, ValueError):
            raise
        # the travelling files have errors of their own; importing them takes longer than most commands
        from transform.molmoe.preprocessing import ImageError
        from transform.molmoe.tiling import BudgetError

        if not isinstance(error, BudgetError | ImageError):
            raise
        _refuse(error)


def _interrupted(error: BaseException | None) -> bool:
    """Ctrl-C as it arrives here: typer makes an exit code of it, and some imports an error of their own."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return error is not None


def _refuse(error: Exception) -> None:
    stderr.print(f"[red]error:[/red] {escape(str(error))}", soft_wrap=True)
    sys.exit(1)


def main() -> None:
    """Entry point of the console script."""
    with plain_errors():
        app()


if __name__ == "__main__":
    main()
