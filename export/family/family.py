"""A family: one directory with the source's weights once, and a decoder graph per setting of k and blocks over them.

The directory is itself a variant, with the source's k and all its blocks, so that all that works on variants works on
it. A member adds `text-NAME.onnx` and `genai_config-NAME.json`; `family.json` says which blocks and which k it has.
Vision and embedding graphs depend on neither, and are shared. `plan_member` gives a member's plan back, to be exported.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from export.family.grid import parse_grid
from export.files.integrity import check_graph_bounds, sha256_file, unreplaced
from export.variant import export_variant
from importance.choose import choose_blocks, find_scores
from importance.scores import model_digest
from transform.checkpoint import Checkpoint
from transform.depth import drop_blocks
from transform.errors import KnobError, VerificationError
from transform.hub_cache import name_of
from transform.knobs import FORMS, Knobs, canonical_name
from transform.load import quiet_transformers
from transform.machine import fits, fitting_threads
from transform.plan import Plan, active_parameters, make_plan, parameters, weight_bytes
from transform.progress import Progress, Say
from transform.read import read_checkpoint
from transform.strict_json import Record, read_json
from transform.top_k import set_top_k
from transform.write import write_json

FILE = "family.json"
SCHEMA = 1
_WORD = re.compile(r"[a-z0-9]+")  # as in Plan.extras
_NAME = re.compile(r"k[0-9x.]+-b[0-9]+")


def plan_family(
    source: Checkpoint, grid: str, knobs: Knobs | None = None, scores: str | None = None
) -> tuple[Plan, tuple[Plan, ...]]:
    """(the directory's own plan, one per member), from headers alone. `knobs`: without k and blocks, which the grid
    says; `scores` choose blocks as for one variant."""
    knobs = knobs or Knobs()
    settings = parse_grid(grid, source.settings.layers)
    found = None
    if any(setting.blocks < source.settings.layers for setting in settings):
        found = find_scores(source.path, scores, source.settings.layers, lambda: model_digest(source))
    elif scores is not None:
        raise KnobError("--scores choose which blocks stay, and the grid keeps all. Give blocks=N, or leave them out.")
    base = make_plan(source, knobs)
    members: dict[str, Plan] = {}
    for setting in settings:
        keep = choose_blocks(source, blocks=setting.blocks, scores=found)
        plan = make_plan(source, replace(knobs, k=setting.k, keep=keep))
        if member_name(plan.target) in members:
            raise KnobError(
                f"the members of a family must differ, {member_name(plan.target)} occurs twice in {grid!r}."
            )
        members[member_name(plan.target)] = plan
    return base, tuple(members.values())


def member_name(checkpoint: Checkpoint) -> str:
    """`k4-b12`; one k per block is written in runs."""
    return canonical_name(checkpoint.settings.top_k, None)


def export_family(
    base: Plan,
    members: Sequence[Plan],
    out: Path,
    *,
    verify: bool = True,
    force: bool = False,
    say: Say = lambda _: None,
    progress: Progress = lambda _: None,
) -> Record:
    """Write the family to `out` and return the content of family.json; on any error `out` is as it was."""
    record: Record = {}

    def add_members(stage: Path) -> None:
        say("members")
        record.update(write_members(base, members, stage))
        if verify:
            from export.gate.resident import dynamic_twin

            check_graph_bounds(stage)
            _verify_members(base.source, lambda: dynamic_twin(base), stage, record, say)
        write_json(stage / FILE, record)
        _extend_card(stage, record["members"])

    export_variant(base, out, verify=verify, force=force, say=say, progress=progress, also=add_members)
    return record


def write_members(base: Plan, members: Sequence[Plan], stage: Path) -> Record:
    """The graphs and overlays of all members over the weights in `stage`."""
    from export.graph.decoder import text_graph

    written = read_checkpoint(stage)
    entries = []
    for plan in members:
        top_k, name = plan.target.settings.top_k, member_name(plan.target)
        member = set_top_k(drop_blocks(written, plan.keep), top_k)
        graph, overlay = stage / f"text-{name}.onnx", stage / f"genai_config-{name}.json"
        text_graph(member, base.form).write(graph)
        # onnxruntime-genai lays these keys over genai_config.json: Config(DIR).overlay(TEXT)
        changed = {"filename": graph.name, "num_hidden_layers": len(plan.keep)}
        write_json(overlay, {"model": {"decoder": changed}})
        entries.append(
            {
                "name": name,
                "graph": graph.name,
                "overlay": overlay.name,
                "blocks_kept": list(plan.keep),
                "top_k": list(top_k),
                "parameters": parameters(member),
                "active_parameters": active_parameters(member),
                "weight_bytes": weight_bytes(member),
                "graph_bytes": graph.stat().st_size,
                "sha256": sha256_file(graph),
                "warnings": list(plan.warnings),
                "verification": "skipped",
            }
        )
    vision = base.vision
    return {
        "schema": SCHEMA,
        "model": name_of(base.source.path),
        "form": base.form,
        "extras": list(base.extras),
        "vision": {"tokens": vision.tokens, "resize": vision.resize, "rule": vision.rule} if vision else None,
        "members": entries,
    }


def _verify_members(source: Checkpoint, load: Callable[[], Any], directory: Path, record: Record, say: Say) -> None:
    """Set each member's `verification`: against the `source` that `load` gives in PyTorch, or block by block."""
    entries = record["members"]
    if fits(source):
        with fitting_threads(source):
            _verify_resident(load(), directory, entries, say)
        return
    from export.family.blockwise import verify_members_blockwise

    for entry, found in zip(entries, verify_members_blockwise(directory, record["form"], entries, say), strict=True):
        entry["verification"] = found


def _verify_resident(model: Any, directory: Path, entries: Sequence[Record], say: Say) -> None:
    """Each member's graph against `model`, the source in PyTorch, with the member's knobs applied at run time."""
    from export.gate.compare import find_probe, onnx_vs_torch, other_k
    from export.numpy_run.graphs import checking_graphs
    from transform.runtime import BlockMaskWrapper, moe_top_k

    written = read_checkpoint(directory)
    for entry in entries:
        say(f"{entry['name']}: ONNX == PyTorch")
        member = set_top_k(drop_blocks(written, entry["blocks_kept"]), entry["top_k"])
        k = entry["top_k"] if len(set(entry["top_k"])) > 1 else entry["top_k"][0]
        kept = set(entry["blocks_kept"])
        mask = [i in kept for i in range(written.settings.layers)]
        with BlockMaskWrapper(model, mask), moe_top_k(model, k):
            probe = find_probe(model, member)
            graphs = checking_graphs(directory, text=entry["graph"])
            try:
                compared = onnx_vs_torch(model, graphs, probe)
            except VerificationError as error:
                raise VerificationError(f"member {entry['name']}: {error}") from error
            entry["verification"] = {
                "mode": "resident",
                "probe_seed": probe.seed,
                "onnx_vs_torch": compared,
                "other_k": other_k(model, member, probe),
            }


def _extend_card(stage: Path, entries: Sequence[Record]) -> None:
    rows = [f"| {e['name']} | {len(e['blocks_kept'])} | {e['active_parameters']:,} | `{e['graph']}` |" for e in entries]
    lines = [
        "",
        "## Members",
        "",
        "Decoder graphs over the same weights, one per setting; `family.json` has their blocks and their verification.",
        "",
        "| member | blocks | parameters active per token | graph |",
        "|---|---|---|---|",
        *rows,
        "",
    ]
    card = stage / "README.md"
    card.write_text(card.read_text("utf-8") + "\n".join(lines), "utf-8")


def verify_family(directory: Path, say: Say = lambda _: None) -> Record:
    """Check a family: as the variant it is, then every member against the directory's own weights in PyTorch."""
    with unreplaced(directory):
        return _verify_family(directory, say)


def _verify_family(directory: Path, say: Say) -> Record:
    from export.gate.verify import verify_directory
    from transform.load import align, load_model

    record = read_family(directory)
    entries = record["members"]
    results = verify_directory(directory, say)
    quiet_transformers()
    for entry in entries:
        if sha256_file(directory / entry["graph"]) != entry["sha256"]:
            raise VerificationError(f"{entry['graph']} must have the digest in {FILE}. Export the family again.")
    _verify_members(read_checkpoint(directory), lambda: align(load_model(directory)), directory, record, say)
    return results | {"members": {entry["name"]: entry["verification"]["onnx_vs_torch"] for entry in entries}}


def read_family(directory: Path) -> Record:
    """family.json, checked as far as others rely on it."""
    if not (directory / FILE).is_file():
        raise KnobError(f"{directory}: no {FILE}, so it is no family. Give a directory made with --family.")
    record = read_json(directory / FILE)
    entries = record.get("members")
    if not _is_head(record) or not isinstance(entries, list) or not all(map(_is_entry, entries)):
        raise VerificationError(f"{FILE}: not a family of schema {SCHEMA}. Export the family again.")
    if not entries or len({entry["name"] for entry in entries}) != len(entries):
        raise VerificationError(f"{FILE}: must list members with different names. Export the family again.")
    return record


def _is_head(record: Record) -> bool:
    model, vision = record.get("model"), record.get("vision")
    named = isinstance(model, str) and model == Path(model).name  # it becomes part of a path
    seen = ("vision" in record and vision is None) or (
        isinstance(vision, dict) and vision.keys() == {"tokens", "resize", "rule"}
    )
    budget = vision["tokens"] if seen and vision else None
    extras = record.get("extras")
    words = isinstance(extras, list) and all(isinstance(word, str) and _WORD.fullmatch(word) for word in extras)
    return (
        record.get("schema") == SCHEMA
        and record.get("form") in FORMS
        and named
        and words
        and seen
        and isinstance(budget, int | str | None)
    )


def _is_entry(entry: Any) -> bool:
    if not isinstance(entry, dict) or not _NAME.fullmatch(str(entry.get("name"))):
        return False
    lists = [entry.get("blocks_kept"), entry.get("top_k")]
    whole = all(isinstance(values, list) and all(type(v) is int for v in values) for values in lists)
    return whole and entry.get("graph") == f"text-{entry['name']}.onnx" and isinstance(entry.get("sha256"), str)


def plan_member(directory: Path, name: str) -> tuple[Plan, str]:
    """(the plan of one member over the family's weights, its default name): what export_variant makes standalone."""
    record = read_family(directory)
    entry = next((entry for entry in record["members"] if entry["name"] == name), None)
    if entry is None:
        names = ", ".join(entry["name"] for entry in record["members"])
        raise KnobError(f"--member must be one of the family's members, {names}; got {name[:40]!r}.")
    top_k = tuple(entry["top_k"])
    vision = record["vision"] or dict.fromkeys(("tokens", "resize", "rule"))
    k = top_k[0] if len(set(top_k)) == 1 else top_k
    plan = make_plan(read_checkpoint(directory), Knobs(k, tuple(entry["blocks_kept"]), form=record["form"], **vision))
    return plan, "-".join((record["model"], canonical_name(top_k, vision["tokens"]), *record["extras"]))
