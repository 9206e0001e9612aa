"""The gate: nothing is emitted that was not proven equal to the same knobs applied at run time.

`gate` compares a written variant with its source while both fit in memory (`blockwise.py` is for those that don't);
`verify_directory` checks a variant later, on its own, against its sums and its recorded golden outputs.
Every number that was measured is returned and goes into the manifest.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from export.as_user import check_as_user, code_of_others
from export.facts import check_facts, mode_of
from export.gate import quiet_transformers
from export.golden import FILE as GOLDEN
from export.golden import check_graphs, check_torch, record, torch_image, write_golden
from export.golden_file import load_golden, with_golden_ids
from export.image_probe import ImageProbe, image_probe
from export.integrity import check_graph_bounds, check_sums, unreplaced
from export.machine import fitting_threads
from export.numpy_run.graphs import check_rounding, checking_graphs
from export.onnx_run import Graphs
from export.probe import DECODE, MIN_MARGIN, PROMPT, SEEDS, MarginWatch, TextProbe, text_probe
from export.static_verify import check_static_text, checking_static, verify_static
from export.tolerance import LEAST_SCALE, scale_of
from transform.checkpoint import Checkpoint, read_checkpoint, read_json
from transform.errors import VerificationError
from transform.load import align, load_model, load_view, load_with_report
from transform.molmoe.compatibility import CACHE
from transform.plan import Plan, form_of
from transform.runtime import BlockMaskWrapper, moe_top_k, set_moe_top_k

# Two float32 programs of the same arithmetic in another order: 4e-6 was seen at |logits| of 8.
TOLERANCE = 1e-5
Say = Callable[[str], None]


def gate(plan: Plan, directory: Path, onnx: bool, say: Say) -> dict[str, Any]:
    """Prove a freshly written variant equal to its source with dynamic knobs; raises VerificationError.

    Both are loaded in float32 with the same experts and attention, so "equal" means a difference of exactly 0.
    """
    say("reload")
    static, report = load_with_report(directory)
    report.insist(str(directory))
    written = read_checkpoint(directory)
    probe = find_probe(static, written)
    say("as users load it")
    as_user = check_as_user(written)
    say("static == dynamic")
    dynamic = dynamic_twin(plan)
    image = None
    if plan.vision:
        image = image_probe(plan.target, directory, plan.vision.as_dict(), probe.seed)
    results: dict[str, Any] = {
        "mode": "resident",
        "as_user": as_user,
        "reload": report.counts(),
        "probe_seed": probe.seed,
        "static_vs_dynamic": _static_vs_dynamic(static, dynamic, probe, image),
    }
    del dynamic
    say("another k must differ")
    results["other_k"] = other_k(static, plan.target, probe)
    write_golden(directory, golden := record(static, probe.ids.numpy(), image))
    if onnx:
        say("ONNX == PyTorch")
        results["graph_ranges"] = check_graph_bounds(directory)
        graphs = checking_graphs(directory)
        results["onnx_vs_torch"] = onnx_vs_torch(static, graphs, probe)
        results["onnx_vs_torch"] |= check_graphs(graphs, golden, image, TOLERANCE)
        if plan.form == "cuda":
            results["float16_rounding"] = check_rounding(directory, golden["ids"], golden["logits"])
        if graphs.io.get("static"):
            say("static graphs == PyTorch")
            found = verify_static(static, written, directory, golden, probe.seed, TOLERANCE)
            results["static_vs_torch"] = found
    return results


def dynamic_twin(plan: Plan) -> Any:
    """The source with the knobs applied at run time, its weights rounded as the variant's are."""
    if plan.packing and form_of(plan.source) != plan.form:
        model, _ = load_view(plan.source, rounding(plan), plan.packing)
    else:
        model = align(load_model(plan.source.path, dtype=rounding(plan)).float())
    k = list(plan.source.settings.top_k)
    for i, value in zip(plan.keep, plan.target.settings.top_k, strict=True):
        k[i] = value
    set_moe_top_k(model, k if len(set(k)) > 1 else k[0])
    kept = set(plan.keep)
    BlockMaskWrapper(model, [i in kept for i in range(plan.source.settings.layers)]).apply()
    return model


def rounding(plan: Plan) -> str:
    """The dtype, as torch spells it, to which the plan rounds the source's weights; float32 where it doesn't."""
    if plan.form == "cuda":
        return "float16"
    return "float32" if plan.knobs.dtype == "source" else plan.knobs.dtype


def find_probe(model: Any, checkpoint: Checkpoint) -> TextProbe:
    """The first seed whose every expert choice is decidable in float32."""
    for seed in SEEDS:
        probe = text_probe(checkpoint.settings.vocab, seed)
        try:
            with torch.no_grad(), MarginWatch(model) as watch:
                model(input_ids=probe.ids)
                watch.mask = probe.mask
                model(input_ids=probe.batch, attention_mask=probe.mask)
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


