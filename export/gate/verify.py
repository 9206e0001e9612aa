"""`knobcast verify`: a variant checked on its own, at any time, against its sums and its recorded golden outputs."""

from collections.abc import Mapping
from pathlib import Path

from export.files.check import check_variant_files
from export.files.integrity import NONE, unreplaced
from export.files.verification import Verification
from export.gate.activations import check_activations
from export.gate.as_user import check_as_user, code_of_others
from export.gate.checking import checking_graphs, checking_static
from export.gate.compare import TOLERANCE
from export.gate.golden import FILE as GOLDEN
from export.gate.golden import check_graphs, check_torch, compare
from export.gate.golden_file import BEHIND_ALL, load_golden, with_golden_ids
from export.gate.image_probe import image_probe
from export.gate.picture_probe import GOLDEN as PICTURE
from export.gate.picture_probe import picture_logits
from export.gate.preprocess import check_golden_picture, has_preprocess
from export.gate.static import check_static_text
from export.gate.verify_blocks import verify_blocks
from export.run.graphs import Graphs
from transform.errors import VerificationError
from transform.load import load_model, quiet_transformers
from transform.machine import fits, fitting_blocks, fitting_threads
from transform.progress import Say
from transform.strict_json import Record


def verify_directory(directory: Path, say: Say = lambda _: None, known: Mapping[str, str] = NONE) -> Record:
    """Check a variant on its own: sums, facts, bounds, reload, golden outputs in PyTorch and through the graphs; one
    block at a time where it doesn't fit into memory. `known`: as for `check_files`."""
    with unreplaced(directory):
        return _verify_directory(directory, say, known)


def _verify_directory(directory: Path, say: Say, known: Mapping[str, str]) -> Record:
    manifest, checkpoint, results = check_variant_files(directory, say, known)
    passed = Verification.parse(manifest.get("verification"))
    golden = load_golden(directory, checkpoint)
    sees, whole = checkpoint.architecture.modality.sees_images, passed is None or passed.mode == "resident"
    if golden is None or "ids" not in golden or (whole and sees and BEHIND_ALL not in golden):
        if whole or (passed and passed.golden_tokens):
            lost = "is missing, it was recorded" if golden is None else "must hold the outputs that were recorded"
            raise VerificationError(f"{directory}: {GOLDEN} {lost}. Export the variant again.")
        if golden:
            say("preprocess.onnx == golden")
            results["preprocess_vs_golden"] = check_golden_picture(checking_graphs(directory), golden)
        return results | {"golden": "none recorded"}
    image = None
    if sees:
        probe = image_probe(checkpoint, directory, manifest["vision"], 0)
        image = with_golden_ids(probe, golden, checkpoint.settings.vocab)
    if code := code_of_others(checkpoint):
        results["as_user"] = f"not run: {', '.join(code)} isn't this version's code, and no other is executed"
    else:
        say("as users load it")
        results["as_user"] = check_as_user(checkpoint, fitting_blocks(checkpoint))
    quiet_transformers()
    if not fits(checkpoint):
        with fitting_threads(checkpoint):
            results |= verify_blocks(checkpoint, manifest, golden, image, say)
        if has_preprocess(directory):
            results["preprocess_vs_golden"] = check_golden_picture(checking_graphs(directory), golden)
        return results
    say("PyTorch == golden")
    with fitting_threads(checkpoint):
        model = load_model(directory)
        results["torch_vs_golden"] = check_torch(model, golden, image, TOLERANCE)
        if PICTURE in golden:
            found = picture_logits(model, checkpoint).get(PICTURE)
            if found is None:
                raise VerificationError(
                    f"{GOLDEN}: it has logits behind pictures, and config.json lacks the numbers that pictures are "
                    "drawn by. Export the variant again."
                )
            results["torch_vs_golden"][PICTURE] = compare(found, golden[PICTURE], TOLERANCE, f"PyTorch, {PICTURE}")
    if (directory / "text.onnx").is_file():
        say("ONNX == golden")
        graphs = checking_graphs(directory)
        results["onnx_vs_golden"] = check_graphs(graphs, golden, image, TOLERANCE)
        if rounded := check_activations(Graphs(directory), golden["ids"], golden["logits"], lambda: graphs):
            results["int8_activations"] = rounded
        if has_preprocess(directory):
            results["preprocess_vs_golden"] = check_golden_picture(graphs, golden)
        if graphs.io.get("static"):
            results["static_vs_golden"] = check_static_text(checking_static(directory), golden, TOLERANCE)
    return results
