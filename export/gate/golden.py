"""`golden.safetensors`: inputs and outputs of the variant, recorded when it was verified.

They let anyone check any runtime, later and elsewhere, without the source model: `ids` [1, s] text tokens ->
`logits` [1, s, V] by prefill; for image models `image.input_ids` [1, s] with the drawn picture of `probe.py`
(crops follow from the policy in io.json) -> `image.embeddings` [r, d] at the rows `image.rows`, and
`image.logits` [1, V] at the last token, unless it was verified block by block: hundreds of tokens would then pass every
block. For stock models that are shown pictures, and aren't verified block by block, `picture.logits` [1, V] at the last
token behind the pictures that `picture_probe.py` draws. Everything float32, computed by PyTorch on the CPU. Where
preprocess.onnx is: `preprocess.image` uint8 [h, w, 3] -> patches `preprocess.images` [q, 588] at the rows
`preprocess.rows` of [n*576], and all of `preprocess.image_masks`, `.feature_index` and `.image_ids`, by the code that
it repeats (`preprocess.py`).
"""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from export.gate.image_probe import ImageProbe
from export.gate.tolerance import scale_of
from export.run.graphs import Graphs
from transform.arrays import Array
from transform.errors import VerificationError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FILE = "golden.safetensors"
GOLDEN_ROWS = 32  # of the picture prompt's embeddings: enough to notice, few enough to stay small
Differences = dict[str, float]


def write_golden(directory: Path, arrays: dict[str, Array]) -> None:
    """Write the arrays, sorted by name; of a picture prompt's embeddings a few rows."""
    from safetensors.numpy import save

    if "image.rows" in arrays:
        kept = np.unique(np.linspace(0, len(arrays["image.rows"]) - 1, GOLDEN_ROWS).astype(np.int64))
        arrays = {**arrays, **{name: arrays[name][kept] for name in ("image.rows", "image.embeddings")}}
    (directory / FILE).write_bytes(save({name: np.ascontiguousarray(arrays[name]) for name in sorted(arrays)}))


def compare(ours: Array, theirs: Array, tolerance: float, what: str) -> float:
    """Largest difference; beyond `tolerance` of the largest value (`scale_of`) it is an error."""
    if not np.isfinite(theirs).all():
        raise VerificationError(
            f"{what}: golden outputs must be finite, {int((~np.isfinite(theirs)).sum()):,} of {theirs.size:,} are not: "
            "every difference is small beside an infinity. Export the variant again."
        )
    scale = scale_of(theirs)
    difference = float(np.abs(ours - theirs).max()) if ours.shape == theirs.shape else float("inf")
    if not difference <= tolerance * scale:
        raise VerificationError(
            f"{what}: must agree with the golden outputs to {tolerance:.0e} of the largest value ({scale:.4g}), the "
            f"difference is {difference:.3g}. The variant was changed after it was verified: export it again."
        )
    return difference


def record(model: "PreTrainedModel", ids: Array, image: ImageProbe | None) -> dict[str, Array]:
    """The arrays of a golden file, computed by the PyTorch model; all rows of the embeddings."""
    import torch

    with torch.no_grad():
        arrays = {"ids": ids, "logits": model(input_ids=torch.from_numpy(ids)).logits.numpy()}
        if image is not None:
            rows, embeddings, logits = torch_image(model, image)
            arrays |= {
                "image.input_ids": image.input_ids,
                "image.rows": rows,
                "image.embeddings": embeddings,
                "image.logits": logits,
            }
    return arrays


def torch_image(model: "PreTrainedModel", image: ImageProbe) -> tuple[Array, Array, Array]:
    """(rows [s], embeddings at those rows [s, d], logits at the last token [1, V]) of the picture prompt."""
    import torch

    seen: list[torch.Tensor] = []
    first = next(m for m in model.modules() if type(m).__name__.endswith("DecoderLayer"))
    handle = first.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
    )
    try:
        with torch.no_grad():
            logits = model(**image.for_torch(), logits_to_keep=1).logits[:, -1]
    finally:
        handle.remove()
    embeddings = seen[0][0].numpy()
    return np.arange(len(embeddings)), embeddings, logits.numpy()


def check_graphs(graphs: Graphs, golden: dict[str, Array], image: ImageProbe | None, tolerance: float) -> Differences:
    """The graphs against golden outputs.

    The last logits of a picture prompt are not compared: hundreds of tokens pass the routers, and where two experts
    are equally probable in float32, two correct programs may choose differently. Embeddings have no such choice.
    """
    ids = golden["ids"]
    logits, _ = graphs.step(ids, np.ones_like(ids), graphs.empty_cache(len(ids)))
    found = {"logits": compare(logits, golden["logits"], tolerance, "text.onnx")}
    if image is not None:
        features = graphs.image_features(image.images[0], image.image_masks[0], image.feature_index)
        embeddings = graphs.embed(image.input_ids, features)[0][golden["image.rows"]]
        found["embeddings"] = compare(
            embeddings, golden["image.embeddings"], tolerance, "vision.onnx and embedding.onnx"
        )
    return found


def check_torch(
    model: "PreTrainedModel", golden: dict[str, Array], image: ImageProbe | None, tolerance: float
) -> Differences:
    """The PyTorch model against golden outputs, those that were recorded."""
    again = record(model, golden["ids"], image)
    if image is not None:
        again["image.embeddings"] = again["image.embeddings"][golden["image.rows"]]
    return {
        name: compare(again[name], golden[name], tolerance, f"PyTorch, {name}")
        for name in again
        if name in golden and name not in ("ids", "image.input_ids", "image.rows")
    }