@torch.no_grad()
def run_text(model: Any, probe: TextProbe) -> dict[str, torch.Tensor]:
    """Logits of the three ways a decoder is used: prefill, decode with a cache, a padded batch."""
    prefill = model(input_ids=probe.ids[:, :PROMPT], use_cache=True)
    cache, steps = prefill[CACHE], []
    for at in range(PROMPT, PROMPT + DECODE):
        step = model(
            input_ids=probe.ids[:, at : at + 1],
            attention_mask=torch.ones(1, at + 1, dtype=torch.int64),
            use_cache=True,
            **{CACHE: cache},
        )
        cache = step[CACHE]
        steps.append(step.logits)
    padded = model(input_ids=probe.batch, attention_mask=probe.mask).logits
    return {
        "prefill": prefill.logits,
        "decode": torch.cat(steps, 1),
        "padded": padded[probe.mask == 1],
    }


def largest_difference(ours: torch.Tensor, theirs: torch.Tensor, what: str) -> float:
    """Largest absolute difference; NaN and infinity are failures, never agreement."""
    if ours.shape != theirs.shape or not (torch.isfinite(ours).all() and torch.isfinite(theirs).all()):
        raise VerificationError(
            f"{what}: both sides must give finite values of one shape, got {tuple(ours.shape)} and "
            f"{tuple(theirs.shape)}. The weights hold NaN or infinity, or the files are damaged."
        )
    return float((ours - theirs).abs().max())


def _static_vs_dynamic(static: Any, dynamic: Any, probe: TextProbe, image: ImageProbe | None) -> dict[str, float]:
    ours, theirs = run_text(static, probe), run_text(dynamic, probe)
    if image is not None:
        ours["image"] = torch.from_numpy(torch_image(static, image)[2])
        theirs["image"] = torch.from_numpy(torch_image(dynamic, image)[2])
    return exactly_equal(ours, theirs)


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


def other_k(static: Any, target: Checkpoint, probe: TextProbe) -> dict[str, Any]:
    """The comparison can tell one k from another: changing it must change the result."""
    k = target.settings.top_k
    other = [value - 1 if value > 1 else value + 1 for value in k]
    if max(other) > target.settings.experts:
        return {"k": None, "difference": None}  # one expert: there is no other k
    with torch.no_grad():
        before = static(input_ids=probe.ids).logits
        with moe_top_k(static, other if len(set(other)) > 1 else other[0]):
            after = static(input_ids=probe.ids).logits
    difference = largest_difference(before, after, "other k")
    if difference == 0:
        raise VerificationError(
            f"k={other} must give another result than k={list(k)}, the difference is 0: the model ignores its top-k."
        )
    return {"k": other, "difference": difference}


def onnx_vs_torch(model: Any, graphs: Graphs, probe: TextProbe) -> dict[str, Any]:
    """Compare the graphs with PyTorch for prefill, cached decode and a padded batch, and image embeddings."""
    theirs = run_text(model, probe)
    ours = {name: torch.from_numpy(value) for name, value in graphs.run_text(probe).items()}
    return check_close({name: (ours[name], theirs[name]) for name in ours})


def check_close(pairs: dict[str, tuple[torch.Tensor, torch.Tensor]]) -> dict[str, Any]:
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


def verify_directory(directory: Path, say: Say) -> dict[str, Any]:
    """Check a variant on its own: sums, facts, bounds, reload, golden outputs in PyTorch and through the graphs."""
    with unreplaced(directory):
        return _verify_directory(directory, say)


def _verify_directory(directory: Path, say: Say) -> dict[str, Any]:
    say("sums")
    manifest = read_json(directory / "manifest.json")
    results: dict[str, Any] = {"files": check_sums(directory)}
    checkpoint = read_checkpoint(directory)
    results["facts"] = check_facts(manifest, checkpoint)
    results["graph_ranges"] = check_graph_bounds(directory)
    golden = load_golden(directory, checkpoint)
    if golden is None:
        if mode_of(manifest) == "resident":
            raise VerificationError(f"{directory}: {GOLDEN} is missing, it was recorded. Export the variant again.")
        return results | {"golden": "none recorded"}
    image = None
    if checkpoint.architecture.multimodal:
        image = with_golden_ids(image_probe(checkpoint, directory, manifest["vision"], 0), golden)
    if code := code_of_others(checkpoint):
        results["as_user"] = f"not run: {', '.join(code)} isn't this version's code, and no other is executed"
    else:
        say("as users load it")
        results["as_user"] = check_as_user(checkpoint)
    say("PyTorch == golden")
    quiet_transformers()
    with fitting_threads(checkpoint):
        results["torch_vs_golden"] = check_torch(load_model(directory), golden, image, TOLERANCE)
    if (directory / "text.onnx").is_file():
        say("ONNX == golden")
        graphs = checking_graphs(directory)
        results["onnx_vs_golden"] = check_graphs(graphs, golden, image, TOLERANCE)
        if graphs.io.get("static"):
            results["static_vs_golden"] = check_static_text(checking_static(directory), golden, TOLERANCE)
    return results
