"""`preprocess.onnx` against the code that every other part is fed by: integers and masks exactly, pixels to 1e-5."""

import json
import shutil
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from tokenizers import Tokenizer

from export.files.io_spec import picture_rule
from export.files.provenance import Provenance
from export.gate.golden_file import load_golden
from export.gate.preprocess import check_golden_picture, check_preprocess
from export.gate.verify import verify_directory
from export.graph.builder import EARLIER, IR_VERSION
from export.graph.preprocess import preprocess_graph
from export.run.answer import Runner
from export.run.graphs import Graphs
from export.run.io_file import read_io
from export.variant import export_variant
from tests.support.paths import FIXTURES, ROOT
from tests.support.pictures import synthetic_image
from tests.support.variants import read_json, write_variant
from transform.arrays import Array
from transform.errors import VerificationError
from transform.knobs import Knobs
from transform.molmoe.preprocessing import ImageError, choose_tiling, fitting_tiling, preprocess
from transform.plan import make_plan
from transform.read import read_checkpoint
from transform.source import DEFAULT
from transform.special_tokens import ImageTokens, image_token_ids

IDS = ImageTokens(start=50280, end=50281, patch=50282, column=50283)
TOLERANCE = 1e-5
Policy = tuple[int | str | None, int, str, str]  # tokens, max_crops, resize, rule
POLICIES: tuple[Policy, ...] = (
    (None, 12, "pad", "canvas"), (None, 6, "fill", "canvas"), (None, 1, "pad", "canvas"), (288, 12, "pad", "canvas"),
    (288, 12, "fill", "canvas"), (432, 12, "pad", "canvas"), (432, 12, "fill", "linear"), (1008, 12, "pad", "linear"),
    (1872, 12, "pad", "canvas"), (1872, 12, "fill", "canvas"), ("low", 12, "fill", "linear"),
    ("medium", 12, "pad", "linear"), ("medium", 12, "pad", "canvas"), ("high", 12, "pad", "canvas"),
)  # fmt: skip


@cache
def opened(policy: Policy) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(preprocess_graph(IDS, *policy).serialised(), options)


def difference(image: Array, policy: Policy) -> float:
    made = preprocess(image, *policy)
    images, masks, index, ids = opened(policy).run(None, {"image": image})
    assert images.dtype == masks.dtype == np.float32
    assert images.shape == made.images.shape
    np.testing.assert_array_equal(masks, made.image_masks)
    np.testing.assert_array_equal(index, made.feature_index)
    np.testing.assert_array_equal(ids, made.image_tokens(**IDS._asdict()))
    return float(np.abs(images - made.images).max())


def drawn(seed: int) -> tuple[Array, Policy]:
    """A picture of any size from 1x1 to 4000x3000, as many small ones as large ones, and a policy."""
    generator = np.random.default_rng(seed)
    if seed % 2:
        width, height = (int(generator.integers(1, most + 1)) for most in (4000, 3000))
    else:
        width, height = (int(most ** generator.random()) for most in (4000, 3000))
    return generator.integers(0, 256, (height, width, 3), np.uint8), POLICIES[seed % len(POLICIES)]


def compare(seeds: range) -> int:
    """How many of the drawn pictures were compared: those that can be cut."""
    count = 0
    for seed in seeds:
        image, policy = drawn(seed)
        try:
            assert difference(image, policy) <= TOLERANCE, (seed, image.shape, policy)
        except ImageError:  # a side of nothing
            continue
        count += 1
    return count


@pytest.mark.parametrize("size", [(1, 1), (3, 1000), (700, 3), (113, 112), (336, 336), (1280, 721)])
@pytest.mark.parametrize("policy", POLICIES[::2])
def test_equals_the_python_code(size: tuple[int, int], policy: Policy) -> None:
    assert difference(np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8), policy) <= TOLERANCE


def test_drawn_sizes() -> None:
    assert compare(range(0, 28, 2)) > 8  # the small ones


@pytest.mark.extra
@pytest.mark.parametrize("start", range(0, 1000, 100))
def test_a_thousand_drawn_sizes(start: int) -> None:
    assert compare(range(start, start + 100)) > 80


