"""`knobcast derive`: another k or fewer blocks for a graph that is already exported."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from export.command.once import joined
from export.command.options import Drop, Json, K, Keep
from export.command.output import Console, print_json, say_note
from transform.strict_json import Record


def derive(
    graph: Annotated[Path, typer.Argument(help="A decoder's .onnx file, knobcast's own or another exporter's.")],
    k: K = None,
    keep_blocks: Keep = None,
    drop_blocks: Drop = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Default: NAME-k4-b12.onnx beside the graph; always beside it.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a graph that derive has made.")] = False,
    verify: Annotated[bool, typer.Option("--verify/--no-verify", help="Check the graph before it appears.")] = True,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done and stop.")] = False,
    as_json: Json = False,
) -> None:
    """Rewrite k or drop blocks in an exported ONNX graph; the weights stay where they are."""
    from export.derive import derive as write_derived
    from transform.knobs import parse_blocks, parse_k

    setting = parse_k(k)
    kept = parse_blocks(joined(keep_blocks), "--keep-blocks")
    dropped = parse_blocks(joined(drop_blocks), "--drop-blocks")
    record = write_derived(
        graph, setting, keep=kept, drop=dropped, out=out, verify=verify, dry_run=dry_run, force=force,
        say=lambda step: say_note(f"… {step}"),
    )  # fmt: skip
    if as_json:
        print_json(record)
    else:
        _show(record, Console(highlight=False))


def _show(record: Record, console: Console) -> None:
    kept, before, after = record["blocks_kept"], record["top_k_before"], record["top_k"]
    dropped = " ".join(str(i) for i in range(record["blocks"]) if i not in set(kept)) or "none"
    console.print(f"drop blocks   {dropped} ({len(kept)} of {record['blocks']} stay)")
    from transform.knobs import spelt_k

    console.print(f"router top-k  {'as it is' if after is None else f'{spelt_k(before)} -> {spelt_k(after)}'}")
    found = record.get("verification")
    if found is None:
        console.print(f"write         {escape(record['out'])}", soft_wrap=True)
        return
    if found == "skipped":
        console.print(f"[yellow]not verified[/yellow] {escape(record['out'])}", soft_wrap=True)
        return
    from export.derive.check import is_proven

    state = "[green]verified[/green]" if is_proven(found) else "[yellow]compared with nothing[/yellow]"
    console.print(f"{state} {escape(record['out'])}", soft_wrap=True)
    for name, value in found.items():
        console.print(f"  {name.replace('_', ' ')}: {escape(_brief(value))}", style="dim", soft_wrap=True)


def _brief(value: object) -> str:
    if not isinstance(value, dict):
        return str(value)
    numbers = [
        value[part] for part in ("difference", "prefill", "decode", "padded") if isinstance(value.get(part), float)
    ]
    return f"largest difference {max(numbers):.3g}" if numbers else ", ".join(f"{k} {v}" for k, v in value.items())
