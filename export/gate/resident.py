"""The resident gate: a variant and its twin, the source with the same knobs at run time, both in memory.

`blockwise.py` is for those that don't fit. Every number that was measured is returned and goes into the manifest.
"""

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from export.files.integrity import check_graph_bounds
from export.files.verification import Verification
from export.gate.activations import check_activations
from export.gate.as_user import check_as_user
from export.gate.checking import checking_graphs
from export.gate.compare import TOLERANCE, exactly_equal, find_probe, onnx_vs_torch, other_k, run_text
from export.gate.golden import check_graphs, record, torch_image, write_golden
from export.gate.image_probe import ImageProbe, image_probe
from export.gate.picture_probe import how_shown, insist_on_pictures, picture_logits, picture_probe
from export.gate.preprocess import check_preprocess, has_preprocess, record_picture
from export.gate.probe import TextProbe
from export.gate.static import verify_static
from export.numpy_run.graphs import check_rounding
from export.run.graphs import Graphs
from transform.checkpoint import Checkpoint
from transform.load import align, load_model, load_view, load_with_report
from transform.plan import Plan
from transform.progress import Say
from transform.runtime import knobs_at_run_time

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def resident_gate(plan: Plan, written: Checkpoint, onnx: bool, say: Say) -> Verification:
    """Prove a freshly `written` variant equal to its twin; raises VerificationError. Writes the golden outputs.

    Both are loaded in float32 with the same experts and attention, so "equal" means a difference of exactly 0.
    """
    directory = written.path
    say("reload")
    variant, report = load_with_report(directory)
    report.insist(str(directory))
    probe = find_probe(variant, written)
    say("as users load it")
    as_user = check_as_user(written)
    say("static == dynamic")
    image = None
    if plan.vision:
        image = image_probe(plan.target, directory, plan.vision.as_dict(), probe.seed)
    pictures = picture_probe(plan, written)
    twin = source_model(plan)
    with knobs_at_run_time(twin, plan.keep_blocks, plan.target.settings.top_k):
        equal = exactly_equal(_outputs(variant, probe, image), _outputs(twin, probe, image))
        if pictures is not None:
            equal |= exactly_equal(pictures.run(variant, pictures.ours), pictures.run(twin, pictures.theirs))
    del twin
    if pictures is not None:
        insist_on_pictures(variant, pictures)
    say("another k must differ")
    found = Verification(
        mode="resident",
        as_user=as_user,
        reload=report.counts(),
        probe_seed=probe.seed,
        static_vs_dynamic=equal,
        pictures=how_shown(pictures, written),
        other_k=other_k(variant, plan.target, probe),
    )
    golden = record(variant, probe.ids.numpy(), image) | picture_logits(variant, written)
    if not onnx:
        write_golden(directory, golden)
        return found
    ranges, graphs = check_graph_bounds(directory), checking_graphs(directory)
    cut: dict[str, float] = {}
    if has_preprocess(directory):
        say("preprocess.onnx == Python")
        cut = check_preprocess(graphs)
        golden |= record_picture(graphs)
    write_golden(directory, golden)
    say("ONNX == PyTorch")
    compared = onnx_vs_torch(variant, graphs, probe) | check_graphs(graphs, golden, image, TOLERANCE)
    rounded = check_activations(Graphs(directory), golden["ids"], golden["logits"], lambda: graphs)
    rounds = check_rounding(directory, golden["ids"], golden["logits"]) if plan.form.compute != "float32" else None
    fixed = {}
    if graphs.io.get("static"):
        say("static graphs == PyTorch")
        fixed = verify_static(variant, written, directory, golden, probe.seed, TOLERANCE)
    return replace(
        found, graph_ranges=ranges, onnx_vs_torch=compared, float16_rounding=rounds, static_vs_torch=fixed,
        preprocess=cut, int8_activations=rounded,
    )  # fmt: skip


def source_model(plan: Plan) -> "PreTrainedModel":
    """The source in PyTorch, its weights rounded as the variant's are."""
    if plan.new_packing:
        return load_view(plan.source, rounding(plan), plan.new_packing)[0]
    return align(load_model(plan.source.path, dtype=rounding(plan)).float())


def rounding(plan: Plan) -> str:
    """The dtype, as torch spells it, to which the plan rounds the source's weights; float32 where it doesn't."""
    return "float32" if plan.dtype == "source" else plan.dtype


def _outputs(model: "PreTrainedModel", probe: TextProbe, image: ImageProbe | None) -> dict[str, torch.Tensor]:
    found = run_text(model, probe)
    if image is not None:
        found["image"] = torch.from_numpy(torch_image(model, image)[2])
    return found
