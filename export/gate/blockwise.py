"""The gate for models that don't fit twice into memory: one block at a time, everything else once.

A one-block model (embedding, that block, norm, head, vision tower) is loaded from the source and from the variant in
turn; prefill, cached decode and a padded batch must differ by exactly 0, and the block's own ONNX graph must agree.
Together with byte-for-byte equality of all tensors this covers what the resident gate covers, except the sum of
float32 rounding over all blocks in one graph.
"""

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from export.files.integrity import check_graph_bounds
from export.files.verification import Verification
from export.gate.activations import check_activations
from export.gate.as_user import check_as_user
from export.gate.checking import checking_graphs, rounds_activations
from export.gate.compare import TOLERANCE, exactly_equal, find_probe, onnx_vs_torch, other_k, run_text
from export.gate.golden import check_graphs, record, torch_image
from export.gate.image_probe import ImageProbe, image_probe
from export.gate.preprocess import check_preprocess, has_preprocess
from export.gate.probe import TextProbe
from export.gate.resident import rounding
from export.gate.static import verify_static_block
from export.run.graphs import Graphs
from transform.checkpoint import Checkpoint
from transform.depth import drop_blocks
from transform.errors import VerificationError
from transform.forms import Form
from transform.load import building, load_view, model_class, plain_config
from transform.machine import fitting_blocks, release_memory
from transform.plan import Plan, parameters
from transform.progress import Say
from transform.runtime import set_moe_top_k

_CHUNK = 16 << 20
GRAPH = "text.onnx"


def blockwise_gate(plan: Plan, written: Checkpoint, onnx: bool, say: Say) -> Verification:
    """Prove a freshly `written` variant block by block; raises VerificationError."""
    directory = written.path
    say("names and shapes")
    described, identical = _check_meta(written), None
    if any(_copied(plan.target, written, name) for name in written.tensors):
        say("bytes")
        identical = _check_bytes(plan.target, written)
    blocks = fitting_blocks(written)
    say(f"as users load it, {blocks} of {written.settings.layers} blocks")
    as_user = check_as_user(written, blocks)
    differences: dict[str, float] = {}
    graphs: dict[str, float] = {}
    fixed: dict[str, float] = {}
    rounded: dict[str, float] = {}
    counts: dict[str, float] = {}
    for new, old in enumerate(plan.keep_blocks):
        say(f"block {old} ({new + 1} of {len(plan.keep_blocks)})")
        view = drop_blocks(written, (new,))
        model, report = load_view(view)
        keep_largest(counts, report.counts())
        probe = find_probe(model, view)
        ours = run_text(model, probe)
        image = None
        if new == 0:
            seed, other = probe.seed, other_k(model, view, probe)
            if plan.vision:
                image = image_probe(plan.target, directory, plan.vision.as_dict(), probe.seed)
                ours["image"] = torch.from_numpy(torch_image(model, image)[2])
        if onnx:
            block_graphs = one_block_graphs(view, directory, plan.form)
            keep_largest(graphs, onnx_vs_torch(model, block_graphs, probe))
            if image is not None:
                golden = record(model, probe.ids.numpy(), image)
                keep_largest(graphs, check_graphs(block_graphs, golden, image, TOLERANCE))
            if rounds_activations(block_graphs):
                users = one_block_graphs(view, directory, plan.form, Graphs)
                ids = probe.ids.numpy()
                keep_largest(rounded, check_activations(users, ids, record(model, ids, None)["logits"]))
                del users
            if block_graphs.io.get("static"):
                found = verify_static_block(model, view, directory, probe.ids.numpy(), new == 0, TOLERANCE)
                keep_largest(fixed, found)
            del block_graphs
        del model
        release_memory()
        keep_largest(differences, exactly_equal(ours, _source_block(plan, old, new, probe, image)))
        release_memory()
    return Verification(
        mode="blockwise",
        parameters_on_meta=described,
        identical_tensors=identical,
        as_user=as_user,
        reload=counts,
        probe_seed=seed,
        static_vs_dynamic=differences,
        other_k=other,
        graph_ranges=check_graph_bounds(directory) if onnx else {},
        onnx_vs_torch=graphs,
        int8_activations=rounded,
        static_vs_torch=fixed,
        preprocess=check_preprocess(Graphs(directory)) if onnx and has_preprocess(directory) else {},
    )


def _source_block(
    plan: Plan, old: int, new: int, probe: TextProbe, image: ImageProbe | None
) -> dict[str, torch.Tensor]:
    model, _ = load_view(drop_blocks(plan.source, (old,)), rounding(plan), plan.new_packing)
    set_moe_top_k(model, plan.target.settings.top_k[new])
    theirs = run_text(model, probe)
    if image is not None:
        theirs["image"] = torch.from_numpy(torch_image(model, image)[2])
    return theirs


def _check_meta(variant: Checkpoint) -> int:
    """The model that the new config describes has exactly the parameters that were written."""
    kind = model_class(variant.config)
    with building(str(variant.path)), torch.device("meta"):
        model = kind(kind.config_class.from_dict(plain_config(variant.config)))
    count = sum(p.numel() for p in model.parameters())
    if count != parameters(variant):
        raise VerificationError(
            f"config.json describes a model of {count:,} parameters, {parameters(variant):,} were written."
        )
    return count


def _check_bytes(planned: Checkpoint, variant: Checkpoint) -> int:
    """Every tensor that was neither cast nor quantised holds the bytes of its origin; returns how many these are."""
    names = [name for name in variant.tensors if _copied(planned, variant, name)]
    for name in names:
        origin, written = planned.tensors[name], variant.tensors[name]
        with origin.file.open("rb") as a, written.file.open("rb") as b:
            for offset in range(0, origin.nbytes, _CHUNK):
                count = min(_CHUNK, origin.nbytes - offset)
                left = os.pread(a.fileno(), count, origin.start + offset)
                if left != os.pread(b.fileno(), count, written.start + offset):
                    raise VerificationError(f"{name} must hold the source's bytes; the written ones differ.")
    return len(names)


def _copied(planned: Checkpoint, variant: Checkpoint, name: str) -> bool:
    origin = planned.tensors[name]
    return origin.dtype == origin.stored and variant.tensors[name].pack is None


def one_block_graphs(
    view: Checkpoint, directory: Path, form: Form, opened: Callable[..., Graphs] = checking_graphs
) -> Graphs:
    """The graphs of one block over the variant's own weight files; io.json and the other graphs stay the variant's.

    `opened`: how, exactly or as users open them (`Graphs`).
    """
    from export.graph.decoder import text_graph

    name = f".block-{GRAPH}"
    text_graph(view, form).write(directory / name)
    try:
        graphs = opened(directory, text=name)
        _ = graphs.text  # opened now: the file can go
    finally:
        (directory / name).unlink()
    return graphs


def keep_largest(total: dict[str, float], more: Mapping[str, float]) -> None:
    """Add measurements under their names; of two under one name the larger stays."""
    for name, value in more.items():
        total[name] = max(total.get(name, 0.0), value)
