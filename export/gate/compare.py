"""The gate's comparisons: what is fed to both sides, and how far they may differ."""

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
import transformers

from export.files.verification import OtherK
from export.gate.far import FarProbe, far_probe, far_windows, fits_in_memory
from export.gate.probe import (
    MIN_MARGIN,
    MOST_WINDOW,
    SEEDS,
    MarginWatch,
    TextProbe,
    prompt_length,
    routing_of,
    text_probe,
)
from export.gate.tolerance import LEAST_SCALE, scale_of
from export.run.bound import Bound
from export.run.graphs import Graphs
from transform.architectures import Settings, TopK
from transform.arrays import Array
from transform.checkpoint import Checkpoint
from transform.errors import VerificationError
from transform.graphs import why_no_graphs
from transform.molmoe.compatibility import CACHE
from transform.runtime import moe_top_k

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BEYOND_WINDOWS = "beyond_windows"
# Two float32 programs of the same arithmetic in another order: 4e-6 was seen at |logits| of 8.
TOLERANCE = 1e-5


def find_probe(model: "PreTrainedModel", checkpoint: Checkpoint) -> TextProbe:
    """The first seed whose every expert choice is decidable in float32; any where no graph is compared."""
    settings, length = checkpoint.settings, prompt_length(checkpoint.settings.windows)
    if why_no_graphs(checkpoint):
        return text_probe(settings.vocab, SEEDS[0], length)
    windows = far_windows(settings, MOST_WINDOW)
    far = bool(windows) and fits_in_memory(settings, settings.layers, windows)
    for seed in SEEDS:
        probe = text_probe(settings.vocab, seed, length)
        try:
            with torch.no_grad(), MarginWatch(model, routing_of(checkpoint)) as watch:
                model(input_ids=probe.ids)
                watch.mask = probe.mask
                model(input_ids=probe.batch, attention_mask=probe.mask)
                if far and watch.smallest >= MIN_MARGIN:
                    beyond, watch.mask = far_probe(settings, windows, seed), None
                    probe = replace(probe, far=beyond)
                    _run_far(model, beyond)
        except RuntimeError as error:  # such as widths that torch's grouped matrix product can't take
            raise VerificationError(
                f"the gate needs a model that PyTorch can run: {str(error).splitlines()[0][:200]}. "
                "Use --no-verify to export it unverified."
            ) from error
        if watch.smallest >= MIN_MARGIN:
            return probe
    raise VerificationError(
        f"the gate needs a probe whose router margins are at least {MIN_MARGIN}, none of {len(SEEDS)} seeds has one: "
        "the routers choose between equal experts, so no two programs would agree. Check the checkpoint's routers."
    )


def windows_not_passed(settings: Settings, layers: int) -> tuple[int, ...] | None:
    """Windows that no probe of `layers` blocks reaches beyond; None: there are none."""
    windows = far_windows(settings, MOST_WINDOW)
    return windows if windows and not fits_in_memory(settings, layers, windows) else None


@torch.no_grad()
def run_text(model: "PreTrainedModel", probe: TextProbe, caching: bool = True) -> dict[str, torch.Tensor]:
    """Logits of the three ways a decoder is used: prefill, decode with a cache, a padded batch. Without `caching`, of
    blocks by themselves that keep no keys by which transformers counts tokens, prefill and the batch."""
    if not caching:
        whole = model(input_ids=probe.ids, use_cache=False).logits
        padded = model(input_ids=probe.batch, attention_mask=probe.mask, use_cache=False).logits
        return {"prefill": whole, "padded": padded[probe.mask == 1]}
    prefill = model(input_ids=probe.ids[:, : probe.prompt], use_cache=True)
    cache, steps = prefill[CACHE], []
    for at in range(probe.prompt, probe.ids.shape[1]):
        step = model(
            input_ids=probe.ids[:, at : at + 1],
            attention_mask=torch.ones(1, at + 1, dtype=torch.int64),
            use_cache=True,
            **{CACHE: cache},
        )
        cache = step[CACHE]
        steps.append(step.logits)
    padded = model(input_ids=probe.batch, attention_mask=probe.mask).logits
    found = {"prefill": prefill.logits, "decode": torch.cat(steps, 1), "padded": padded[probe.mask == 1]}
    return found if probe.far is None else found | {BEYOND_WINDOWS: _run_far(model, probe.far)}


def _run_far(model: "PreTrainedModel", far: FarProbe) -> torch.Tensor:
    """Logits [2, s, V] behind a cache that is given."""
    cache = transformers.DynamicCache()
    for i, (keys, values) in enumerate(far.past):
        cache.update(torch.from_numpy(keys), torch.from_numpy(values), i)
    mask = torch.from_numpy(far.mask)
    new = far.ids.shape[1]
    positions = (mask.cumsum(1) - 1)[:, -new:]  # left to itself, the padded row would count from another place
    given = {CACHE: cache, "attention_mask": mask, "position_ids": positions, "use_cache": True}
    logits: torch.Tensor = model(input_ids=torch.from_numpy(far.ids), **given).logits
    return logits


def largest_difference(ours: torch.Tensor, theirs: torch.Tensor, what: str) -> float:
    """Largest absolute difference; NaN and infinity are failures, never agreement."""
    if ours.shape != theirs.shape or not (torch.isfinite(ours).all() and torch.isfinite(theirs).all()):
        raise VerificationError(
            f"{what}: both sides must give finite values of one shape, got {tuple(ours.shape)} and "
            f"{tuple(theirs.shape)}. The weights hold NaN or infinity, or the files are damaged."
        )
    return float((ours - theirs).abs().max())


