"""The gate can fail: graphs that mean something else than the variant are refused, in every form.

Each mistake is a checkpoint that graphs are emitted from in place of the right one, or a changed graph.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import helper
from safetensors.numpy import load_file

from export.gate.checking import checking_graphs
from export.gate.compare import TOLERANCE, find_probe, onnx_vs_torch
from export.gate.golden import GOLDEN_ROWS, check_graphs, record, torch_image, write_golden
from export.gate.image_probe import ImageProbe, image_probe
from export.gate.probe import TextProbe
from export.gate.verify import verify_directory
from export.graph.decoder import text_graph
from export.graph.embedding import embedding_graph
from export.graph.vision import vision_graph
from export.numpy_run.graphs import check_rounding
from export.variant import export_variant
from transform.checkpoint import Checkpoint, Tensor
from transform.errors import CheckpointError, VerificationError
from transform.forms import NAMES, Form
from transform.knobs import Knobs
from transform.load import load_model
from transform.plan import make_plan
from transform.read import read_checkpoint
from transform.top_k import set_top_k
from transform.vision_tower import Tower


@dataclass
class Made:
    """An unverified variant, and what the gate compares it with."""

    directory: Path
    form: Form
    checkpoint: Checkpoint
    model: Any
    probe: TextProbe
    image: ImageProbe
    golden: dict[str, Any]

    def check_text(self) -> None:
        """As the gate does."""
        onnx_vs_torch(self.model, checking_graphs(self.directory), self.probe)

    def check_image(self) -> None:
        """As the gate does."""
        check_graphs(checking_graphs(self.directory), self.golden, self.image, TOLERANCE)


@pytest.fixture(scope="module", params=NAMES)
def made(request: pytest.FixtureRequest, molmo: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    directory = tmp_path_factory.mktemp("gate") / request.param
    plan = make_plan(read_checkpoint(molmo), Knobs(3, (0, 2), 432, form=request.param))
    export_variant(plan, directory, verify=False)
    checkpoint, model = read_checkpoint(directory), load_model(directory)
    assert plan.vision
    probe = find_probe(model, checkpoint)
    image = image_probe(checkpoint, directory, plan.vision.as_dict(), probe.seed)
    golden = record(model, probe.ids.numpy(), image)
    found = Made(directory, plan.form, checkpoint, model, probe, image, golden)
    found.check_text()
    found.check_image()
    return found


@pytest.fixture
def restored(made: Made) -> Iterator[None]:
    files = {path: path.read_bytes() for path in made.directory.glob("*.onnx")}
    yield
    for path, data in files.items():
        path.write_bytes(data)


def with_tensors(checkpoint: Checkpoint, changed: dict[str, Tensor]) -> Checkpoint:
    """Other bytes under the same names."""
    return replace(checkpoint, tensors={**checkpoint.tensors, **changed})


def with_settings(checkpoint: Checkpoint, **changed: Any) -> Checkpoint:
    copy = replace(checkpoint)
    copy.__dict__["settings"] = replace(checkpoint.settings, **changed)
    return copy


def at(tensor: Tensor, other: Tensor) -> Tensor:
    """The bytes of another tensor under a tensor's name."""
    return tensor._replace(file=other.file, start=other.start, pack=other.pack)


def exchanged(checkpoint: Checkpoint, one: Tensor, other: Tensor) -> Checkpoint:
    return with_tensors(checkpoint, {one.name: at(one, other), other.name: at(other, one)})