def records(name: str) -> Iterator[tuple[Array, Policy]]:
    exact = name == "preprocess_exact.json"
    for record in json.loads((FIXTURES / name).read_text())["records"]:
        image = synthetic_image(record["width"], record["height"], record["seed"])
        if "reference_error" not in record:
            tokens = (record["num_crops"] + 1) * 144 if exact else None
            yield image, (tokens, 12, record.get("resize", "pad"), "linear" if exact else "canvas")


@pytest.mark.parametrize("name", ["preprocess_stock.json", "preprocess_exact.json"])
def test_published_records(name: str) -> None:
    light = [(image, policy) for image, policy in records(name) if image.size < 1_000_000]
    assert len(light) > 10
    assert max(difference(image, policy) for image, policy in light[::6]) <= TOLERANCE


@pytest.mark.extra
@pytest.mark.parametrize("name", ["preprocess_stock.json", "preprocess_exact.json"])
def test_all_published_records(name: str) -> None:
    assert max(difference(image, policy) for image, policy in records(name)) <= TOLERANCE


@pytest.mark.parametrize("policy", [p for p in POLICIES if p[0] in (None, 432, 1872, "high") or p[3] == "linear"])
def test_every_aspect_gets_the_tiling_of_the_python_code(policy: Policy) -> None:
    """Where two tilings are equally near, and one pixel beside."""
    generator = np.random.default_rng(7)
    sides = [(h + i, w + j) for h, w in ((5, 3), (3, 5), (15, 9), (112, 112), (336, 560), (560, 336)) for i in (0, 1)
             for j in (0, 1)] + [tuple(map(int, generator.integers(1, 150, 2))) for _ in range(4)]  # fmt: skip
    for height, width in sides:
        rows, columns = choose_tiling(height, width, policy[0], policy[1], policy[3])
        images, _, _, ids = opened(policy).run(None, {"image": np.zeros((height, width, 3), np.uint8)})
        assert len(images) == rows * columns + 1
        assert (ids == IDS.column).sum() == 12 + 8 * rows + 4


def test_ordinary_operators_alone() -> None:
    model = preprocess_graph(IDS, None).model()
    onnx.checker.check_model(model, full_check=True)
    assert [(o.domain, o.version) for o in model.opset_import] == [("", EARLIER)]
    assert model.ir_version == IR_VERSION
    assert len(model.SerializeToString()) < 100_000
    assert preprocess_graph(IDS, "high").serialised() == preprocess_graph(IDS, "high").serialised()


def test_the_runtime_refuses_what_is_no_picture() -> None:
    for wrong in (np.zeros((4, 4, 3), np.float32), np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4), np.uint8)):
        with pytest.raises(Exception, match="INVALID_ARGUMENT"):
            opened(POLICIES[0]).run(None, {"image": wrong})


def test_written_with_a_variant(tmp_path: Path) -> None:
    made = write_variant(FIXTURES, tmp_path / "v", tokens=432)
    emitted = preprocess_graph(image_token_ids(read_checkpoint(made), made), 432)
    emitted.notes = Provenance.parse(read_json(made / "manifest.json")).of("preprocess.onnx")
    assert (made / "preprocess.onnx").read_bytes() == emitted.serialised()
    io = read_io(made)
    said = io["graphs"]["preprocess.onnx"]
    assert said["inputs"] == [{"name": "image", "dtype": "uint8", "shape": ["height", "width", 3]}]
    assert said["outputs"] == [
        {"name": "images", "dtype": "float32", "shape": ["crops", 576, 588]},
        {"name": "image_masks", "dtype": "float32", "shape": ["crops", 576]},
        {"name": "feature_index", "dtype": "int64", "shape": ["features"]},
        {"name": "image_ids", "dtype": "int64", "shape": ["image_tokens"]},
    ]


def test_io_says_how_a_prompt_is_put_together(tmp_path: Path) -> None:
    """A client with a tokenizer and the graphs gets the ids that the processor gets."""
    made = write_variant(ROOT / DEFAULT, tmp_path / "v", tokens=288)
    prompt, image = read_json(made / "io.json")["prompt"], synthetic_image(60, 50, 1)
    text = Tokenizer.from_file(str(made / "tokenizer.json")).encode(
        prompt["before"] + "What is this?" + prompt["after"], add_special_tokens=prompt["add_special_tokens"]
    )
    session = onnxruntime.InferenceSession(str(made / "preprocess.onnx"))
    parts = {"begin": [prompt["begin"]], "image": session.run(["image_ids"], {"image": image})[0], "text": text.ids}
    ids = [int(i) for part in prompt["order"] for i in parts[part]]
    assert ids == Runner(made).prompt("What is this?", image).ids[0].tolist()
    assert prompt["end"] == read_io(made)["special_ids"]["eos"]


