"""Graphs of fixed sizes against PyTorch and the growing ones: every form, every tiling, the cache to its end."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from artifacts.nano import data
from export.gate.blockwise import blockwise_gate
from export.gate.checking import checking_static
from export.gate.golden import record
from export.gate.image_probe import image_probe
from export.gate.probe import MarginWatch
from export.gate.static import StaticImage, check_static_text, static_images
from export.gate.verify import verify_directory
from export.graph.context import Static
from export.graph.decoder import text_graph
from export.graph.static import plan_static
from export.run.answer import Runner
from export.run.session import RunError
from export.run.static import StaticGraphs
from export.run.static_plan import Prefill, StaticPlan
from export.variant import export_variant
from importance.readers.read import read_samples
from tests.support.command import knobcast
from transform.arrays import Array
from transform.errors import KnobcastError, KnobError, VerificationError
from transform.forms import Form
from transform.knobs import Knobs
from transform.load import load_model
from transform.molmoe.tiling import image_tokens
from transform.plan import make_plan
from transform.read import read_checkpoint
from transform.source import DEFAULT

FORMS = ("cpu", "cuda", "int4")  # cuda by numpy, for onnxruntime has no such experts without a GPU
CACHE, PROMPT = 40, 8
TOLERANCE = 5e-5  # 1e-5 of the largest logits, which are 5 and more


def export(source: Path, out: Path, knobs: Knobs, cache: int, prompt: int | None = None, **options: Any) -> Any:
    plan = make_plan(read_checkpoint(source), knobs)
    return export_variant(plan, out, static=plan_static(plan, cache, prompt), **options)


@pytest.fixture(scope="module")
def text_variants(olmoe: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """OLMoE in every form, without half of its blocks."""
    root = tmp_path_factory.mktemp("text")
    for form in FORMS:
        knobs = Knobs(2, keep=(0, 2, 5), form=form)
        export(olmoe, root / form, knobs, CACHE, PROMPT, verify=False)
    return {form: root / form for form in FORMS}


@pytest.fixture(scope="module")
def image_variants(molmo: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """MolmoE in every form, one with one k per block."""
    root = tmp_path_factory.mktemp("image")
    for form in FORMS:
        knobs = (
            Knobs((2, 4, 1), keep=(0, 1, 3), tokens=432, form=form) if form == "cpu" else Knobs(tokens=432, form=form)
        )
        export(molmo, root / form, knobs, 592, verify=False)
    return {form: root / form for form in FORMS}


def decidable(model: Any, vocab: int, count: int) -> tuple[Array, Array]:
    """Ids [1, count] whose expert choices float32 can tell, and PyTorch's logits [count, V]."""
    for seed in range(40):
        ids = np.random.default_rng(seed).integers(3, vocab, (1, count))
        with MarginWatch(model) as watch, torch.no_grad():
            logits = model(input_ids=torch.from_numpy(ids)).logits[0].numpy()
        if watch.smallest > 2e-7:
            return ids, logits
    raise AssertionError("no seed has decidable routers")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("length", [1, 5, PROMPT, PROMPT + 1, CACHE - 3])
def test_prompts_and_steps_equal_pytorch_until_the_cache_is_full(
    text_variants: dict[str, Path], form: str, length: int
) -> None:
    ids, theirs = decidable(load_model(text_variants[form]), 128, CACHE)
    graphs = checking_static(text_variants[form])
    graphs.fill_cache(1e4)  # what an earlier sequence left
    np.testing.assert_allclose(graphs.prefill(ids[:, :length]), theirs[length - 1], rtol=0, atol=TOLERANCE)
    for at in range(length, CACHE):
        np.testing.assert_allclose(graphs.decode(int(ids[0, at])), theirs[at], rtol=0, atol=TOLERANCE, err_msg=str(at))
    with pytest.raises(RunError, match=f"all {CACHE} slots"):
        graphs.decode(3)
    with pytest.raises(RunError, match=f"cache of {CACHE} tokens, it has {CACHE + 1}"):
        graphs.prefill(np.ones((1, CACHE + 1), np.int64))


