"""`README.md` of a variant: what it is, how it was made, what was measured, how to run it."""

from collections.abc import Sequence
from pathlib import Path

from export.files.card_measured import accuracy_lines, speed_lines
from export.files.measured import Measured
from export.files.verification import SKIPPED, Verification
from importance.choose import SCORES, Source
from importance.scores import Scores, model_digest, read_scores
from transform.architectures.records import Published
from transform.checkpoint import Checkpoint
from transform.errors import ScoresError
from transform.knobs import k_words
from transform.modality import Modality
from transform.molmoe.versions import tested_range
from transform.plan import Plan
from transform.plan_facts import VisionFacts


def write_card(
    directory: Path,
    plan: Plan,
    verification: Verification | None,
    onnx: bool,
    more: Sequence[str] = (),
    ranking: Source | None = None,
    measured: Measured | None = None,
) -> None:
    """Write the card; the numbers are the plan's, the gate's, those of the `ranking` and what a sweep `measured`;
    `more` are lines to follow."""
    facts = plan.as_dict()
    source = facts["source"]
    k = facts["top_k"]
    lines = [
        "---",
        f"library_name: {'onnx' if plan.packing else 'transformers'}",
        f"tags: [knobcast, {facts['model_type']}{', mixture-of-experts' if any(k) else ''}]",
        "---",
        "",
        f"# {facts['name']}",
        "",
        *_what(plan, verified=verification is not None),
        "",
        "| | source | variant |",
        "|---|---|---|",
        f"| blocks | {source['blocks']} | {len(k)} (removed: {_list(facts['blocks_removed'])}) |",
        f"| experts per token | {k_words(source['top_k'])} | {k_words(k)} |".replace(",", ", "),
        f"| parameters | {source['parameters']:,} | {facts['parameters']:,} |",
        f"| parameters active per token | {source['active_parameters']:,} | {facts['active_parameters']:,} |",
        f"| weight bytes | {source['bytes']:,} | {facts['bytes']:,} |",
        "",
    ]
    if facts["vision"]:
        lines += _vision(facts["vision"])
    lines += ["## Accuracy", "", *accuracy_lines(measured), *_accuracy(plan, ranking), ""]
    if measured and measured.latency:
        lines += ["## Speed", "", *speed_lines(measured), ""]
    lines += ["## Verification", "", *_verification(plan, verification), ""]
    lines += ["## Use", "", *_use(plan, directory, onnx), ""]
    if facts["warnings"]:
        lines += ["## Warnings", "", *(f"- {warning}" for warning in facts["warnings"]), ""]
    (directory / "README.md").write_text("\n".join([*lines, *more]), "utf-8")


def _what(plan: Plan, verified: bool) -> list[str]:
    """What it was made of, and what it equals."""
    lines = [
        f"A fixed variant of {_source(plan)}, made by knobcast: fewer experts per token"
        + (", fewer blocks or" if plan.vision else " or fewer blocks,"),
        "fewer vision tokens, without masks or run-time switches." if plan.vision else "without masks or switches.",
    ]
    if rounded := _rounded(plan):
        lines += [f"Its weights are the source's, {rounded}."]
    elif plan.packing:
        lines += [f"Its weights are quantised to {plan.packing}, as the source's are."]
    if verified:
        same = f", its weights {_alike(plan)} in the same way" if rounded else ""
        lines += [f"In PyTorch it equals the source with the same knobs at run time{same}."]
    if plan.no_graphs:
        return [*lines, f"It has weights alone: {plan.no_graphs}."]
    return [*lines, f"The graphs are of the `{plan.form.name}` form."]


def _source(plan: Plan) -> str:
    about = plan.as_dict()["source"]
    return f"`{about['name']}`" + (f" (revision `{about['revision']}`)" if about["revision"] else "")


def _rounded(plan: Plan) -> str:
    """How the stored weights differ from the source's; empty: they don't."""
    if plan.new_packing:
        return f"quantised to {plan.new_packing}"
    return "" if plan.dtype in ("source", "float32") else f"as {plan.dtype}"


def _alike(plan: Plan) -> str:
    return "quantised" if plan.packing else "rounded"


def _list(values: list[int]) -> str:
    return ", ".join(map(str, values)) or "none"


def _vision(vision: VisionFacts) -> list[str]:
    tilings = vision["tilings"]
    if vision["tokens"] is None:
        return [f"Images: stock tiling, at most {vision['max_crops']} crops and the global view.", ""]
    rows = [
        f"| {t['rows']}×{t['columns']} | {t['nominal_tokens']} | {t['patch_tokens']} | {t['image_tokens']} |"
        for t in tilings
    ]
    return [
        f"Images: budget {vision['tokens']}, resize `{vision['resize']}`, tiling by the `{vision['rule']}` rule.",
        "",
        "| tiling (rows×columns) | nominal tokens | image-patch tokens | whole image stream |",
        "|---|---|---|---|",
        *rows,
        "",
    ]