def test_the_prompt_of_a_text_model(tmp_path: Path, olmoe: Path) -> None:
    prompt = read_json(write_variant(olmoe, tmp_path / "v") / "io.json")["prompt"]
    assert prompt["order"] == ["text"]
    assert prompt["add_special_tokens"]
    assert not (tmp_path / "v" / "preprocess.onnx").exists()


def fits(rule: dict[str, Any], height: int, width: int) -> bool:
    """As docs/runtimes.md tells clients."""
    short, long = sorted((height, width))
    aspect = rule["aspect_below"]
    return rule["least_side"] <= short and long <= rule["most_side"] and (aspect is None or long < aspect * short)


@pytest.mark.parametrize("resize", ["pad", "fill"])
def test_the_rule_refuses_what_the_python_code_refuses(resize: str) -> None:
    rule = picture_rule(resize)
    refused = 0
    for short in (*range(1, 60), 97, 321, 1001):
        for long in (short * 336 + n for n in (-2, -1, 0, 1, 300)):
            for height, width in ((short, long), (long, short)):
                try:
                    fitting_tiling(np.zeros((height, width, 3), np.uint8), None, 12, resize)
                except ImageError:
                    refused += 1
                    assert not fits(rule, height, width)
    assert bool(refused) == (resize == "pad")
    assert fits(rule, 1, 335)
    assert fits(rule, 1, 1)
    assert not fits(rule, 0, 5)


@pytest.fixture(scope="module")
def proven(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small variant with stock tiling, which passed the gate."""
    made = tmp_path_factory.mktemp("proven") / "v"
    export_variant(make_plan(read_checkpoint(FIXTURES), Knobs(k=2, keep=(0,), tokens="low")), made)
    return made


def test_the_gate_measures_and_the_card_says(proven: Path) -> None:
    measured = json.loads((proven / "manifest.json").read_text())["verification"]["preprocess"]
    assert measured["pictures"] == 7
    assert 0 < measured["largest_difference"] <= measured["tolerance"] == TOLERANCE
    assert f"7 pictures of all shapes | {measured['largest_difference']:.3g} |" in (proven / "README.md").read_text()


def test_verify_runs_it(proven: Path) -> None:
    assert 0 <= verify_directory(proven)["preprocess_vs_golden"]["images"] <= TOLERANCE


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"resize": "fill"}, "image_masks must be equal"),
        ({"rule": "linear"}, "must be"),
        ({"tokens": "medium"}, "images must be"),
        ({"tokens": 288}, "images must be"),
        ({"ids": IDS._replace(column=1)}, "image_ids must be equal"),
    ],
)
def test_the_gate_refuses_a_graph_of_another_meaning(changed: dict[str, Any], why: str, proven: Path) -> None:
    ids = image_token_ids(read_checkpoint(proven), proven)
    graphs = Graphs(proven)
    model = preprocess_graph(**({"ids": ids, "tokens": "low"} | changed))
    graphs.__dict__["preprocess"] = onnxruntime.InferenceSession(model.serialised())
    with pytest.raises(VerificationError, match=rf"preprocess\.onnx must cut pictures.*{why}"):
        check_preprocess(graphs)


@pytest.mark.parametrize("name", ["images", "image_masks", "feature_index", "image_ids", "image"])
def test_verify_refuses_other_golden_values(name: str, proven: Path) -> None:
    graphs, golden = Graphs(proven), load_golden(proven, read_checkpoint(proven))
    assert golden is not None
    check_golden_picture(graphs, golden)
    golden[f"preprocess.{name}"] += 1
    with pytest.raises(VerificationError, match="must cut pictures as"):
        check_golden_picture(graphs, golden)


def test_golden_values_of_no_graph_are_refused(proven: Path, tmp_path: Path) -> None:
    """And a graph without them: someone took one of the two away."""
    copied = Path(shutil.copytree(proven, tmp_path / "v"))
    (copied / "preprocess.onnx").unlink()
    with pytest.raises(VerificationError, match="must hold ids"):
        load_golden(copied, read_checkpoint(copied))