@pytest.mark.parametrize("form", ["cpu", "int4"])
def test_past_and_present_may_be_one_buffer(text_variants: dict[str, Path], form: str) -> None:
    """Written in place or from one set of buffers to another: the same numbers, whatever stood in free slots."""
    ids = np.random.default_rng(0).integers(3, 128, (1, 30))
    seen = []
    for in_place, leftover in ((True, 0.0), (True, -3e38), (False, 1e30)):
        graphs = StaticGraphs(text_variants[form], threads=1, in_place=in_place)
        graphs.fill_cache(leftover)
        logits = [graphs.prefill(ids[:, :11]), *(graphs.decode(int(token)) for token in ids[0, 11:])]
        seen.append(np.stack(logits))
        call = graphs._call("decode.onnx")
        name = "past_key_values.0.key"
        past, present = call.inputs[name], call.outputs[name.replace("past_key_values", "present")]
        assert (past.data_ptr() == present.data_ptr()) is in_place
        # the cache is written, and nowhere else than in the slots in use
        sides = [past.numpy(), present.numpy()]
        assert all(np.all(side[:, :, 30:] == np.float32(leftover)) for side in sides)
        assert all(np.all(np.abs(side[:, :, :29]) < 100) for side in sides[:1])
    assert np.isfinite(seen[0]).all()
    np.testing.assert_array_equal(seen[0], seen[1])
    np.testing.assert_array_equal(seen[0], seen[2])


