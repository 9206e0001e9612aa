"""`io.json`: all that a runtime needs to know about a variant's graphs. Names, dtypes, shapes, options, special ids.

Inputs and outputs are read back from the graphs themselves, so the file can't say anything else than they do.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx

from export.run.io_file import Signature, Value
from export.run.oldest import oldest_of
from export.run.providers import SESSION_ATTRIBUTES, provider_options
from export.run.session_options import SESSION_OPTIONS, session_options
from export.run.static_plan import StaticPlan
from transform.architectures import Architecture
from transform.checkpoint import Checkpoint
from transform.errors import CheckpointError
from transform.forms import Form
from transform.molmoe.tiling import CROP
from transform.packed_layout import activations_of
from transform.special_tokens import begin_id, end_ids, image_token_ids
from transform.strict_json import Record
from transform.tokenizer_file import embedding_rows
from transform.write import write_json

FILES = ("preprocess.onnx", "vision.onnx", "embedding.onnx", "text.onnx")
DTYPES = {
    onnx.TensorProto.FLOAT: "float32",
    onnx.TensorProto.FLOAT16: "float16",
    onnx.TensorProto.INT64: "int64",
    onnx.TensorProto.UINT8: "uint8",
}
MOST_SIDE = 1 << 22  # pixels; up to here a side that keeps a pixel in exact arithmetic keeps it in float32


def io_spec(
    checkpoint: Checkpoint,
    directory: Path,
    form: Form,
    vision: Mapping[str, object] | None = None,
    static: StaticPlan | None = None,
) -> Record:
    """The content of io.json for the graphs in `directory`; `vision` is the preprocessing policy of image models."""
    ends = end_ids(checkpoint, directory)
    ids: dict[str, object] = {"bos": begin_id(checkpoint, directory), "eos": list(ends)}
    if checkpoint.architecture.modality.sees_images:
        start, end, patch, column = image_token_ids(checkpoint, directory)
        ids |= {"image_start": start, "image_end": end, "image_patch": patch, "image_column": column}
    activations = activations_of(checkpoint.config) if form.activations else None
    spec: Record = {
        "schema": 1,
        "form": form.name,
        "onnxruntime": f">={form.oldest_with(activations)}",
        "model_type": checkpoint.architecture.model_type,
        "layers": checkpoint.settings.layers,
        "top_k": list(checkpoint.settings.top_k),
        "max_positions": checkpoint.settings.max_positions,
        "embedding_rows": embedding_rows(checkpoint),
        "session_options": session_options(form),
        **({} if activations is None else {"activations": activations}),
        "vision_session_options": dict(SESSION_OPTIONS),
        "session_attributes": SESSION_ATTRIBUTES,
        "special_ids": ids,
        "prompt": _prompt(checkpoint.architecture, ids),
        "graphs": {name: signature(directory / name) for name in FILES if (directory / name).is_file()},
    }
    spec["onnxruntime_by_graph"] = {name: f">={oldest_of(name, form, activations)}" for name in spec["graphs"]}
    values = [v for graph in spec["graphs"].values() for part in graph.values() for v in part]
    spec["providers"] = provider_options(form, static=all(type(d) is int for v in values for d in v["shape"]))
    if checkpoint.architecture.modality.sees_images:
        spec["vision"] = dict(vision or {})
        if "preprocess.onnx" in spec["graphs"]:
            spec["picture"] = picture_rule(spec["vision"]["resize"])
    if static is not None:
        graphs = {name: signature(directory / name) for name in static.files}
        # experts that aren't fused get as many rows as the routers say: nothing that could be captured
        providers = provider_options(form, static=form.fused)
        spec["static"] = {**static.as_dict(), "providers": providers, "graphs": graphs}
    return spec


def write_io(
    checkpoint: Checkpoint,
    directory: Path,
    form: Form,
    vision: Mapping[str, object] | None = None,
    static: StaticPlan | None = None,
) -> Path:
    """Write io.json beside the graphs."""
    path = directory / "io.json"
    write_json(path, io_spec(checkpoint, directory, form, vision, static))
    return path


def signature(path: Path) -> Signature:
    """Names, types and shapes of a graph's inputs and outputs, as io.json has them."""
    try:
        graph = onnx.load(path, load_external_data=False).graph
    except Exception as error:  # protobuf's own exception type depends on its implementation
        raise CheckpointError(f"{path.name}: not an ONNX file ({error}). Export the variant again.") from error
    inputs, outputs = ([_value(path.name, value) for value in values] for values in (graph.input, graph.output))
    return {"inputs": inputs, "outputs": outputs}


def _prompt(family: Architecture, ids: Mapping[str, object]) -> Record:
    """How a prompt's ids are put together: `order` of its parts, `text` being before + what the user says + after."""
    before, _, after = family.prompt.template.partition("{prompt}")
    sees = family.modality.sees_images
    return {
        "order": ["begin", "image", "text"] if sees else ["text"],
        "before": before,
        "after": after,
        "add_special_tokens": not sees,  # by the tokenizer, to the text
        "begin": ids["bos"],
        "end": ids["eos"],
    }


def picture_rule(resize: str) -> Record:
    """Which pictures preprocess.onnx may be given: it has no way to refuse one."""
    return {"least_side": 1, "most_side": MOST_SIDE, "aspect_below": CROP if resize == "pad" else None}


def _value(file: str, info: Any) -> Value:
    tensor = info.type.tensor_type
    if tensor.elem_type not in DTYPES:
        raise CheckpointError(
            f"Inputs and outputs must be of the types {', '.join(DTYPES.values())}: {info.name} of {file} is of ONNX's "
            f"type {tensor.elem_type}. Export the variant again."
        )
    shape = [d.dim_param or d.dim_value for d in tensor.shape.dim]
    return {"name": info.name, "dtype": DTYPES[tensor.elem_type], "shape": shape}
