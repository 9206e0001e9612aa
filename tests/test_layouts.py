"""Layouts hold the same graphs and the bytes they read, under each runtime's names; Triton's text is its schema's."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format

from export.files.integrity import check_before_torch, external_tensors
from export.layout.moved import PAGE, plan_move, write_move
from export.layout.triton import config_pbtxt
from export.layout.write import plan_layout, write_layout
from export.run.graph_facts import read_facts
from export.run.graphs import Graphs
from export.run.providers import CPU, CUDA, provider_options
from export.run.session import RunError
from export.variant import export_variant
from tests.support.command import knobcast
from tests.support.models import BLOCKWISE, random_ids, save_source
from tests.support.paths import FIXTURES
from tests.support.variants import add_member, write_variant
from transform.arrays import Array
from transform.errors import CheckpointError, KnobError, VerificationError, WriteError
from transform.forms import form_named
from transform.knobs import Knobs
from transform.plan import make_plan
from transform.read import read_checkpoint

KINDS = {"tensor(float)": "TYPE_FP32", "tensor(int64)": "TYPE_INT64", "tensor(uint8)": "TYPE_UINT8"}


def model_config() -> Any:
    """Triton's ModelConfig, the fields used here: their names and types are those of its model_config.proto."""
    kinds = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="model_config.proto", package="inference", syntax="proto3")
    data = file.enum_type.add(name="DataType")
    integers = [f"{sign}INT{bits}" for sign in ("U", "") for bits in (8, 16, 32, 64)]
    for number, name in enumerate(["INVALID", "BOOL", *integers, "FP16", "FP32", "FP64", "STRING", "BF16"]):
        data.value.add(name=f"TYPE_{name}", number=number)
    group_kind = file.enum_type.add(name="Kind")
    for number, name in enumerate(("KIND_AUTO", "KIND_GPU", "KIND_CPU", "KIND_MODEL")):
        group_kind.value.add(name=name, number=number)
    words = {"string": kinds.TYPE_STRING, "int": kinds.TYPE_INT64}

    def message(name: str, /, **fields: str) -> None:
        made = file.message_type.add(name=name)
        for number, (field, spelled) in enumerate(fields.items(), 1):
            kind, many = spelled.removesuffix("*"), spelled.endswith("*")
            added = made.field.add(name=field, number=number)
            added.label = kinds.LABEL_REPEATED if many else kinds.LABEL_OPTIONAL
            if kind in words:
                added.type = words[kind]
            else:
                added.type = kinds.TYPE_ENUM if kind in ("DataType", "Kind") else kinds.TYPE_MESSAGE
                added.type_name = f".inference.{kind}"

    message("Value", name="string", data_type="DataType", dims="int*")
    message("Group", count="int", kind="Kind")
    message("Text", string_value="string")
    message("Parameter", key="string", value="Text")  # a map in text form
    message("Option", key="string", value="string")
    message("Accelerator", name="string", parameters="Option*")
    message("Accelerators", gpu_execution_accelerator="Accelerator*", cpu_execution_accelerator="Accelerator*")
    message("Level", level="int")
    message("Optimization", graph="Level", execution_accelerators="Accelerators")
    message(
        "ModelConfig", name="string", platform="string", max_batch_size="int", input="Value*", output="Value*",
        instance_group="Group*", optimization="Optimization", parameters="Parameter*",
    )  # fmt: skip
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("inference.ModelConfig"))


def parse(path: Path) -> Any:
    return text_format.Parse(path.read_text(), model_config()())


@pytest.fixture(scope="module")
def seeing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_variant(FIXTURES, tmp_path_factory.mktemp("layouts") / "seeing", [0, 2], 2)


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text model in bfloat16, its weights in several files."""
    base = tmp_path_factory.mktemp("layouts")
    save_source(base / "source", torch.bfloat16)
    from transformers import OlmoeForCausalLM

    loaded = OlmoeForCausalLM.from_pretrained(base / "source", dtype=torch.bfloat16)
    loaded.save_pretrained(base / "sharded", max_shard_size="60KB")
    return write_variant(base / "sharded", base / "narrow")


def opened(path: Path, config: Any) -> Any:
    """The model as Triton's backend opens it: the level of the configuration, no session config entries."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    if config.optimization.graph.level == 2:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(str(path), options, providers=[CPU])


