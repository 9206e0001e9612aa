"""A family: one directory with the source's weights once, and a decoder graph per setting of k and blocks over them.

The directory is itself a variant, with the source's k and all its blocks, so that all that works on variants works on
it. A member adds `text-NAME.onnx` and `genai_config-NAME.json`; `family.json` says which blocks and which k it has.
Vision and embedding graphs depend on neither, and are shared. `plan_member` gives a member's plan back, to be exported.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from export.family.grid import parse_grid
from export.files.check import check_members
from export.files.integrity import NONE, check_graph_bounds, unreplaced
from export.files.manifest import provenance_of
from export.files.provenance import Provenance
from export.files.verification import SKIPPED, Verification
from export.run.family_file import FILE, Family, Member, read_family
from export.variant import check, prove, seal, write
from importance.choose import Source, choose_blocks, find_scores
from importance.scores import model_digest
from transform.checkpoint import Checkpoint
from transform.depth import drop_blocks
from transform.errors import KnobError, VerificationError
from transform.hub_cache import name_of
from transform.knobs import Knobs, canonical_name, merged_k
from transform.load import quiet_transformers
from transform.machine import fits, fitting_threads
from transform.ownership import MANIFEST
from transform.plan import Plan, make_plan
from transform.progress import Progress, Say
from transform.read import read_checkpoint
from transform.sizes import active_parameters, parameters, weight_bytes
from transform.stage import staged
from transform.strict_json import Record, read_json
from transform.top_k import set_top_k
from transform.write import write_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class MemberError(VerificationError):
    """A member that isn't what it says; `member`: its name. The others may be."""

    def __init__(self, member: str, reason: object) -> None:
        super().__init__(f"member {member}: {reason}")
        self.member = member


def plan_family(
    source: Checkpoint, grid: str, knobs: Knobs | None = None, scores: str | None = None
) -> tuple[Plan, tuple[Plan, ...]]:
    """(the directory's own plan, one per member), from headers alone. `knobs`: without k and blocks, which the grid
    says; `scores` choose blocks as for one variant."""
    knobs = knobs or Knobs()
    settings = parse_grid(grid, source.settings.layers)
    found = None
    if any(setting.blocks < source.settings.layers for setting in settings):
        family = source.architecture.model_type
        found = find_scores(source.path, scores, source.settings.layers, lambda: model_digest(source), family)
    elif scores is not None:
        raise KnobError("--scores choose which blocks stay, and the grid keeps all. Give blocks=N, or leave them out.")
    base = make_plan(source, knobs)
    base.insist_on_graphs("a family")
    members: dict[str, Plan] = {}
    for setting in settings:
        keep_blocks = choose_blocks(source, blocks=setting.blocks, scores=found)
        plan = make_plan(source, replace(knobs, k=setting.k, keep=keep_blocks))
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
    ranking: Source | None = None,
) -> Record:
    """Write the family to `out` and return the content of family.json; on any error `out` is as it was.

    `ranking`: what the members' blocks were chosen by, for graphs and manifest.
    """
    check(base, out, verify=verify, force=force)
    with staged(out, force) as stage:
        written = write(base, stage, ranking=ranking, say=say, progress=progress)
        verification = prove(base, written, say=say) if verify else None
        say("members")
        provenance = provenance_of(base, ranking)
        family = write_members(base, members, written, provenance)
        if verify:
            from export.gate.resident import source_model

            check_graph_bounds(stage)
            proven = prove_members(family, base.source, lambda: source_model(base), written, provenance, say)
            entries = zip(family.members, proven, strict=True)
            family = replace(family, members=tuple(replace(m, verification=v.as_dict()) for m, v in entries))
        record = family.as_dict()
        write_json(stage / FILE, record)
        seal(base, written, verification, card=_card(family), ranking=ranking, say=say)
    return record


