"""All graphs of a variant, beside its weights."""

from pathlib import Path

from export.graph.builder import Graph
from export.graph.decoder import text_graph
from export.graph.embedding import embedding_graph
from export.graph.notes import Notes, silent
from export.graph.preprocess import preprocess_graph
from export.graph.vision import vision_graph
from export.run.io_file import Policy
from transform.checkpoint import Checkpoint
from transform.forms import Form
from transform.special_tokens import image_token_ids


def emit_graphs(
    checkpoint: Checkpoint,
    directory: Path,
    crops: int | None,
    form: Form,
    policy: Policy | None = None,
    notes: Notes = silent,
) -> list[Path]:
    """Write the graphs of a finished variant beside its weights; `crops` fixes vision.onnx to so many, the global view
    included. `policy`: how pictures are cut, as `preprocess` takes it; without it there is no graph that cuts them.
    `notes`: their metadata.
    """
    graphs: dict[str, Graph] = {}
    if checkpoint.architecture.modality.sees_images:
        ids = image_token_ids(checkpoint, directory)
        if policy is not None:
            graphs["preprocess.onnx"] = preprocess_graph(ids, **policy)
        graphs["vision.onnx"] = vision_graph(checkpoint, crops, form)
        graphs["embedding.onnx"] = embedding_graph(checkpoint, ids.patch, form)
    graphs["text.onnx"] = text_graph(checkpoint, form)
    written = []
    for name, graph in graphs.items():
        graph.notes = notes(name)
        graph.write(directory / name)
        written.append(directory / name)
    return written
