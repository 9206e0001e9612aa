"""`README.md` of a variant: what it is, how it was made, what was measured, how to run it, whose it is."""

from collections.abc import Sequence
from pathlib import Path

from export.files.card_graphs import graph_lines
from export.files.card_measured import accuracy_lines, speed_lines
from export.files.card_metadata import front_matter
from export.files.card_pictures import pixel_lines, tiling_lines
from export.files.card_use import use_lines
from export.files.measured import Measured
from export.files.source_card import SourceCard, read_source_card
from export.files.verification import SKIPPED, Verification
from importance.choose import SCORES, Source
from importance.scores import Scores, model_digest, read_scores
from transform.checkpoint import Checkpoint
from transform.errors import ScoresError
from transform.knobs import k_words
from transform.plan import Plan
from transform.side_files import is_licence


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
    facts, about = plan.as_dict(), read_source_card(plan.source.path)
    source = facts["source"]
    k = facts["top_k"]
    lines = [
        *front_matter(plan, onnx, measured, about),
        "",
        f"# {facts['name']}",
        "",
        *_what(plan, verified=verification is not None),
        "",
        "| | source | variant | saved |",
        "|---|---|---|---|",
        f"| blocks | {source['blocks']} | {len(k)} (removed: {_list(facts['blocks_removed'])}) "
        f"| {_saved(source['blocks'], len(k))} |",
        f"| experts per token | {k_words(source['top_k'])} | {k_words(k)} | |".replace(",", ", "),
        *(
            f"| {name} | {before:,} | {after:,} | {_saved(before, after)} |"
            for name, before, after in (
                ("parameters", source["parameters"], facts["parameters"]),
                ("parameters active per token", source["active_parameters"], facts["active_parameters"]),
                ("weight bytes", source["bytes"], facts["bytes"]),
            )
        ),
        "",
    ]
    if facts["vision"]:
        lines += tiling_lines(facts["vision"])
    if "pixels" in facts:
        lines += pixel_lines(facts["pixels"])
    lines += ["## Accuracy", "", *accuracy_lines(measured), *_accuracy(plan, ranking), ""]
    if measured and measured.latency:
        lines += ["## Speed", "", *speed_lines(measured), ""]
    lines += ["## Verification", "", *_verification(plan, verification), ""]
    if graphs := graph_lines(directory, plan, verification):
        lines += ["## Graphs", "", *graphs, ""]
    lines += ["## Use", "", *use_lines(plan, directory, onnx), ""]
    lines += ["## Licence and attribution", "", *_licence(plan, about, directory), ""]
    if facts["warnings"]:
        lines += ["## Warnings", "", *(f"- {warning}" for warning in facts["warnings"]), ""]
    (directory / "README.md").write_text("\n".join([*lines, *more]), "utf-8")


def _what(plan: Plan, verified: bool) -> list[str]:
    """What it was made of, and what it equals."""
    sees = plan.vision or plan.pictures
    lines = [
        f"A fixed variant of {_source(plan)}, made by knobcast: fewer experts per token"
        + (", fewer blocks or" if sees else " or fewer blocks,"),
        "fewer vision tokens, without masks or run-time switches." if sees else "without masks or switches.",
    ]
    if rounded := _rounded(plan):
        lines += [f"Its weights are the source's, {rounded}."]
    elif plan.packing:
        lines += [f"Its weights are quantised to {plan.packing}, as the source's are."]
    if verified:
        same = f", its weights {_alike(plan)} in the same way" if rounded else ""
        lines += [f"In PyTorch it equals the source with the same knobs at run time{same}."]
    if plan.no_graphs:
        lines += [f"It has weights alone: {plan.no_graphs}."]
    return lines


def _source(plan: Plan) -> str:
    about = plan.as_dict()["source"]
    return f"`{about['name']}`" + (f" (revision `{about['revision']}`)" if about["revision"] else "")


def _saved(before: int, after: int) -> str:
    """A part of what there was, in percent; empty where nothing was saved."""
    return f"{100 * (before - after) / before:.1f} %" if after < before else ""


def _licence(plan: Plan, about: SourceCard, directory: Path) -> list[str]:
    """Whose the weights are, and what their owners allow, as far as the source says."""
    lines = [f"The weights are those of {_source(plan)}, changed as said above; all else is knobcast's, Apache-2.0."]
    if about.license is None:
        lines += ["Licence of the source: not stated in its card. Ask its owners before you publish this."]
    else:
        named = f" ({about.license_name})" if about.license_name else ""
        link = f", {about.license_link}" if about.license_link else ""
        lines += [f"Licence of the source, by its card: `{about.license}`{named}{link}. It holds for this variant too."]
    if about.base_model:
        lines += [f"The source was made of `{about.base_model}`, it says."]
    found = [name for name in plan.target.side_files if is_licence(name) and (directory / name).is_file()]
    if found:
        lines += [f"Beside it: {', '.join(f'`{name}`' for name in found)}."]
    return lines


def _rounded(plan: Plan) -> str:
    """How the stored weights differ from the source's; empty: they don't."""
    if plan.new_packing:
        return f"quantised to {plan.new_packing}"
    return "" if plan.dtype in ("source", "float32") else f"as {plan.dtype}"


def _alike(plan: Plan) -> str:
    return "quantised" if plan.packing else "rounded"


def _list(values: list[int]) -> str:
    return ", ".join(map(str, values)) or "none"


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


_PICTURES = {
    "processor": "by the processor's files here, and by the source's with the same settings",
    "noise": "of noise, as the model takes them; no processor's files were used",
    "not shown": "not shown, for nothing is known of how this model takes them",
}


def _verification(plan: Plan, verification: Verification | None) -> list[str]:
    if verification is None:
        return [f"`{SKIPPED}`: this variant was **not** verified."]
    lines = [f"Mode `{verification.mode}`. Fresh reload: 0 missing, 0 unexpected, 0 mismatched tensors."]
    if verification.graphs_computed_by:
        lines += [f"Graphs computed by {verification.graphs_computed_by}."]
    if beyond := verification.windows_not_passed:
        lines += [f"No sequence that was compared is longer than the windows of {', '.join(map(str, beyond))} tokens."]
    if how := verification.pictures:
        lines += [f"Pictures: {_PICTURES.get(how, how)}."]
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
