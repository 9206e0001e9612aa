"""The gate for models that don't fit twice into memory: one block at a time, everything else once.

A one-block model (embedding, that block, norm, head) is loaded from the variant, then from the source; prefill, cached
decode and a padded batch must differ by exactly 0, and the block's own ONNX graph must agree. The vision tower has its
turn alone, before them, and what it makes of a picture goes through the first block. Together with byte-for-byte
equality of all tensors this covers what the resident gate covers, except the sum of float32 rounding over all blocks
in one graph. Golden outputs are those of all blocks, which a prompt passes meanwhile (`stream.py`).
"""

import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from export.files.integrity import check_graph_bounds
from export.files.verification import OtherK, Verification
from export.gate.activations import check_activations
from export.gate.as_user import check_as_user
from export.gate.checking import checking_graphs
from export.gate.compare import TOLERANCE, exactly_equal, find_probe, onnx_vs_outputs, other_k, run_text
from export.gate.copied import check_copied, is_copied
from export.gate.golden import check_graphs, record, write_golden
from export.gate.golden_file import LEAST
from export.gate.image_probe import ImageProbe, image_probe
from export.gate.picture_probe import PictureProbe, how_shown, insist_on_pictures, picture_probe, receiving
from export.gate.preprocess import check_preprocess, has_preprocess, record_picture
from export.gate.probe import TextProbe
from export.gate.resident import rounding
from export.gate.static import verify_static_block
from export.gate.stream import candidates, golden_of
from export.run.graphs import Graphs
from export.run.io_file import read_io
from transform.architectures.vocabulary import attending
from transform.arrays import Array
from transform.checkpoint import Checkpoint
from transform.depth import view_blocks
from transform.errors import VerificationError
from transform.forms import ROUNDED, Form
from transform.load import building, load_view, model_class, plain_config
from transform.machine import fitting_blocks, release_memory, return_at_once
from transform.packed_layout import Packing
from transform.plan import Plan
from transform.progress import Say
from transform.runtime import set_moe_top_k

if TYPE_CHECKING:
    from transformers import PreTrainedModel

GRAPH = "text.onnx"


def blockwise_gate(plan: Plan, written: Checkpoint, onnx: bool, say: Say) -> Verification:
    """Prove a freshly `written` variant block by block; raises VerificationError. Writes the golden outputs."""
    return_at_once()
    directory, source = written.path, partial(load_view, dtype=rounding(plan), packed=plan.new_packing)
    say("names and shapes")
    described, identical = _check_meta(written), None
    sums: dict[str, str] = {}
    if any(is_copied(plan.target, written, name) for name in written.tensors):
        say("bytes")
        identical, sums = check_copied(plan.target, written)
    blocks = fitting_blocks(written)
    say(f"as users load it, {blocks} of {written.settings.layers} blocks")
    as_user = check_as_user(written, blocks)
    differences: dict[str, float] = {}
    graphs: dict[str, float] = {}
    fixed: dict[str, float] = {}
    rounded: dict[str, float] = {}
    counts: dict[str, float] = {}
    io = read_io(directory) if onnx else None
    static, rounds = io is not None and "static" in io, io is not None and io.get("activations") == ROUNDED
    other: OtherK = {"k": None, "difference": None}
    seen, embeddings = None, None
    if plan.vision:
        say("a picture")
        seen = image_probe(plan.target, directory, plan.vision.as_dict(), 0)
        embeddings = embed(written, seen)
        theirs = embed(plan.source, seen, rounding(plan), plan.new_packing)
        keep_largest(differences, exactly_equal({"embeddings": embeddings}, {"embeddings": theirs}))
    pictures, first = picture_probe(plan, written), receiving(written)
    if pictures is not None and first <= blocks:
        say("pictures")
        keep_largest(differences, _pictures(plan, written, pictures, first))
    recorded: dict[str, Array] = {}
    if seen is not None and embeddings is not None:
        rows = np.arange(embeddings.shape[1])
        shown = {"image.rows": rows, "image.embeddings": embeddings[0].numpy()}
        recorded |= {"image.input_ids": seen.input_ids, **shown}
    # a last block that transformers makes another one of by itself would give other outputs than among all
    streams = [] if written.architecture.last else candidates(written)
    for new, old in enumerate(plan.keep_blocks):
        say(f"block {old} ({new + 1} of {len(plan.keep_blocks)})")
        view = view_blocks(written, (new,))
        model, report = load_view(view, pictures=static and new == 0)
        keep_largest(counts, report.counts())
        caching = bool(attending(view.architecture.text_of(view.config), 1))
        _without_cache(model, not caching)
        for stream in streams:
            stream.through(model)
        probe = find_probe(model, view)
        ours = _outputs(model, probe, embeddings, caching)
        if new == 0:
            seed = probe.seed
        if other["k"] is None:  # blocks without experts have none
            other = other_k(model, view, probe)
        if new == 0 or rounds:
            golden = record(model, probe.ids.numpy(), None)
        if static:
            found = verify_static_block(model, view, directory, probe.ids.numpy(), new == 0, TOLERANCE)
            keep_largest(fixed, found)
        del model
        release_memory()
        model, _ = source(view_blocks(plan.source, (old,)), pictures=False)
        _without_cache(model, not caching)
        if k := plan.target.settings.top_k[new]:
            set_moe_top_k(model, k)
        keep_largest(differences, exactly_equal(ours, _outputs(model, probe, embeddings, caching)))
        del model
        release_memory()
        if onnx:
            block_graphs = one_block_graphs(view, directory, plan.form)
            keep_largest(graphs, onnx_vs_outputs(ours, block_graphs, probe))
            if new == 0:
                keep_largest(graphs, check_graphs(block_graphs, golden | recorded, seen, TOLERANCE))
            del block_graphs
            if rounds:
                users = one_block_graphs(view, directory, plan.form, Graphs)
                exact = partial(one_block_graphs, view, directory, plan.form)
                keep_largest(rounded, check_activations(users, probe.ids.numpy(), golden["logits"], exact))
                del users
            release_memory()
        embeddings = None  # one block is enough to see that a picture reaches it
    cut: dict[str, float] = {}
    picture: dict[str, Array] = {}
    if onnx and has_preprocess(directory):
        say("preprocess.onnx == Python")
        cut = check_preprocess(Graphs(directory))
        picture = record_picture(Graphs(directory))
    if whole := golden_of(streams, LEAST):
        write_golden(directory, whole | recorded | picture)
    elif picture:
        write_golden(directory, picture)
    return Verification(
        mode="blockwise",
        parameters_on_meta=described,
        identical_tensors=identical,
        as_user=as_user,
        reload=counts,
        probe_seed=seed,
        golden_tokens=whole["ids"].shape[1] if whole else None,
        static_vs_dynamic=differences,
        pictures=how_shown(pictures if first <= blocks else None, written),
        other_k=other,
        graph_ranges=check_graph_bounds(directory) if onnx else {},
        onnx_vs_torch=graphs,
        int8_activations=rounded,
        static_vs_torch=fixed,
        preprocess=cut,
        sums=sums,
    )