def write_members(base: Plan, members: Sequence[Plan], written: Checkpoint, provenance: Provenance) -> Family:
    """The graphs and overlays of all members over the weights that were `written`; `provenance`: the family's."""
    from export.graph.decoder import text_graph

    made = []
    for plan in members:
        target = set_top_k(drop_blocks(written, plan.keep_blocks), plan.target.settings.top_k)
        name = member_name(plan.target)
        emitted = text_graph(target, base.form)
        emitted.notes = provenance.of_member(plan.keep_blocks, plan.target.settings.top_k).of(f"text-{name}.onnx")
        graph = emitted.serialised()
        member = Member(
            name=name,
            blocks_kept=plan.keep_blocks,
            top_k=plan.target.settings.top_k,
            parameters=parameters(target),
            active_parameters=active_parameters(target),
            weight_bytes=weight_bytes(target),
            graph_bytes=len(graph),
            sha256=hashlib.sha256(graph).hexdigest(),
            warnings=plan.warnings,
            verification=SKIPPED,
        )
        (written.path / member.graph).write_bytes(graph)
        # onnxruntime-genai lays these keys over genai_config.json: Config(DIR).overlay(TEXT)
        changed = {"filename": member.graph, "num_hidden_layers": len(plan.keep_blocks)}
        write_json(written.path / member.overlay, {"model": {"decoder": changed}})
        made.append(member)
    vision = base.vision
    policy = (vision.tokens, vision.resize, vision.rule) if vision else None
    return Family(name_of(base.source.path), base.form, base.extras, policy, tuple(made))


def prove_members(
    family: Family,
    source: Checkpoint,
    load: Callable[[], "PreTrainedModel"],
    written: Checkpoint,
    provenance: Provenance | None,
    say: Say,
) -> list[Verification]:
    """What was measured of each member over the weights that were `written`: against the `source` that `load` gives in
    PyTorch, or block by block where that doesn't fit. `provenance`: what graphs say of themselves; None: nothing.
    Raises VerificationError."""
    if not fits(source):
        from export.family.blockwise import prove_members_blockwise

        return prove_members_blockwise(family, written, provenance, say)
    with fitting_threads(source):
        model = load()
        return [_prove_resident(member, model, written, say) for member in family.members]


def _prove_resident(member: Member, model: "PreTrainedModel", written: Checkpoint, say: Say) -> Verification:
    """The member's graph against `model`, the source in PyTorch, with the member's knobs applied at run time."""
    from export.gate.checking import checking_graphs
    from export.gate.compare import find_probe, onnx_vs_torch, other_k
    from transform.runtime import knobs_at_run_time

    say(f"{member.name}: ONNX == PyTorch")
    target = set_top_k(drop_blocks(written, member.blocks_kept), member.top_k)
    with knobs_at_run_time(model, member.blocks_kept, member.top_k):
        graphs = checking_graphs(written.path, text=member.graph)
        try:
            probe = find_probe(model, target)
            compared = onnx_vs_torch(model, graphs, probe)
            other = other_k(model, target, probe)
        except VerificationError as error:
            raise MemberError(member.name, error) from error
    return Verification(mode="resident", probe_seed=probe.seed, onnx_vs_torch=compared, other_k=other)


def _card(family: Family) -> list[str]:
    """What the card says of the members."""
    rows = [f"| {m.name} | {len(m.blocks_kept)} | {m.active_parameters:,} | `{m.graph}` |" for m in family.members]
    return [
        "## Members",
        "",
        "Decoder graphs over the same weights, one per setting; `family.json` has their blocks and their verification.",
        "",
        "| member | blocks | parameters active per token | graph |",
        "|---|---|---|---|",
        *rows,
        "",
    ]


def verify_family(directory: Path, say: Say = lambda _: None, known: Mapping[str, str] = NONE) -> Record:
    """Check a family: as the variant it is, then every member against the directory's own weights in PyTorch."""
    with unreplaced(directory):
        return _verify_family(directory, say, known)


def _verify_family(directory: Path, say: Say, known: Mapping[str, str]) -> Record:
    from export.gate.verify import verify_directory
    from transform.load import align, load_model

    family = read_family(directory)
    results = verify_directory(directory, say, known)
    quiet_transformers()
    check_members(directory, family)
    written = read_checkpoint(directory)
    manifest = read_json(directory / MANIFEST)
    provenance = Provenance.parse(manifest) if "scores" in manifest else None
    proven = prove_members(family, written, lambda: align(load_model(directory)), written, provenance, say)
    pairs = zip(family.members, proven, strict=True)
    return results | {"members": {member.name: found.onnx_vs_torch for member, found in pairs}}


def plan_member(directory: Path, name: str) -> tuple[Plan, str]:
    """(the plan of one member over the family's weights, its default name): what export_variant makes standalone."""
    family = read_family(directory)
    member = family.member(name)
    tokens, resize, rule = family.policy or (None, None, None)
    k, form = merged_k(member.top_k), family.form.name
    knobs = Knobs(k, member.blocks_kept, tokens, form=form, resize=resize, rule=rule)
    plan = make_plan(read_checkpoint(directory), knobs)
    return plan, "-".join((family.model, canonical_name(member.top_k, tokens), *family.extras))
