"""`knobcast plan` and `knobcast export`: what a setting would do, and the main job."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from export.command.once import joined
from export.command.options import (
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
    print_json,
    stderr,
)
from transform.errors import KnobError


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
    made = plan_of(model, k, blocks, keep_blocks, drop_blocks, tokens, scores, dtype, resize, rule, form, revision)
    if as_json:
        print_json(made.as_dict())
    else:
        from export.command.show import show_plan

        show_plan(made, Console(highlight=False))


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
    from export.command.show import progress_bars, show_plan, show_result
    from export.graph.static import parse_static, plan_static
    from export.variant import export_variant
    from transform.plan import weight_bytes

    cache, chunk = parse_static(static, prompt)
    if cache is not None and not onnx:
        raise KnobError("--static adds graphs, and --no-onnx leaves all of them out. Leave out one of the two.")
    if family is not None or member is not None:
        from export.command.family import export_grid, member_plan

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
        made = plan_of(model, k, blocks, keep_blocks, drop_blocks, tokens, scores, dtype, resize, rule, form, revision)
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


def plan_of(
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
    from transform.knobs import Knobs, parse_blocks, parse_count, parse_k, parse_tokens
    from transform.plan import make_plan
    from transform.read import read_checkpoint
    from transform.source import resolve

    knobs = Knobs(parse_k(k), None, parse_tokens(tokens), dtype, form)
    wanted = parse_count(blocks, "--blocks")
    if scores is not None and wanted is None:
        raise KnobError("--scores choose which blocks stay, so they need a number: give --blocks N, or leave them out.")
    kept, dropped = parse_blocks(joined(keep), "--keep-blocks"), parse_blocks(joined(drop), "--drop-blocks")
    source = read_checkpoint(resolve(model, revision))
    chosen = choose_blocks(source, blocks=wanted, keep=kept, drop=dropped, scores=scores)
    return make_plan(source, replace(knobs, keep=chosen), resize, rule)
