"""io.json of others: every field that is used is checked when a variant is opened, and so are its graphs."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from export.bench.workload import make_workload
from export.run.answer import Runner
from export.run.bound import Bound
from export.run.graphs import Graphs
from export.run.io_file import LONGEST, read_io
from export.run.session import RunError, open_session
from tests.support.paths import FIXTURES
from tests.support.variants import write_variant
from transform.errors import VerificationError

GONE = object()
PREFILL = {"tiling": None, "sequence": 8}
CPU = [["CPUExecutionProvider", {}]]


@pytest.fixture(scope="module")
def seeing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_variant(FIXTURES, tmp_path_factory.mktemp("io") / "v", keep=(0,))


@pytest.fixture
def copied(seeing: Path, tmp_path: Path) -> Path:
    for file in seeing.iterdir():
        (tmp_path / file.name).hardlink_to(file)
    return tmp_path


def change(directory: Path, key: str, value: object) -> None:
    path = directory / "io.json"
    io = json.loads(path.read_text())
    path.unlink()  # a hard link: the other name keeps what it had
    holder, name = io, key
    if "." in key:
        part, _, name = key.partition(".")
        holder = io.setdefault(part, {"cache": 32, "prefills": [PREFILL]})
    if value is GONE:
        del holder[name]
    else:
        holder[name] = value
    path.write_text(json.dumps(io))


WRONG: list[tuple[str, tuple[Any, ...]]] = [
    ("max_positions", ("x", [], GONE, 0, -1, 1.5, True, None, 2**63)),
    ("layers", ("x", [], GONE, 0, -1, 1.5, True, None, 2**63)),
    ("special_ids", ("x", -1, GONE, {}, [], {"bos": 1}, {"bos": 1, "eos": 2})),
    ("special_ids.bos", ("x", -1, GONE, None, 1.0, 2**40)),
    ("special_ids.eos", ("x", GONE, 2, [None], [[1]], ["2"], [1e999], [-2])),
    ("special_ids.image_start", ("x", -1, GONE, None)),
    ("special_ids.image_patch", ("x", -1, GONE, None)),
    ("vision", ({}, "x", [], GONE, None)),
    ("vision.tokens", ("x", [], -1, 0, 1.5, True, GONE, 10**9)),
    ("vision.max_crops", ("x", [], 0, -1, 1e999, None, 10**6)),
    ("vision.resize", ("x", [], None, 0)),
    ("vision.rule", ("x", {}, None)),
    ("session_options", ("x", [], {"a": 1}, GONE, None, {"a": "x" * 10**6}, {"x" * 10**6: "a"})),
    ("vision_session_options", ("x", [], {"a": 1}, {"a": "x" * 10**6})),
    ("session_options", tuple({key: "/tmp/x"} for key in (
        "session.optimized_model_filepath", "session.enable_profiling", "ep.context_file_path",
        "session.collect_node_memory_stats_to_file", "session.model_external_initializers_file_folder_path",
    ))),
    ("vision_session_options", ({"session.moe_expert_counter_state_file": "/tmp/x"},)),
    ("model_type", (GONE, 5, "", "a b", "[red]", "x" * 1000)),
    ("form", (5, "x", [], {})),
    ("top_k", (4, "x", [-1], ["4"], GONE)),
    ("graphs", (5, [], {"text.onnx": 5}, {"text.onnx": {"inputs": [], "outputs": [5]}})),
    ("graphs", tuple(
        {"text.onnx": {"inputs": [], "outputs": [{"name": "logits", "dtype": dtype, "shape": shape}]}}
        for dtype, shape in (("float32", 5), ("float32", [None]), ("x", []), ("float32", [-1]))
    )),
    ("providers", ({"cpu": CPU, "cuda": 7}, {"cpu": CPU, "cuda": "x"}, {"cpu": CPU, "cuda": None})),
    ("providers", ({"cpu": CPU, "cuda": {}}, {"cpu": CPU, "cuda": []}, {"cpu": CPU, "cuda": [7]})),
    ("providers", (5, [5], {"cpu": {}}, {"cpu": [[[], {}]]}, {"cpu": [[{}, {}]]})),
    ("static", (5, {}, {"cache": "32", "prefills": [PREFILL], "providers": {}})),
    ("static", ({"cache": 32, "prefills": [{"tiling": None, "sequence": 1e999}], "providers": {"cpu": CPU}},)),
    ("static", ({"cache": 32, "prefills": [{"tiling": [1, "2"], "sequence": 8}], "providers": {"cpu": CPU}},)),
    ("static.providers", ({"cpu": CPU, "cuda": 7},)),
]  # fmt: skip


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in WRONG for value in values])
def test_a_field_that_is_not_what_it_must_be(key: str, value: object, copied: Path) -> None:
    change(copied, key, value)
    named = "providers" if key == "static.providers" else key.partition(".")[0]
    if "inf" in repr(value):
        named = "numbers must be finite"
    with pytest.raises(VerificationError, match=rf"io\.json: .*{named}"):
        Graphs(copied)


def test_what_exports_write_and_wrote_is_taken(seeing: Path, copied: Path) -> None:
    whole = read_io(seeing)
    assert {"special_ids", "providers", "graphs", "vision"} <= whole.keys()
    for key in ("vision_session_options", "form", "graphs", "providers", "session_attributes", "onnxruntime"):
        change(copied, key, GONE)
    assert read_io(copied).keys() < whole.keys()
    change(copied, "special_ids.eos", [-1])  # never
    change(copied, "vision.tokens", "low")
    Graphs(copied)


def test_null_says_nothing(seeing: Path, copied: Path) -> None:
    for key in ("vision_session_options", "form", "graphs", "static"):
        change(copied, key, None)
    assert read_io(copied).keys() == read_io(seeing).keys() - {"vision_session_options", "form", "graphs", "static"}
    assert Graphs(copied).vision.get_inputs()
    with pytest.raises(VerificationError, match="must have a vocabulary"):
        make_workload(copied, read_io(copied), None, 4)


@pytest.mark.parametrize("key", ["vision_session_options", "form", "graphs", "providers"])
def test_null_means_what_absence_does(key: str, copied: Path) -> None:
    change(copied, key, GONE)
    absent = Graphs(copied)
    change(copied, key, None)
    null = Graphs(copied)
    assert (null.form, null.providers) == (absent.form, absent.providers)
    assert [value.name for value in null.vision.get_inputs()] == [value.name for value in absent.vision.get_inputs()]


def test_an_option_that_onnxruntime_does_not_take(seeing: Path) -> None:
    with pytest.raises(VerificationError, match="can't take the session option"):
        open_session(seeing / "text.onnx", {"k" * LONGEST: "v"})


def test_a_benchmark_without_tokenizer_needs_the_vocabulary(copied: Path) -> None:
    change(copied, "graphs", {})
    with pytest.raises(VerificationError, match="must have a vocabulary"):
        make_workload(copied, read_io(copied), None, 4)


def drop_outputs(model: Any) -> None:
    del model.graph.output[:]


def drop_logits(model: Any) -> None:
    model.graph.output.remove(next(o for o in model.graph.output if o.name == "logits"))


def drop_mask(model: Any) -> None:
    """Read from a constant instead."""
    model.graph.input.remove(next(i for i in model.graph.input if i.name == "attention_mask"))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones((1, 4), np.int64), "attention_mask"))


def one_input_more(model: Any) -> None:
    model.graph.input.append(onnx.helper.make_tensor_value_info("more", onnx.TensorProto.FLOAT, [1]))


def free_heads(model: Any) -> None:
    for value in (*model.graph.input, *model.graph.output):
        if value.name.endswith((".key", ".value")):
            value.type.tensor_type.shape.dim[1].dim_param = "heads"


def without_cache(model: Any) -> None:
    model.graph.output.remove(next(o for o in model.graph.output if o.name.startswith("present")))


@pytest.mark.parametrize("damage", [drop_logits, one_input_more, free_heads, without_cache, drop_mask, drop_outputs])
def test_a_decoder_with_another_signature(damage: Callable[[Any], None], copied: Path) -> None:
    model = onnx.load(copied / "text.onnx", load_external_data=False)
    damage(model)
    (copied / "text.onnx").unlink()
    (copied / "text.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(VerificationError, match=r"text\.onnx"):
        Bound(Graphs(copied))


@pytest.mark.parametrize("name", ["preprocess.onnx", "vision.onnx", "embedding.onnx"])
def test_other_graphs_with_another_signature(name: str, copied: Path) -> None:
    model = onnx.load(copied / name, load_external_data=False)
    one_input_more(model)
    (copied / name).unlink()
    (copied / name).write_bytes(model.SerializeToString())
    with pytest.raises(VerificationError, match=name):
        getattr(Graphs(copied), name.removesuffix(".onnx"))


def test_ids_that_the_embedding_does_not_have(seeing: Path) -> None:
    with pytest.raises(RunError, match="ids that the embedding has"):
        Bound(Graphs(seeing)).prefill(np.array([[1, 10**6]]))


@pytest.mark.parametrize("text", ["\udcff", "a\ud800b", "what\udc80"])
def test_a_prompt_that_is_no_text(text: str, tmp_path: Path) -> None:
    from export.variant import export_variant
    from transform.knobs import Knobs
    from transform.plan import make_plan
    from transform.read import read_checkpoint
    from transform.source import DEFAULT

    export_variant(make_plan(read_checkpoint(DEFAULT), Knobs(k=1, keep=(0,))), tmp_path / "v", verify=False)
    with pytest.raises(RunError, match="must be text in UTF-8"):
        Runner(tmp_path / "v").prompt(text)