@pytest.mark.parametrize("form", FORMS)
def test_pictures_of_every_tiling_equal_pytorch(image_variants: dict[str, Path], form: str) -> None:
    directory = image_variants[form]
    model, checkpoint = load_model(directory), read_checkpoint(directory)
    graphs = checking_static(directory)
    assert [p.tiling for p in graphs.static.prefills] == [(1, 2), (2, 1)]
    for prefill, size in zip(graphs.static.prefills, ((150, 90), (90, 150)), strict=True):
        for seed in range(5):
            image = StaticImage(prefill, image_probe(checkpoint, directory, graphs.io["vision"], seed, size))
            more = np.random.default_rng(seed).integers(3, 100, (1, 4))
            given = image.probe.for_torch()
            given["input_ids"] = torch.cat((given["input_ids"], torch.from_numpy(more)), 1)
            with MarginWatch(model) as watch, torch.no_grad():
                theirs = model(**given).logits[0, -5:].numpy()
            if watch.smallest > 2e-7:
                break
        else:
            raise AssertionError("no seed has decidable routers")
        ours = [graphs.prefill(image.probe.input_ids, image.cut), *(graphs.decode(int(token)) for token in more[0])]
        np.testing.assert_allclose(np.stack(ours), theirs, rtol=0, atol=TOLERANCE)
        # a prompt without picture afterwards: its patch tokens have no features
        patch = graphs.io["special_ids"]["image_patch"]
        ids = np.array([[3, patch, 4]])
        with torch.no_grad():
            plain = model(input_ids=torch.from_numpy(ids)).logits[0, -1].numpy()
        np.testing.assert_allclose(graphs.prefill(ids, tiling=prefill.tiling), plain, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(("form", "keep"), [("cpu", (0, 5, 11)), ("int4", None)])
def test_greedy_ids_equal_the_runner_on_a_picture(tmp_path: Path, form: str, keep: tuple[int, ...] | None) -> None:
    export(DEFAULT, tmp_path / "v", Knobs(4, keep, 432, form=form), 640, verify=False)
    runner, graphs = Runner(tmp_path / "v"), StaticGraphs(tmp_path / "v")
    data.write(tmp_path, "calibration", 1)  # a picture, several questions
    answers = set()
    for sample in read_samples(tmp_path / "calibration.jsonl")[:3]:
        prompt = runner.prompt(sample.prompt, str(sample.images[0]))
        ours = list(graphs.generate(prompt.ids, prompt.image, 6))
        assert ours == list(runner.generate(prompt, 6))
        answers.add(tuple(ours))
    text = runner.prompt("what is this?")
    assert list(graphs.generate(text.ids, None, 6)) == list(runner.generate(text, 6))
    assert len(answers) > 1


def test_generating_ends_where_the_cache_does(text_variants: dict[str, Path]) -> None:
    graphs = StaticGraphs(text_variants["cpu"])
    graphs.io["special_ids"]["eos"] = []
    ids = np.random.default_rng(0).integers(3, 128, (1, CACHE - 4))
    assert len(list(graphs.generate(ids, max_new_tokens=64))) == 5  # the last one needs no slot
    assert len(list(graphs.generate(ids, max_new_tokens=2))) == 2
    graphs.io["special_ids"]["eos"] = [next(graphs.generate(ids))]
    assert list(graphs.generate(ids, max_new_tokens=64)) == graphs.io["special_ids"]["eos"]


def sizes(path: Path) -> dict[str, list[int | None]]:
    """Every result of a graph with its inferred shape; None for a size that is not known."""
    model = onnx.shape_inference.infer_shapes(onnx.load(path, load_external_data=False), strict_mode=True)
    known = {
        info.name: [dim.dim_value if dim.HasField("dim_value") else None for dim in info.type.tensor_type.shape.dim]
        for info in (*model.graph.input, *model.graph.value_info, *model.graph.output)
    }
    names = [info.name for info in model.graph.input]
    return {name: known.get(name, [None]) for name in (*names, *(o for n in model.graph.node for o in n.output))}


@pytest.mark.parametrize("form", ["cuda", "int4"])
def test_every_size_is_known(text_variants: dict[str, Path], image_variants: dict[str, Path], form: str) -> None:
    for directory in (text_variants[form], image_variants[form]):
        graphs = json.loads((directory / "io.json").read_text())["static"]["graphs"]
        assert len(graphs) in (2, 8)
        for name in graphs:
            open_sizes = {value: shape for value, shape in sizes(directory / name).items() if None in shape}
            assert open_sizes == {}, name
            kinds = {node.op_type for node in onnx.load(directory / name, load_external_data=False).graph.node}
            assert not kinds & {"Shape", "Size", "Range", "NonZero", "If", "Loop", "Scan", "CumSum"} - (
                {"CumSum"} if name.startswith("embedding") else set()
            ), name


def test_shapes_that_are_written_down_are_true(text_variants: dict[str, Path]) -> None:
    """What onnx can't infer is written into the graph: compared with what runs."""
    path = text_variants["int4"] / "decode.onnx"
    model = onnx.load(path, load_external_data=False)
    written = {info.name: [d.dim_value for d in info.type.tensor_type.shape.dim] for info in model.graph.value_info}
    assert len(written) > 20
    model.graph.output.extend(model.graph.value_info)
    onnx.save(model, path.with_name("all.onnx"))
    graphs = StaticGraphs(text_variants["int4"])
    session = graphs._open("all.onnx")
    feed = {i.name: np.zeros(i.shape, np.int64 if "int64" in i.type else np.float32) for i in session.get_inputs()}
    found = dict(zip(written, session.run(list(written), feed), strict=True))
    assert {name: list(value.shape) for name, value in found.items()} == written


def test_grouped_heads_equal_pytorch(tmp_path: Path) -> None:
    from transformers import OlmoeConfig, OlmoeForCausalLM

    torch.manual_seed(0)
    config = OlmoeConfig(
        vocab_size=128, hidden_size=64, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, num_experts=8, num_experts_per_tok=2, max_position_embeddings=512, clip_qkv=0.5,
    )  # fmt: skip
    OlmoeForCausalLM(config).save_pretrained(tmp_path / "source")
    export(tmp_path / "source", tmp_path / "v", Knobs(), 32, 4, verify=False)
    ids, theirs = decidable(load_model(tmp_path / "v"), 128, 12)
    graphs = StaticGraphs(tmp_path / "v")
    ours = [graphs.prefill(ids[:, :6]), *(graphs.decode(int(token)) for token in ids[0, 6:])]
    np.testing.assert_allclose(np.stack(ours), theirs[5:], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("form", [*FORMS, "int8"])
def test_the_gate_proves_static_graphs(molmo: Path, olmoe: Path, tmp_path: Path, form: str) -> None:
    proven = export(molmo, tmp_path / "image", Knobs(2, (0, 2), 432, form=form), 640)["verification"]
    found = proven["static_vs_torch"]
    assert {"prefill-1x2.onnx", "vision-2x1.onnx", "prefill-2x1.onnx, picture"} <= found.keys()
    assert proven["graph_ranges"].keys() >= {"decode.onnx", "embedding-decode.onnx"}
    assert set(verify_directory(tmp_path / "image", lambda _: None)["static_vs_golden"]) == {
        "prefill-1x2.onnx", "prefill-2x1.onnx",
    }  # fmt: skip
    proven = export(olmoe, tmp_path / "text", Knobs(2, form=form), 32, 8)["verification"]
    assert set(proven["static_vs_torch"]) == {"relative_tolerance", "prefill.onnx"}


@pytest.mark.parametrize("form", FORMS)
def test_the_blockwise_gate_proves_static_graphs(molmo: Path, tmp_path: Path, form: str) -> None:
    plan = make_plan(read_checkpoint(molmo), Knobs(2, (0, 2), 432, form=form))
    export_variant(plan, tmp_path / "v", verify=False, static=plan_static(plan, 640))
    before = sorted(tmp_path.glob("v/*"))
    found = blockwise_gate(plan, read_checkpoint(tmp_path / "v"), True, lambda _: None).static_vs_torch
    assert {"prefill-1x2.onnx", "prefill-2x1.onnx", "vision-1x2.onnx"} <= found.keys()
    assert sorted(tmp_path.glob("v/*")) == sorted([*before, tmp_path / "v" / "golden.safetensors"])


def test_the_gate_sees_a_wrong_static_graph(molmo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import export.graph.static as module

    write = module.write_decoders

    def wrong(checkpoint: Any, directory: Path, static: StaticPlan, form: Form, prefix: str = "", **notes: Any) -> Any:
        files = write(checkpoint, directory, static, form, prefix, **notes)
        one_more = Static(1, static.cache)
        from transform.top_k import set_top_k

        text_graph(set_top_k(checkpoint, 3), form, one_more).write(directory / f"{prefix}decode.onnx")
        return files

    monkeypatch.setattr(module, "write_decoders", wrong)
    with pytest.raises(VerificationError, match=r"decode\.onnx"):
        export(molmo, tmp_path / "v", Knobs(2, tokens=432), 640)
    assert not (tmp_path / "v").exists()


def test_the_gate_sees_a_prompts_rest_in_the_wrong_slots(olmoe: Path, tmp_path: Path) -> None:
    """A prefill graph that writes from slot 0 on, whatever `past_length` says."""
    import onnx

    plan = make_plan(read_checkpoint(olmoe), Knobs(2))
    export_variant(plan, tmp_path / "v", verify=False, static=plan_static(plan, 32, 16))
    model, golden = load_model(tmp_path / "v"), np.arange(3, 21)[None]
    recorded = record(model, golden, None)
    check_static_text(checking_static(tmp_path / "v"), recorded, TOLERANCE)
    path = tmp_path / "v" / "prefill.onnx"
    graph = onnx.load(path, load_external_data=False)
    (slots,) = (node for node in graph.graph.node if node.op_type == "Add" and "past_length" in node.input)
    slots.op_type = "Max"
    path.write_bytes(graph.SerializeToString())
    with pytest.raises(VerificationError, match=r"prefill\.onnx"):
        check_static_text(checking_static(tmp_path / "v"), recorded, TOLERANCE)


def test_the_dynamic_graphs_stay_as_they_are(molmo: Path, tmp_path: Path) -> None:
    plan = make_plan(read_checkpoint(molmo), Knobs(2, tokens=432))
    export_variant(plan, tmp_path / "plain", verify=False)
    export(molmo, tmp_path / "static", Knobs(2, tokens=432), 640, verify=False)
    plain, static = ({p.name: p.read_bytes() for p in (tmp_path / n).iterdir()} for n in ("plain", "static"))
    assert all(static[name] == data for name, data in plain.items() if name not in ("io.json", "manifest.json"))
    extra = set(static) - set(plain)
    assert len(extra) == 8
    assert sum(len(static[name]) for name in extra if not name.startswith(("prefill", "decode"))) < 200_000
    with pytest.raises(RunError, match="--static N"):
        StaticGraphs(tmp_path / "plain")


def test_prompt_lengths_follow_from_the_tiling(molmo: Path) -> None:
    plan = make_plan(read_checkpoint(molmo), Knobs(tokens=1008))
    found = plan_static(plan, 1024)
    assert [p.tiling for p in found.prefills] == [(1, 6), (2, 3), (3, 2), (6, 1)]
    for prefill in found.prefills:
        assert prefill.tiling
        assert 0 <= prefill.sequence - (1 + image_tokens(*prefill.tiling) + 128) < 16
        assert prefill.sequence % 16 == 0
    assert len(found.files) == 4 * 3 + 2
    assert Prefill((2, 3), 5).file("prefill") == "prefill-2x3.onnx"


@pytest.mark.parametrize(
    ("tokens", "cache", "prompt", "words"),
    [
        (None, 1024, None, ["without --tokens", "12 crops"]),
        ("low", 1024, None, ["'low'", "5 tilings", "--tokens"]),
        (432, 512, None, ["512", "2×1", "420 of the image", "--static 560"]),
        (432, 8, None, ["from 32 to", "got 8"]),
        (432, 100_000, None, ["4096", "100000"]),
        (432, 1024, 64, ["--prompt", "text-only"]),
    ],
)
def test_image_settings_that_can_not_be(
    molmo: Path, tokens: int | str | None, cache: int, prompt: int | None, words: list[str]
) -> None:
    plan = make_plan(read_checkpoint(molmo), Knobs(tokens=tokens))
    with pytest.raises(KnobError) as raised:
        plan_static(plan, cache, prompt)
    assert all(word in str(raised.value) for word in words), raised.value


@pytest.mark.parametrize("prompt", [1, 65])
def test_text_prompts_that_can_not_be(olmoe: Path, prompt: int) -> None:
    with pytest.raises(KnobError, match=f"64 tokens, got {prompt}"):
        plan_static(make_plan(read_checkpoint(olmoe), Knobs()), 64, prompt)


def test_the_command_line(olmoe: Path, tmp_path: Path) -> None:
    shown = json.loads(knobcast("export", olmoe, "--k", "2", "--static", "64", "--dry-run", "--json").out)
    assert shown["static"]["prefills"] == [{"tiling": None, "sequence": 64, "prefill": "prefill.onnx"}]
    assert shown["out"].endswith("-s64")
    for words, expected in (
        (["--static", "64", "--no-onnx"], "--no-onnx"),
        (["--prompt", "64"], "--static N"),
        (["--static", "many"], "whole number"),
        (["--family", "k=1,2", "--static", "64"], "--family goes without --static"),
    ):
        done = knobcast("export", olmoe, *words, "--out", tmp_path / "v")
        assert done.code == 1
        assert expected in done.said
        assert not (tmp_path / "v").exists()


def test_a_tiling_without_graphs_is_named(image_variants: dict[str, Path]) -> None:
    graphs = StaticGraphs(image_variants["int4"])
    with pytest.raises(KnobcastError, match="1×2, 2×1, the image has 3×1"):
        graphs.prefill(np.ones((1, 4), np.int64), tiling=(3, 1))


@pytest.mark.parametrize("rule", ["canvas", "linear"])
def test_the_gate_has_a_picture_for_every_tiling(molmo: Path, rule: str) -> None:
    checkpoint = read_checkpoint(molmo)
    for crops in (1, 2, 6, 12):
        plan = make_plan(checkpoint, Knobs(tokens=144 * (crops + 1), rule=rule))
        assert plan.vision
        images = static_images(plan_static(plan, 4096), checkpoint, molmo, plan.vision.as_dict(), 0)
        assert len(images) == len(plan.vision.tilings)
        for image in images:
            np.testing.assert_array_equal(image.cut.feature_index, image.probe.feature_index)