def feed_of(session: Any) -> dict[str, Array]:
    """Values for every input: two rows of seven tokens after three cached ones, or a picture with its tokens."""
    random = np.random.default_rng(7)
    sizes = {"height": 70, "width": 50, "batch": 2, "sequence": 7, "past": 3, "total": 10, "crops": 2, "features": 5}
    feed = {}
    for given in session.get_inputs():
        shape = [d if isinstance(d, int) else sizes.get(d, 5) for d in given.shape]
        if given.name == "attention_mask":
            feed[given.name] = np.ones(shape, np.int64)
        elif given.type == "tensor(int64)":
            feed[given.name] = random.integers(2, 90, shape)
        elif given.type == "tensor(uint8)":
            feed[given.name] = random.integers(0, 256, shape, np.uint8)
        else:
            feed[given.name] = random.standard_normal(shape).astype(np.float32)
    return feed


@pytest.mark.parametrize("which", ["seeing", "narrow"])
def test_triton_models_are_the_variants_graphs(which: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    variant: Path = request.getfixturevalue(which)
    record = write_layout(plan_layout(variant, "triton"), tmp_path / "repository")
    models = ["preprocess", "vision", "embedding", "text"] if which == "seeing" else ["text"]
    found = sorted(p.name for p in (tmp_path / "repository").iterdir() if p.is_dir())
    assert found == sorted(models)
    graphs = Graphs(variant, threads=1)
    for name in models:
        home = tmp_path / "repository" / name
        weights = [] if name == "preprocess" else ["model.onnx_data"]
        assert sorted(p.name for p in (home / "1").iterdir()) == ["model.onnx", *weights]
        config, theirs = parse(home / "config.pbtxt"), getattr(graphs, name)
        assert (config.name, config.platform, config.max_batch_size) == (name, "onnxruntime_onnx", 0)
        ours = opened(home / "1" / "model.onnx", config)
        for declared, values in ((config.input, ours.get_inputs()), (config.output, ours.get_outputs())):
            assert [v.name for v in declared] == [v.name for v in values]
            for said, real in zip(declared, values, strict=True):
                assert list(said.dims) == [d if isinstance(d, int) else -1 for d in real.shape]
                kind = type(said).DESCRIPTOR.fields_by_name["data_type"].enum_type.values_by_number[said.data_type].name
                assert KINDS[real.type] == kind
        feed = feed_of(theirs)
        for one, two in zip(ours.run(None, feed), theirs.run(None, feed), strict=True):
            np.testing.assert_allclose(one, two, rtol=0, atol=1e-5)  # fused or not, the sums have another order
    # 16-bit weights would be folded to float32: no session config entry can be set there
    assert config.optimization.graph.level == (2 if which == "narrow" else 0)
    assert json.loads((tmp_path / "repository" / "manifest.json").read_text()) == {
        key: value for key, value in record.items() if key != "ways"
    }
    assert sum(record["ways"].values()) == record["weight_bytes"]


def test_quantised_graphs_without_config_entries(tmp_path: Path) -> None:
    save_source(tmp_path / "source", **BLOCKWISE, num_key_value_heads=2)
    variant = write_variant(tmp_path / "source", tmp_path / "int4", k=2, form="int4")
    write_layout(plan_layout(variant, "triton"), tmp_path / "repository")
    home = tmp_path / "repository" / "text"
    config, theirs = parse(home / "config.pbtxt"), Graphs(variant, threads=1).text
    assert config.optimization.graph.level == 0  # the scales are folded, as io.json wants it
    ours = opened(home / "1" / "model.onnx", config)
    feed = feed_of(theirs)
    for one, two in zip(ours.run(None, feed), theirs.run(None, feed), strict=True):
        np.testing.assert_allclose(one, two, rtol=0, atol=1e-5)
    with pytest.raises(RunError, match="one of cpu for a variant of the int4 form, got 'cuda': its codes"):
        plan_layout(variant, "triton", provider="cuda")


def test_pictures_are_cut_on_the_cpu_wherever_the_others_run(seeing: Path, tmp_path: Path) -> None:
    write_layout(plan_layout(seeing, "triton", provider="tensorrt"), tmp_path / "repository")
    for name, kind, accelerated in (("preprocess", 2, False), ("vision", 1, True)):  # KIND_CPU, KIND_GPU
        config = parse(tmp_path / "repository" / name / "config.pbtxt")
        assert config.instance_group[0].kind == kind
        assert bool(config.optimization.execution_accelerators.gpu_execution_accelerator) == accelerated


def test_a_graph_of_other_types_is_refused(seeing: Path, tmp_path: Path) -> None:
    changed = Path(shutil.copytree(seeing, tmp_path / "changed"))
    model = onnx.load(changed / "preprocess.onnx")
    model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.STRING
    onnx.save(model, changed / "preprocess.onnx")
    with pytest.raises(CheckpointError, match=r"image of preprocess\.onnx is of ONNX's type 8\. Export"):
        write_layout(plan_layout(changed, "triton"), tmp_path / "repository")


def test_the_cuda_form_goes_to_a_gpu(tmp_path: Path) -> None:
    save_source(tmp_path / "source", **BLOCKWISE, num_key_value_heads=2)
    variant = write_variant(tmp_path / "source", tmp_path / "cuda", k=2, form="cuda")
    write_layout(plan_layout(variant, "triton"), tmp_path / "repository")
    config = parse(tmp_path / "repository" / "text" / "config.pbtxt")
    assert config.instance_group[0].kind == 1  # KIND_GPU
    kinds = {v.name: v.data_type for v in config.input}
    assert (kinds["attention_mask"], kinds["past_key_values.0.key"]) == (9, 10)  # TYPE_INT64, TYPE_FP16
    with pytest.raises(KnobError, match="run on a GPU alone"):
        plan_layout(variant, "triton", provider="cpu")
    with pytest.raises(KnobError, match="cpu, int4 and int8"):
        plan_layout(variant, "transformers.js")


@pytest.mark.parametrize("which", ["seeing", "narrow"])
def test_only_what_a_graph_reads_is_carried(which: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    variant: Path = request.getfixturevalue(which)
    stored = sum(p.stat().st_size for p in variant.glob("*.safetensors"))
    total = 0
    for graph in sorted(path for path in variant.glob("*.onnx") if path.name != "preprocess.onnx"):  # no weights
        moved = plan_move(graph, f"{graph.stem}/1/model.onnx")
        assert all(run.at % PAGE == run.start % PAGE for run in moved.runs)  # else blocks can't be shared
        write_move(moved, tmp_path, lambda _: None)
        before = onnx.load(graph, load_external_data=False)
        after = onnx.load(tmp_path / moved.target)  # with its weights
        for tensor in external_tensors(before.graph):
            entry = {item.key: item.value for item in tensor.external_data}
            bytes_there = (variant / entry["location"]).read_bytes()[int(entry["offset"]) :][: int(entry["length"])]
            (same,) = [t for t in after.graph.initializer if t.name == tensor.name]
            assert same.raw_data == bytes_there
        total += moved.nbytes
        assert (tmp_path / moved.target).with_name("model.onnx_data").stat().st_size < moved.nbytes + PAGE * len(
            moved.runs
        )
    assert total <= stored  # the graphs share no weight
    if which == "narrow":
        assert len(list(variant.glob("*.safetensors"))) > 3
        assert {run.file for run in moved.runs} == {p.name for p in variant.glob("*.safetensors")}


def test_views_that_overlap_are_carried_once(tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(bytes(range(64)))
    graph = onnx.helper.make_graph([], "g", [], [])
    for name, offset, count in (("whole", 0, 8), ("part", 16, 2), ("after", 32, 4), ("apart", 56, 2)):
        tensor = graph.initializer.add(name=name, data_type=onnx.TensorProto.FLOAT, dims=[count])
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for key, value in (("location", "w.bin"), ("offset", offset), ("length", 4 * count)):
            tensor.external_data.add(key=key, value=str(value))
    onnx.save(onnx.helper.make_model(graph), tmp_path / "g.onnx")
    moved = plan_move(tmp_path / "g.onnx", "out/model.onnx")
    assert [(run.start, run.length) for run in moved.runs] == [(0, 48), (56, 8)]
    write_move(moved, tmp_path, lambda _: None)
    found = {t.name: t.raw_data for t in onnx.load(tmp_path / "out" / "model.onnx").graph.initializer}
    expected = {"whole": range(32), "part": range(16, 24), "after": range(32, 48), "apart": range(56, 64)}
    assert found == {name: bytes(values) for name, values in expected.items()}


def test_accelerators_of_a_gpu(tmp_path: Path) -> None:
    signature = {"inputs": [{"name": "x", "dtype": "float16", "shape": ["b", 3]}], "outputs": []}
    known = provider_options(form_named("cuda"), static=False)["tensorrt"]
    options: dict[str, Any] = {str(pair[0]): pair[1] for pair in known}
    (tmp_path / "c").write_text(config_pbtxt("text", signature, "tensorrt", options, folds=False))
    config = parse(tmp_path / "c")
    tensorrt, cuda = config.optimization.execution_accelerators.gpu_execution_accelerator
    assert (tensorrt.name, cuda.name) == ("tensorrt", "cuda")
    given = {option.key: option.value for option in tensorrt.parameters}
    assert given["precision_mode"] == "FP16"
    assert "trt_fp16_enable" not in given and "trt_max_workspace_size" not in given
    assert {option.key: option.value for option in cuda.parameters} == {"use_tf32": "0"}
    numbers = {p.key: p.value.string_value for p in config.parameters}
    assert numbers["arena_extend_strategy"] == "1"  # kSameAsRequested
    assert numbers["cudnn_conv_algo_search"] == "1"  # HEURISTIC
    assert config.instance_group[0].kind == 1  # KIND_GPU
    assert list(config.input[0].dims) == [-1, 3]
    assert not config.HasField("optimization") or config.optimization.graph.level == 0
    (tmp_path / "c").write_text(config_pbtxt("text", signature, "cuda", {CUDA: options[CUDA], CPU: {}}, folds=False))
    (only,) = parse(tmp_path / "c").optimization.execution_accelerators.gpu_execution_accelerator
    assert only.name == "cuda"


def test_transformers_js_files(narrow: Path, seeing: Path, tmp_path: Path) -> None:
    (narrow / "tokenizer.json").write_text("{}")
    write_layout(plan_layout(narrow, "transformers.js"), tmp_path / "js")
    (narrow / "tokenizer.json").unlink()
    files = sorted(str(p.relative_to(tmp_path / "js")) for p in (tmp_path / "js").rglob("*") if p.is_file())
    assert files == [
        "config.json", "generation_config.json", "manifest.json", "onnx/model.onnx", "onnx/model.onnx_data",
        "tokenizer.json",
    ]  # fmt: skip
    config = json.loads((tmp_path / "js" / "config.json").read_text())
    assert (config["model_type"], config["num_key_value_heads"], config["head_dim"]) == ("olmo", 4, 12)
    ids = random_ids(1, 5)
    feed = {"input_ids": ids, "attention_mask": np.ones_like(ids), **Graphs(narrow).empty_cache(1)}
    session = onnxruntime.InferenceSession(str(tmp_path / "js" / "onnx" / "model.onnx"), providers=[CPU])
    theirs = Graphs(narrow).text.run(["logits"], feed)[0]
    np.testing.assert_allclose(session.run(["logits"], feed)[0], theirs, rtol=0, atol=1e-5)
    with pytest.raises(KnobError, match=r"text-only variants.*tried there \(olmoe\), got 'molmo'"):
        plan_layout(seeing, "transformers.js")
    with pytest.raises(KnobError, match="--provider is of no use"):
        plan_layout(narrow, "transformers.js", provider="cuda")


def test_a_member_carries_its_own_blocks(tmp_path: Path) -> None:
    save_source(tmp_path / "source")
    family = write_variant(tmp_path / "source", tmp_path / "family")
    add_member(family, "k3-b2", (0, 2))
    whole = plan_layout(family, "transformers.js")
    member = plan_layout(family, "transformers.js", member="k3-b2")
    assert member.nbytes < whole.nbytes
    write_layout(member, tmp_path / "js")
    assert json.loads((tmp_path / "js" / "config.json").read_text())["num_hidden_layers"] == 2
    assert len(read_facts(tmp_path / "js" / "onnx" / "model.onnx").inputs) == 2 + 4
    with pytest.raises(KnobError, match="one of the family's members, k3-b2; got 'k9'"):
        plan_layout(family, "triton", member="k9")


def unlink(name: str) -> Callable[[Path], None]:
    return lambda directory: (directory / name).unlink()


def truncate(directory: Path) -> None:
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (unlink("text.onnx"), RunError, r"has no text\.onnx.*--no-onnx"),
        (unlink("io.json"), RunError, r"io\.json beside them"),
        (truncate, Exception, r"truncated|bytes"),
    ],
)
def test_refusals(damage: Callable[[Path], None], error: type[Exception], message: str, tmp_path: Path) -> None:
    save_source(tmp_path / "source")
    variant = write_variant(tmp_path / "source", tmp_path / "variant")
    damage(variant)
    with pytest.raises(error, match=message):
        plan_layout(variant, "triton")


def test_targets(narrow: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = plan_layout(narrow, "triton")
    for target in (narrow, narrow / "inside", narrow.parent):
        with pytest.raises(WriteError):
            write_layout(made, target)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(WriteError, match="--force"):
        write_layout(made, tmp_path / "mine")
    with pytest.raises(WriteError, match="has none"):
        write_layout(made, tmp_path / "mine", force=True)
    write_layout(made, tmp_path / "out")
    with pytest.raises(WriteError, match="pass --force"):
        write_layout(made, tmp_path / "out")
    first = (tmp_path / "out" / "text" / "1" / "model.onnx").stat().st_ino
    write_layout(made, tmp_path / "out", force=True)
    assert (tmp_path / "out" / "text" / "1" / "model.onnx").stat().st_ino != first
    mine = Path(shutil.copytree(narrow, tmp_path / "variant"))
    with pytest.raises(WriteError, match=r"replaces a layout .* is a variant"):
        write_layout(made, mine, force=True)
    assert {p.name for p in narrow.iterdir()} == {p.name for p in mine.iterdir()}
    plan = make_plan(read_checkpoint(narrow), Knobs())
    with pytest.raises(WriteError, match=r"replaces a variant .* is a layout"):
        export_variant(plan, tmp_path / "out", verify=False, force=True)
    with pytest.raises(VerificationError, match="is a layout"):
        check_before_torch(tmp_path / "out")

    def broken(*_: object) -> None:
        raise VerificationError("broken")

    monkeypatch.setattr("export.layout.triton.config_pbtxt", broken)
    with pytest.raises(VerificationError):
        write_layout(made, tmp_path / "never")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine", "out", "variant"]


def test_unknown_runtimes_and_providers(narrow: Path) -> None:
    with pytest.raises(KnobError, match=r"one of transformers\.js, triton, got 'tvm'"):
        plan_layout(narrow, "tvm")
    with pytest.raises(RunError, match="one of cpu, cuda, tensorrt"):
        plan_layout(narrow, "triton", provider="tpu")


def test_command_line(narrow: Path, tmp_path: Path) -> None:
    command = ("layout", narrow, "--for", "triton", "--json")
    planned = json.loads(knobcast(*command, "--dry-run").out)
    assert planned["out"] == f"{narrow}-triton"
    assert not Path(f"{narrow}-triton").exists()
    done = knobcast(*command, "--out", tmp_path / "out")
    assert done.code == 0
    assert json.loads(done.out)["weight_bytes"] == planned["weight_bytes"]
    assert (tmp_path / "out" / "text" / "config.pbtxt").is_file()