def _pictures(plan: Plan, written: Checkpoint, pictures: PictureProbe, first: int) -> dict[str, float]:
    """Differences of the two sides' first blocks behind pictures, the vision tower before them; all exactly 0."""
    view = view_blocks(written, range(first))
    caching = bool(attending(view.architecture.text_of(view.config), first))
    model, _ = load_view(view)
    _without_cache(model, not caching)
    ours = pictures.run(model, pictures.ours, caching)
    insist_on_pictures(model, pictures)
    del model
    release_memory()
    source = view_blocks(plan.source, plan.keep_blocks[:first])
    model, _ = load_view(source, dtype=rounding(plan), packed=plan.new_packing)
    _without_cache(model, not caching)
    if k := [k for k in plan.target.settings.top_k[:first] if k]:
        set_moe_top_k(model, k)
    theirs = pictures.run(model, pictures.theirs, caching)
    del model
    release_memory()
    return exactly_equal(ours, theirs)


def embed(
    checkpoint: Checkpoint, seen: ImageProbe, dtype: str = "float32", packed: Packing | None = None
) -> torch.Tensor:
    """The picture prompt's embeddings [1, s, d], by the model without its blocks, rounded as `load_view` does."""
    model, _ = load_view(checkpoint, dtype, packed, blocks=False)
    with torch.no_grad():
        embeddings: torch.Tensor = model.embed(**seen.for_torch())
    del model
    release_memory()
    return embeddings


def _outputs(
    model: "PreTrainedModel", probe: TextProbe, embeddings: torch.Tensor | None, caching: bool
) -> dict[str, torch.Tensor]:
    """What a side's one-block model gives: the text probe's logits, and the last ones behind a picture's embeddings."""
    found = run_text(model, probe, caching)
    if embeddings is not None:
        mask = torch.ones(embeddings.shape[:2], dtype=torch.int64)
        with torch.no_grad():
            found["image"] = model(inputs_embeds=embeddings, attention_mask=mask, logits_to_keep=1).logits[:, -1]
    return found


def _without_cache(model: "PreTrainedModel", unable: bool) -> None:
    """Blocks by themselves that keep no keys run without a cache, in which transformers would look for some."""
    if unable:
        for config in (model.config, model.config.get_text_config(decoder=True)):
            config.use_cache = False


def _check_meta(variant: Checkpoint) -> int:
    """The model that the new config describes has exactly the parameters that were written."""
    kind = model_class(variant.config)
    with building(str(variant.path)), torch.device("meta"):
        model = kind(kind.config_class.from_dict(plain_config(variant.config)))
    count = sum(p.numel() for p in model.parameters())
    written = sum(math.prod(t.shape) for t in variant.tensors.values() if not variant.is_beyond(t.name))
    if not variant.architecture.complete:  # some buffers are stored: what a router adds to scores, decays
        own = {name for name, _ in model.named_parameters(remove_duplicate=False)}
        count += sum(value.numel() for name, value in model.state_dict().items() if name not in own)
    if count != written:
        raise VerificationError(f"config.json describes a model of {count:,} parameters, {written:,} were written.")
    return count


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
        _ = graphs.text, graphs.shares_cache  # opened and read now: the file can go
    finally:
        (directory / name).unlink()
    return graphs


def keep_largest(total: dict[str, float], more: Mapping[str, float]) -> None:
    """Add measurements under their names; of two under one name the larger stays."""
    for name, value in more.items():
        total[name] = max(total.get(name, 0.0), value)
