"""A variant that doesn't fit into memory against its golden outputs: one block at a time, as the gate has them.

In PyTorch the golden prompt passes all blocks in turn, so its logits are the whole model's. Graphs are compared block
by block with PyTorch; that the variant's own decoders are made of these blocks, their bytes tell, and where another
version emitted them, they are run as a whole, over weights that stay mapped.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial

from export.files.provenance import Provenance
from export.gate.activations import check_activations
from export.gate.blockwise import embed, keep_largest, one_block_graphs
from export.gate.checking import checking_graphs, checking_static, rounds_activations
from export.gate.compare import TOLERANCE, find_probe, onnx_vs_outputs, run_text
from export.gate.golden import Differences, check_graphs, compare, record
from export.gate.image_probe import ImageProbe
from export.gate.probe import routing_of
from export.gate.static import check_static_text, verify_static_block
from export.gate.stream import Stream
from export.run.graphs import Graphs
from export.run.static_plan import read_static
from transform.arrays import Array
from transform.checkpoint import Checkpoint
from transform.depth import view_blocks
from transform.errors import VerificationError
from transform.load import load_view
from transform.machine import release_memory, return_at_once
from transform.progress import Say
from transform.strict_json import Record

Golden = dict[str, Array]


@dataclass
class Found:
    """The largest differences so far, as `verify` names them."""

    torch_vs_golden: Differences = field(default_factory=dict)
    onnx_vs_torch: Differences = field(default_factory=dict)
    onnx_vs_golden: Differences = field(default_factory=dict)
    int8_activations: Differences = field(default_factory=dict)
    static_vs_torch: Differences = field(default_factory=dict)
    static_vs_golden: Differences = field(default_factory=dict)

    def as_dict(self) -> Record:
        """What was measured."""
        return {name: value for name, value in vars(self).items() if value}


def verify_blocks(
    checkpoint: Checkpoint, manifest: Record, golden: Golden, image: ImageProbe | None, say: Say
) -> Record:
    """What was measured of the variant in `checkpoint`; raises VerificationError. `image`: the recorded picture prompt;
    its last logits are not compared."""
    return_at_once()
    found, onnx = Found(), (checkpoint.path / "text.onnx").is_file()
    if image is not None:
        say("PyTorch == golden, a picture")
        embeddings = embed(checkpoint, image)[0].numpy()[golden["image.rows"]]
        name = "image.embeddings"
        found.torch_vs_golden[name] = compare(embeddings, golden[name], TOLERANCE, f"PyTorch, {name}")
    stream, layers = Stream(golden["ids"], routing_of(checkpoint)), checkpoint.settings.layers
    for block in range(layers):
        say(f"PyTorch == golden, ONNX == PyTorch: block {block + 1} of {layers}")
        try:
            _block(checkpoint, block, stream, image, golden, onnx, found)
        except VerificationError as error:
            raise VerificationError(f"block {block}: {error}") from error
    assert stream.logits is not None
    difference = compare(stream.logits.numpy(), golden["logits"], TOLERANCE, "PyTorch, logits")
    found.torch_vs_golden["logits"] = difference
    if onnx:
        say("ONNX, bytes of the decoders")
        _whole_decoders(checkpoint, manifest, golden, found)
    return found.as_dict()


def _block(
    checkpoint: Checkpoint,
    block: int,
    stream: Stream,
    image: ImageProbe | None,
    golden: Golden,
    onnx: bool,
    found: Found,
) -> None:
    """Pass one block in PyTorch, then compare its graphs with what it gave; one of them is in memory at a time."""
    directory, first = checkpoint.path, block == 0
    view = view_blocks(checkpoint, (block,))
    graphs = Graphs(directory) if onnx else None
    static = graphs is not None and bool(graphs.io.get("static"))
    model, _ = load_view(view, pictures=static and first)
    stream.through(model)
    if graphs is None:
        return
    probe = find_probe(model, view)
    outputs, alone = run_text(model, probe), record(model, probe.ids.numpy(), None)
    if static:
        measured = verify_static_block(model, view, directory, probe.ids.numpy(), first, TOLERANCE)
        keep_largest(found.static_vs_torch, measured)
    del model
    release_memory()
    opened = one_block_graphs(view, directory, graphs.form)
    keep_largest(found.onnx_vs_torch, onnx_vs_outputs(outputs, opened, probe))
    if first and image is not None:
        measured = check_graphs(opened, golden | alone, image, TOLERANCE)
        found.onnx_vs_golden["embeddings"] = measured["embeddings"]
    del opened
    if rounds_activations(graphs):
        users = one_block_graphs(view, directory, graphs.form, Graphs)
        exact = partial(one_block_graphs, view, directory, graphs.form)
        keep_largest(found.int8_activations, check_activations(users, alone["ids"], alone["logits"], exact))
        del users
    release_memory()


def _whole_decoders(checkpoint: Checkpoint, manifest: Mapping[str, object], golden: Golden, found: Found) -> None:
    """The variant's decoders hold the bytes that are emitted here for its blocks; else they are run whole."""
    from export.graph.decoder import text_graph
    from export.graph.static import static_decoders

    directory = checkpoint.path
    graphs = checking_graphs(directory)
    static = read_static(graphs.io)
    emitted = {"text.onnx": text_graph(checkpoint, graphs.form)}
    emitted |= static_decoders(checkpoint, static, graphs.form) if static else {}
    provenance, others = Provenance.parse(manifest) if "scores" in manifest else None, []
    for name, graph in emitted.items():
        graph.notes = provenance.of(name) if provenance else {}
        if graph.serialised() != (directory / name).read_bytes():
            others.append(name)
    if "text.onnx" in others:
        found.onnx_vs_golden["logits"] = check_graphs(graphs, golden, None, TOLERANCE)["logits"]
    if {*others} - {"text.onnx"}:
        found.static_vs_golden = check_static_text(checking_static(directory), golden, TOLERANCE)
