"""What people see: the plan as a table, the result, what to do next, an accuracy."""

import os
import shlex
import shutil
import sys
from pathlib import Path
from typing import TypedDict

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from export.files.card_pictures import pixel_words
from export.files.verification import Verification
from importance.choose import Source
from importance.scores import Scores
from transform.forms import ROUNDED, Form
from transform.knobs import k_words
from transform.plan import Plan
from transform.plan_facts import PixelFacts, VisionFacts
from transform.strict_json import Record

_MANY_TILINGS = 8


def show_plan(plan: Plan, ranking: Source | None, console: Console) -> None:
    """Blocks and what ranked them, k, tokens nominal and real, parameters total and active, bytes."""
    facts = plan.as_dict()
    source = facts["source"]
    removed = " ".join(map(str, facts["blocks_removed"])) or "none"
    rows = [
        ("drop blocks", f"{removed}   ({len(facts['blocks_removed'])} of {source['blocks']})"),
        *([("chosen by", escape(ranking_words(ranking)))] if ranking else []),
        ("router top-k", f"{k_words(source['top_k'])} -> {k_words(facts['top_k'])}"),
        ("parameters", f"{source['parameters']:,} -> {facts['parameters']:,}"),
        ("active per token", f"{source['active_parameters']:,} -> {facts['active_parameters']:,}"),
        ("weight bytes", f"{source['bytes']:,} -> {facts['bytes']:,}   ({_stored(plan)})"),
    ]
    rows += [("graphs", escape(plan.no_graphs))] if plan.no_graphs else []
    rows += [("left out", escape(line)) for line in plan.left_out]
    if facts["vision"]:
        rows += _vision_rows(facts["vision"])
    if "pixels" in facts:
        rows += _pixel_rows(facts["pixels"])
    table = Table(title=escape(facts["name"]), show_header=False, box=None, title_justify="left", pad_edge=False)
    for row in rows:
        table.add_row(*row)
    console.print(table)


class Ranked(TypedDict):
    """What ranked the blocks, by which metric, on how many samples; None: not said."""

    source: str
    metric: str | None
    samples: int | None


def ranking_facts(ranking: Source) -> Ranked:
    """For `--json`, from scores or sets that anyone may have written."""
    notes = ranking.notes
    if isinstance(ranking, Scores):
        metric, samples = None if ranking.metric == "unknown" else ranking.metric, ranking.samples
    else:
        searched = "objective" in notes and "strategy" in notes
        title = f"{notes['strategy']} search by {notes['objective']}" if searched else notes.get("title")
        metric = None if title is None else str(title)
        counted = notes.get("samples")
        samples = counted if isinstance(counted, int) else None
    return {"source": ranking.source, "metric": metric, "samples": samples}


def ranking_words(ranking: Source) -> str:
    """`scores.json: accuracy drop of single-block ablation, 653 samples`."""
    facts = ranking_facts(ranking)
    counted = "samples not said" if facts["samples"] is None else f"{facts['samples']:,} samples"
    return f"{facts['source']}: {facts['metric'] or 'metric not said'}, {counted}"


def _stored(plan: Plan) -> str:
    if plan.packing:
        rounded = ", activations rounded to 8 bits" if plan.activations == ROUNDED else ""
        return f"codes and scales: {plan.packing}{rounded}"
    return f"{plan.dtype} dtype"


def _vision_rows(vision: VisionFacts) -> list[tuple[str, str]]:
    tilings = vision["tilings"]
    if vision["tokens"] is None or len(tilings) > _MANY_TILINGS:
        least = min(tilings, key=lambda t: t["image_tokens"])
        most = max(tilings, key=lambda t: t["image_tokens"])
        name = "stock tiling" if vision["tokens"] is None else f"tier {vision['tokens']}"
        real = f"{least['image_tokens']} to {most['image_tokens']}"
        return [("vision tokens", f"{name}, at most {vision['max_crops']} crops: {real} in the sequence")]
    rows = [("vision tokens", f"{vision['tokens']} nominal, by tiling:")]
    for t in tilings:
        real = f"{t['patch_tokens']} image patches, {t['image_tokens']} in the sequence"
        rows.append(("", f"{t['rows']}×{t['columns']}: {real}"))
    return rows


def _pixel_rows(pixels: PixelFacts) -> list[tuple[str, str]]:
    side, bounds = pixels["token_side"], f"{pixels['shortest_edge']:,} to {pixels['longest_edge']:,}"
    return [
        ("vision tokens", pixel_words(pixels)),
        ("", f"size in {' and '.join(pixels['files'])}: {bounds} pixels, a token is {side}×{side}"),
    ]


def show_result(manifest: Record, target: Path, console: Console) -> None:
    """Where the variant is and what the gate measured."""
    checked = Verification.parse(manifest["verification"])
    if checked is None:
        console.print(f"[yellow]not verified[/yellow] {escape(str(target))}", soft_wrap=True)
        return
    console.print(f"[green]verified[/green] {escape(str(target))}", soft_wrap=True)
    for group, what in (
        ("static_vs_dynamic", "to the source with the same knobs at run time"),
        ("onnx_vs_torch", "of its graphs to PyTorch"),
    ):
        if values := checked.differences(group):
            console.print(f"  difference {what}: {max(values.values()):.3g}", style="dim")


def show_next(
    target: Path, console: Console, *, pictures: bool, form: Form, onnx: bool = True, member: str | None = None
) -> None:
    """The commands that a new variant is for, ready to be copied; without a tokenizer it takes no words."""
    where, speaks = shlex.quote(str(target)), (target / "tokenizer.json").is_file()
    chosen = "" if member is None else f" --member {member}"
    device = "" if form.runs_on_cpu else f" --provider {form.usual_provider}"
    run = f"run {where}{chosen}{device}{' --image PICTURE' if pictures else ''} --prompt QUESTION"
    spoken = ([run] if onnx else []) + [f"evaluate {where} --data FILE"]
    commands = (*(spoken if speaks else []), f"verify {where}")
    for label, command in zip(("next:", "", ""), commands, strict=False):
        console.print(escape(f"{label:5} {program()} {command}"), style="dim", soft_wrap=True)


def program() -> str:
    """How this program is called from here: `knobcast` where the shell finds it, else its path."""
    script, found = Path(sys.executable).with_name("knobcast"), shutil.which("knobcast")
    known = found is not None and Path(found).resolve() == script.resolve()
    return "knobcast" if known or not script.is_file() else shlex.quote(os.path.relpath(script))


def show_evaluation(found: Record, console: Console) -> None:
    """Accuracy with its 95 % interval, per kind and in all."""
    from importance.tasks import wilson

    table = Table(box=None, pad_edge=False)
    table.add_column("kind")
    for name in ("accuracy", "95 % interval", "samples"):
        table.add_column(name, justify="right")
    for kind, share in (*found["by_kind"].items(), ("all", found)):
        low, high = wilson(share["accuracy"], share["samples"])
        table.add_row(escape(kind), f"{share['accuracy']:.1%}", f"{low:.1%} to {high:.1%}", f"{share['samples']:,}")
    console.print(table)
