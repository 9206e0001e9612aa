"""The resident gate: a variant and its source with the same knobs at run time, both in memory.

`blockwise.py` is for those that don't fit. Every number that was measured is returned and goes into the manifest.
"""

from pathlib import Path
from typing import Any

import torch

from export.files.integrity import check_graph_bounds
from export.gate.as_user import check_as_user
from export.gate.checking import checking_graphs
from export.gate.compare import TOLERANCE, exactly_equal, find_probe, onnx_vs_torch, other_k, run_text
from export.gate.golden import check_graphs, record, torch_image, write_golden
from export.gate.image_probe import ImageProbe, image_probe
from export.gate.probe import TextProbe
from export.gate.static import verify_static
from export.numpy_run.graphs import check_rounding
from transform.load import align, load_model, load_view, load_with_report
from transform.plan import Plan
from transform.progress import Say
from transform.read import read_checkpoint
from transform.runtime import BlockMaskWrapper, set_moe_top_k
from transform.strict_json import Record


def gate(plan: Plan, directory: Path, onnx: bool, say: Say) -> Record:
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
    results: Record = {
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
        if plan.form.compute != "float32":  # which the comparison above did not see
            results["float16_rounding"] = check_rounding(directory, golden["ids"], golden["logits"])
        if graphs.io.get("static"):
            say("static graphs == PyTorch")
            found = verify_static(static, written, directory, golden, probe.seed, TOLERANCE)
            results["static_vs_torch"] = found
    return results


def dynamic_twin(plan: Plan) -> Any:
    """The source with the knobs applied at run time, its weights rounded as the variant's are."""
    if plan.new_packing:
        model, _ = load_view(plan.source, rounding(plan), plan.new_packing)
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
    return "float32" if plan.dtype == "source" else plan.dtype


def _static_vs_dynamic(static: Any, dynamic: Any, probe: TextProbe, image: ImageProbe | None) -> dict[str, float]:
    ours, theirs = run_text(static, probe), run_text(dynamic, probe)
    if image is not None:
        ours["image"] = torch.from_numpy(torch_image(static, image)[2])
        theirs["image"] = torch.from_numpy(torch_image(dynamic, image)[2])
    return exactly_equal(ours, theirs)