def exactly_equal(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> dict[str, float]:
    """All differences, which must be 0."""
    differences = {name: largest_difference(ours[name], theirs[name], name) for name in ours}
    wrong = {name: value for name, value in differences.items() if value != 0}
    if wrong:
        raise VerificationError(
            f"the variant must equal the source with the same knobs at run time, difference 0; measured {wrong}. "
            "No variant was written: please report this with the model's config.json."
        )
    return differences


def other_k(model: "PreTrainedModel", target: Checkpoint, probe: TextProbe) -> OtherK:
    """The comparison can tell one k from another: changing it must change the result."""
    k = [value for value in target.settings.top_k if value]
    other = [value - 1 if value > 1 else value + 1 for value in k]
    fixed = target.architecture.k is TopK.FIXED
    if fixed or not other or max(other) > target.settings.experts:
        return {"k": None, "difference": None}  # one expert, none, or a number built in
    with torch.no_grad():
        before = model(input_ids=probe.ids).logits
        with moe_top_k(model, other):
            after = model(input_ids=probe.ids).logits
    difference = largest_difference(before, after, "other k")
    if difference == 0:
        raise VerificationError(
            f"k={other} must give another result than k={k}, the difference is 0: the model ignores its top-k."
        )
    return {"k": other, "difference": difference}


def onnx_vs_torch(model: "PreTrainedModel", graphs: Graphs, probe: TextProbe) -> dict[str, float]:
    """Compare the graphs with PyTorch for prefill, cached decode and a padded batch."""
    return onnx_vs_outputs(run_text(model, probe), graphs, probe)


def onnx_vs_outputs(theirs: dict[str, torch.Tensor], graphs: Graphs, probe: TextProbe) -> dict[str, float]:
    """The same with what `run_text` gave."""
    ours = {name: torch.from_numpy(value) for name, value in graphs.run_text(probe).items()}
    pairs = {name: (ours[name], theirs[name]) for name in ours}
    if probe.far:
        both, alone = _far(graphs, probe.far)
        pairs[BEYOND_WINDOWS] = both, theirs[BEYOND_WINDOWS]
        pairs[f"{BEYOND_WINDOWS}_alone"] = alone, theirs[BEYOND_WINDOWS][1:, :1]
    if graphs.shares_cache:
        pairs["decode_in_place"] = (_in_place(graphs, probe), theirs["decode"])
        pairs["padded_in_two"] = (_in_two(graphs, probe), theirs["padded"])
    return check_close(pairs)


def _in_place(graphs: Graphs, probe: TextProbe) -> torch.Tensor:
    """The decoded steps' logits [1, s, V] as `run` has them: past and present are one buffer."""
    sequence = Bound(graphs)
    sequence.prefill(probe.ids[:, : probe.prompt].numpy())
    steps = [sequence.decode(int(token)) for token in probe.ids[0, probe.prompt :]]
    return torch.from_numpy(np.stack(steps)[None])


def _in_two(graphs: Graphs, probe: TextProbe) -> torch.Tensor:
    """The padded batch's logits by two calls: several tokens of several rows behind a past, which attention in one
    operator can't take and the graph leaves to others."""
    ids, mask = probe.batch.numpy(), probe.mask.numpy()
    half = ids.shape[1] // 2
    first, cache = graphs.step(ids[:, :half], mask[:, :half], graphs.empty_cache(len(ids)))
    second, _ = graphs.step(ids[:, half:], mask, cache)
    return torch.from_numpy(np.concatenate([first, second], 1)[mask == 1])


def _far(graphs: Graphs, far: FarProbe) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of both rows [2, s, V], and of the second one's first token [1, 1, V], which some graphs compute with
    other operators."""
    names, total = iter(graphs.empty_cache(2).items()), far.mask.shape[1]
    past: dict[str, Array] = {}
    for value in (part for pair in far.past for part in pair):  # keys and values of each block, as the graph lists them
        name, empty = next(names)
        past[name] = value.astype(empty.dtype, copy=False)
    both, _ = graphs.step(far.ids, far.mask, past)
    one = {name: np.ascontiguousarray(value[1:]) for name, value in past.items()}
    alone, _ = graphs.step(far.ids[1:, :1], far.mask[1:, : total - far.ids.shape[1] + 1], one)
    return torch.from_numpy(both), torch.from_numpy(alone)


def check_close(pairs: dict[str, tuple[torch.Tensor, torch.Tensor]]) -> dict[str, float]:
    """Differences relative to the largest value (at least LEAST_SCALE); more than TOLERANCE is an error."""
    measured, largest = {}, LEAST_SCALE
    for name, (ours, theirs) in pairs.items():
        scale = scale_of(theirs)
        largest = max(largest, scale)
        difference = largest_difference(ours, theirs, name)
        if difference > TOLERANCE * scale:
            raise VerificationError(
                f"{name}: the graphs must agree with PyTorch to {TOLERANCE} of the largest value ({scale:.4g}), "
                f"the difference is {difference:.3g}. No variant was written: please report this."
            )
        measured[name] = difference
    return {"relative_tolerance": TOLERANCE, "largest_value": largest, **measured}