def _accuracy(plan: Plan, ranking: Source | None) -> list[str]:
    """What was measured of the knobs' cost, by what ranked the blocks or lies beside the source; how to measure it."""
    what = f"the knobs and {_alike(plan)} weights" if _rounded(plan) else "the knobs"
    lines = [
        f"Equal to the same knobs at run time isn't equal to the source. What {what} cost in accuracy, verification "
        "doesn't say; measure it on your own questions, here and on the source: "
        "`knobcast evaluate . --data questions.jsonl`."
    ]
    scores = ranking if isinstance(ranking, Scores) else _scores(plan.source)
    if plan.removed and scores:
        base = f", {scores.baseline:.3f} with all blocks" if scores.baseline is not None else ""
        where = f"The blocks were chosen by {scores.source}" if scores is ranking else f"The source's {SCORES}"
        counted = "samples not said" if scores.samples is None else f"{scores.samples:,} samples{base}"
        lines += [
            "",
            f"{where}: {scores.metric} ({scores.unit}; {counted}). One removed block at a time; together they cost "
            "something else.",
            "",
            "| removed block | score | standard error |",
            "|---|---|---|",
        ]
        for block in plan.removed:
            if block in scores.values:
                error = f"{scores.stderr[block]:.3f}" if block in scores.stderr else ""
                lines.append(f"| {block} | {scores.values[block]:.3f} | {error} |")
    return lines


def _scores(source: Checkpoint) -> Scores | None:
    """Those that lie beside the source and were measured on it."""
    try:
        found = read_scores(source.path / SCORES, source.settings.layers, model_digest(source))
    except ScoresError:
        return None
    return found if found.samples is not None and found.model_digest is not None else None


def _verification(plan: Plan, verification: Verification | None) -> list[str]:
    if verification is None:
        return [f"`{SKIPPED}`: this variant was **not** verified."]
    lines = [f"Mode `{verification.mode}`. Fresh reload: 0 missing, 0 unexpected, 0 mismatched tensors."]
    if verification.graphs_computed_by:
        lines += [f"Graphs computed by {verification.graphs_computed_by}."]
    lines += [
        "",
        "| comparison | largest difference |",
        "|---|---|",
    ]
    alike = f", {_alike(plan)} alike," if _rounded(plan) else ""
    for name, found in verification.as_user["generate"].items() if verification.as_user else ():
        lines.append(f"| as users load it, generate == no cache: {name} | {found['difference']:.3g} |")
    for group, title in (
        ("static_vs_dynamic", f"equal to the source{alike} with the same knobs at run time"),
        ("onnx_vs_torch", "ONNX == PyTorch"),
        ("static_vs_torch", "graphs of fixed sizes == PyTorch"),
    ):
        for name, value in verification.differences(group).items():
            lines.append(f"| {title}: {name} | {value:.3g} |")
    if cut := verification.preprocess:
        lines.append(
            f"| preprocess.onnx == Python: {cut['pictures']:.0f} pictures of all shapes | "
            f"{cut['largest_difference']:.3g} |"
        )
    other = verification.other_k
    if other and other["difference"] is not None:
        lines.append(f"| another k (must differ) | {other['difference']:.3g} |")
    return lines


def _published(published: Published) -> list[str]:
    """What programs written for the published model find here."""
    return [
        "",
        f"Programs for the published {published.name} run as they are; what they call is here under two names:",
        "",
        "| published | the same here |",
        "|---|---|",
        *(f"| {theirs} | {ours} |" for theirs, ours in published.calls.items()),
        "",
        published.note,
    ]


def _use(plan: Plan, directory: Path, onnx: bool) -> list[str]:
    family, image = plan.target.architecture, plan.vision is not None
    lines = ["```python", *_program(family.modality, plan, (directory / "tokenizer.json").is_file()), "```"]
    if plan.packing:
        lines = ["The weights are for the graphs, on a CPU; transformers can't load them, and says so."]
    else:
        lines += ["", f"Tested with {tested_range()}."]
        if family.published:
            lines += _published(family.published)
    if onnx and (directory / "tokenizer.json").is_file():
        flag = " --image photo.jpg" if image else ""
        flag += "" if plan.form.runs_on_cpu else f" --provider {plan.form.usual_provider}"
        lines += ["", "```", f'knobcast run .{flag} --prompt "What is this?"', "```"]
    return lines


def _program(modality: Modality, plan: Plan, words: bool) -> list[str]:
    """A question answered by transformers; without a tokenizer the model alone."""
    image = modality.sees_images
    named = plan.target.config.get("architectures") if plan.target.architecture.model_class is None else None
    auto = str(named[0]) if isinstance(named, list) and named else modality.auto_class
    side, name = ("AutoProcessor", "processor") if image else ("AutoTokenizer", "tokenizer")
    trust = ", trust_remote_code=True" if image else ""
    lines = [
        f"from transformers import {auto}" + (f", {side}" if words else ""),
        "",
        'directory = "."  # where this file lies, or its name on the hub',
        f"model = {auto}.from_pretrained(directory{trust})",
    ]
    if not words:
        return lines
    given = 'text="What is this?", images=Image.open("photo.jpg")' if image else '"What is this?", return_tensors="pt"'
    return [
        *(["from PIL import Image"] if image else []),
        *lines,
        f"{name} = {side}.from_pretrained(directory{trust})",
        f"inputs = {name}({given})",
        "output = model.generate(**inputs, max_new_tokens=64)",
        f'print({name}.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))',
    ]