def moved(tensor: Tensor, items: int) -> Tensor:
    return tensor._replace(start=tensor.start + tensor.nbytes // tensor.shape[0] * items)


def shifted(checkpoint: Checkpoint, role: str, rows: int, part: str = "codes") -> Checkpoint:
    """A matrix so many rows further; of a quantised one its codes, or its scales."""
    tensor = checkpoint.tensor(role)
    if tensor.pack is None:
        return with_tensors(checkpoint, {tensor.name: moved(tensor, rows)})
    pack, scales = tensor.pack, part == "scales"
    pack = pack._replace(scales=moved(pack.scales, rows)) if scales else pack._replace(codes=moved(pack.codes, rows))
    return with_tensors(checkpoint, {tensor.name: tensor._replace(pack=pack)})


def next_expert(checkpoint: Checkpoint) -> Checkpoint:
    """All experts of block 0 one place further, as a wrong view of a stack has it."""
    changed: dict[str, Tensor] = {}
    experts = checkpoint.settings.experts
    for part in ("gate", "up", "down"):
        for e in range(experts):
            tensor = checkpoint.tensor(f"expert.{part}", 0, e)
            if tensor.pack is None:
                changed[tensor.name] = tensor._replace(start=tensor.start + (tensor.nbytes if part != "down" else 0))
            elif part == "down":
                pack = tensor.pack._replace(codes=moved(tensor.pack.codes, 1))
                changed[tensor.name] = tensor._replace(pack=pack)
    return with_tensors(checkpoint, changed)


def gate_for_up(checkpoint: Checkpoint) -> Checkpoint:
    """Gates and ups of block 1 exchanged; quantised they lie in turns, so there the scales of one row are another's."""
    changed: dict[str, Tensor] = {}
    for e in range(checkpoint.settings.experts):
        gate, up = (checkpoint.tensor(f"expert.{part}", 1, e) for part in ("gate", "up"))
        if gate.pack is None:
            changed |= {gate.name: at(gate, up), up.name: at(up, gate)}
        else:
            scales = gate.pack.scales
            step = scales.nbytes // scales.shape[0] // scales.shape[1]
            pack = gate.pack._replace(scales=scales._replace(start=scales.start + step))
            changed[gate.name] = gate._replace(pack=pack)
    return with_tensors(checkpoint, changed)


def same_block(checkpoint: Checkpoint) -> Checkpoint:
    """Block 1 computed with block 0's weights."""
    first = {name: checkpoint.tensors[name.replace("blocks.1.", "blocks.0.")] for name in checkpoint.tensors}
    return with_tensors(checkpoint, {name: at(checkpoint.tensors[name], tensor) for name, tensor in first.items()})


DECODERS: dict[str, Callable[[Checkpoint], Checkpoint]] = {
    "k": lambda c: set_top_k(c, 2),
    "k of one block": lambda c: set_top_k(c, (3, 4)),
    "renormalised": lambda c: with_settings(c, norm_top_k=not c.settings.norm_top_k),
    "angles": lambda c: with_settings(c, rope_theta=c.settings.rope_theta * 1.01),
    "epsilon": lambda c: with_settings(c, eps=c.settings.eps * 3),
    "clipped": lambda c: with_settings(c, clip_qkv=1.0),
    "view of experts": next_expert,
    "gate and up": gate_for_up,
    "norms of q and k": lambda c: exchanged(c, c.tensor("attention.q_norm", 1), c.tensor("attention.k_norm", 1)),
    "norms of a block": lambda c: exchanged(c, c.tensor("attention.norm", 1), c.tensor("mlp.norm", 1)),
    "routers": lambda c: exchanged(c, c.tensor("router", 0), c.tensor("router", 1)),
    "one block twice": same_block,
}


@pytest.mark.usefixtures("restored")
@pytest.mark.parametrize("mistake", DECODERS)
def test_a_decoder_of_another_meaning_is_refused(mistake: str, made: Made) -> None:
    # one operator reads gates and ups together: where they lie in another order there is no such graph
    with pytest.raises((VerificationError, CheckpointError), match=r"agree with PyTorch|must follow"):
        text_graph(DECODERS[mistake](made.checkpoint), made.form).write(made.directory / "text.onnx")
        made.check_text()


@pytest.mark.usefixtures("restored")
@pytest.mark.parametrize("side", ["causality", "padding"])
def test_a_decoder_that_ignores_half_of_its_mask_is_refused(side: str, made: Made) -> None:
    path = made.directory / "text.onnx"
    model = onnx.load(path, load_external_data=False)
    (joined,) = (node for node in model.graph.node if node.op_type == "And")
    at = 0 if side == "causality" else 1
    given = joined.input[at]
    shaped = {node.output[0]: node for node in model.graph.node}[given]
    assert (shaped.op_type == "Unsqueeze") == (side == "padding")
    always = [helper.make_node("Not", [given], ["no"]), helper.make_node("Or", [given, "no"], ["always"])]
    joined.input[at] = "always"
    nodes = [*model.graph.node]
    where = nodes.index(joined)
    del model.graph.node[:]
    model.graph.node.extend([*nodes[:where], *always, *nodes[where:]])
    path.write_bytes(model.SerializeToString())
    with pytest.raises(VerificationError, match=r"padded|prefill"):
        made.check_text()


IMAGES: dict[str, Callable[[Checkpoint], Checkpoint]] = {
    "taps": lambda c: replace(c, config={**c.config, "vit_layers": list(reversed(c.config["vit_layers"]))}),
    "positions": lambda c: shifted(c, "vision.position", 1),
    "norms": lambda c: exchanged(c, c.tensor("vision.norm1.weight", j=0), c.tensor("vision.norm2.weight", j=0)),
    "gate and up": lambda c: exchanged(c, c.tensor("projector.gate"), c.tensor("projector.up")),
    "first table": lambda c: shifted(c, "embedding", 1),
    "second table": lambda c: shifted(c, "embedding.extra", -1),
    "scales of a table": lambda c: shifted(c, "embedding", 1, "scales"),
    "a matrix of the tower": lambda c: shifted(c, "vision.q.weight", 1),
    "scales of the pooling": lambda c: shifted(c, "pool.k.weight", 1, "scales"),
}


@pytest.mark.usefixtures("restored")
@pytest.mark.parametrize("mistake", IMAGES)
def test_image_graphs_of_another_meaning_are_refused(mistake: str, made: Made) -> None:
    write_image_graphs(made, IMAGES[mistake](made.checkpoint))
    with pytest.raises(VerificationError, match=r"(vision\.onnx and embedding|text)\.onnx"):
        made.check_image()


@pytest.mark.usefixtures("restored")
def test_one_wrong_feature_is_refused(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever it is: golden outputs keep a few rows, the gate compares all."""
    right = Tower.window_patches

    def wrong(self: Tower) -> Any:
        patches = right(self).copy()
        patches[5, 2] = patches[6, 2]
        return patches

    monkeypatch.setattr(Tower, "window_patches", wrong)
    write_image_graphs(made, made.checkpoint)
    with pytest.raises(VerificationError, match=r"vision\.onnx and embedding\.onnx"):
        made.check_image()


def write_image_graphs(made: Made, checkpoint: Checkpoint) -> None:
    crops = made.image.images.shape[1]
    vision_graph(checkpoint, crops, made.form).write(made.directory / "vision.onnx")
    embedding_graph(checkpoint, checkpoint.settings.vocab + 2, made.form).write(made.directory / "embedding.onnx")


def test_golden_outputs_keep_a_few_rows(made: Made, tmp_path: Path) -> None:
    write_golden(tmp_path, made.golden)
    golden = load_file(tmp_path / "golden.safetensors")
    rows, embeddings, _ = torch_image(made.model, made.image)
    assert len(rows) > 400 and len(golden["image.rows"]) == GOLDEN_ROWS
    assert (golden["image.embeddings"] == embeddings[golden["image.rows"]]).all()
    check_graphs(checking_graphs(made.directory), golden, made.image, TOLERANCE)


def test_the_probes_tell_the_tables_and_the_masks_apart(made: Made) -> None:
    base = made.checkpoint.tensor("embedding").shape[0]
    assert (made.image.input_ids >= base).any()
    assert made.probe.mask[0, 0] == 0 and made.probe.mask[0, -1] == 1
    assert made.probe.mask[1, 0] == 1 and made.probe.mask[1, -1] == 0


def test_an_export_is_refused_when_its_graph_is_wrong(molmo: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """The same through the whole export; nothing stays."""
    monkeypatch.setattr("export.graph.emit.text_graph", lambda c, form: text_graph(set_top_k(c, 1), form))
    plan = make_plan(read_checkpoint(molmo), Knobs(3, (0, 2), 432, form="int4"))
    with pytest.raises(VerificationError, match="agree with PyTorch"):
        export_variant(plan, tmp_path / "v")
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    export_variant(plan, tmp_path / "v")
    verify_directory(tmp_path / "v", lambda _: None)


@pytest.mark.parametrize("made", ["cuda"], indirect=True)
def test_the_cuda_form_is_also_run_as_its_types_say(made: Made, restored: None) -> None:
    """In float32 a missing cast and an overflow would stay unseen."""
    ids, logits = made.golden["ids"], made.golden["logits"]
    assert 0 < check_rounding(made.directory, ids, logits) < 1e-2
    with pytest.raises(VerificationError, match="float16's range"):
        check_rounding(made.directory, ids, 1.1 * logits)
    graph = onnx.load(made.directory / "text.onnx", load_external_data=False)
    last = [node for node in graph.graph.node if node.op_type == "Cast"][-1]
    last.attribute[0].i = onnx.TensorProto.FLOAT16
    (made.directory / "text.onnx").write_bytes(graph.SerializeToString())
    with pytest.raises(VerificationError, match="logits must be"):
        check_rounding(made.directory, ids, logits)
