"""The torch-free runner: published greedy ids from image file and words to answer, and what it refuses."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from export.files.io_spec import write_io
from export.graph.emit import emit_graphs
from export.graph.preprocess import preprocess_graph
from export.run.answer import Runner, answer
from export.run.session import RunError
from tests.support.command import knobcast
from tests.support.molmo_parity import knobs_of
from tests.support.paths import FIXTURES
from tests.support.pictures import encoded, synthetic_image
from tests.support.variants import add_member, write_variant
from transform.errors import KnobError, VerificationError
from transform.forms import REFERENCE
from transform.molmoe.preprocessing import ImageError
from transform.read import read_checkpoint
from transform.special_tokens import image_token_ids
from transform.write import write_checkpoint

CASES = json.loads((FIXTURES / "parity_cases.json").read_text())
END_TO_END = [name for name, case in CASES["cases"].items() if case["kind"] == "end_to_end"]


def words_of(text: list[int]) -> dict[int, str]:
    """One word per id, so that the published ids are a question: their first is "User:", their last "Assistant:"."""
    config = json.loads((FIXTURES / "config.json").read_text())
    words = {i: f"w{i}" for i in range(config["embedding_size"] + 128)}
    special = CASES["special_token_ids"]
    words |= {special[f"image_{n}"]: f"<im_{n}>" for n in ("start", "end", "patch", "col")}
    return words | {special["eos"]: "<|endoftext|>", text[0]: "User:", text[-1]: "Assistant:"}


def write_runnable(target: Path, text: list[int], variant: str, tokens: int | None = None) -> Path:
    """A published variant of the fixtures with a tokenizer."""
    source = target.with_name(f"{target.name}-source")
    source.mkdir()
    for name in ("config.json", "model.safetensors"):
        (source / name).symlink_to(FIXTURES / name)
    words = words_of(text)
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in words.items()}, unk_token="w1"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = decoders.WordPiece("##", cleanup=False)
    tokenizer.add_special_tokens([word for word in words.values() if word.startswith("<")])
    tokenizer.save(str(source / "tokenizer.json"))
    return write_variant(source, target, *knobs_of(variant), tokens=tokens)


@pytest.fixture(scope="module")
def runnable(tmp_path_factory: pytest.TempPathFactory) -> Path:
    text = CASES["texts"][CASES["cases"][END_TO_END[0]]["text"]]
    return write_runnable(tmp_path_factory.mktemp("run") / "full", text, "full")


@pytest.mark.parametrize("variant", CASES["variants"])
def test_published_greedy_ids_from_file_and_words(tmp_path: Path, variant: str) -> None:
    outputs = load_file(FIXTURES / "parity_outputs.safetensors")
    assert END_TO_END
    # every case in the full variant, one in the others: each needs its own graphs
    for name in END_TO_END if variant == "full" else END_TO_END[:1]:
        case = CASES["cases"][name]
        text = CASES["texts"][case["text"]]
        directory = write_runnable(tmp_path / name, text, variant)
        words = words_of(text)
        width, height = case["image_size_wh"]
        image = tmp_path / f"{name}.png"
        image.write_bytes(encoded(synthetic_image(width, height, case["image_seed"])))
        expected = outputs[f"{name}/{variant}/greedy"][0].tolist()
        end = CASES["special_token_ids"]["eos"]
        expected = expected[: expected.index(end)] if end in expected else expected
        pieces: list[str] = []
        question = " ".join(words[i] for i in text[1:-1])
        given = Runner(directory).answer(image, question, max_new_tokens=8, stream=pieces.append)
        assert list(given.ids) == expected
        assert list(given.tiling or ()) == case["tiling_rows_cols"]
        assert given.prompt_tokens == case["seq_len"][0]
        assert "".join(pieces).strip() == given.text
        assert given.timing.steps >= len(expected) - 1
        assert given.as_dict()["tokens_per_second"]["decode"] > 0
        assert "tokens/s" in given.speed()


def test_text_alone(runnable: Path) -> None:
    outputs = load_file(FIXTURES / "parity_outputs.safetensors")
    runner = Runner(runnable)
    prompt = runner.prompt("w5 w6")
    assert prompt.tiling is None
    assert prompt.ids.shape == (1, 5)  # BOS, User:, the two, Assistant:
    ids = [CASES["special_token_ids"]["bos"], *CASES["texts"]["text_only"]]
    made = runner.generate(type(prompt)(np.array([ids]), None), 8)
    assert list(made) == outputs["text_only/full/greedy"][0].tolist()


def test_fixed_budget_of_the_variant_is_used(tmp_path: Path) -> None:
    text = CASES["texts"]["long"]
    directory = write_runnable(tmp_path / "fixed", text, "full", tokens=432)
    runner = Runner(directory)
    for size, tiling in (((40, 90), (2, 1)), ((1, 1), (1, 2)), ((900, 700), (1, 2))):
        given = runner.answer(Image.new("RGB", size), "w5", max_new_tokens=1)
        assert given.tiling == tiling
        assert (given.timing.steps, given.decode_speed) == (0, None)


def test_the_graph_or_the_python_code_cuts_the_image(runnable: Path, tmp_path: Path) -> None:
    """The graph where there is one; the answer is the same, and says which."""
    image = tmp_path / "a.png"
    image.write_bytes(encoded(synthetic_image(300, 200, 3)))
    given = {how: answer(runnable, image, "w5", 3, preprocess=how) for how in (None, "graph", "python")}
    assert [made.as_dict()["preprocess"] for made in given.values()] == ["graph", "graph", "python"]
    assert len({made.ids for made in given.values()}) == 1
    assert answer(runnable, None, "w5", 1).preprocess is None
    command = ["run", runnable, "--image", image, "--prompt", "w5", "--max-new-tokens", "1", "--json"]
    assert json.loads(knobcast(*command, "--preprocess", "python").out)["preprocess"] == "python"


def test_a_variant_without_the_graph(runnable: Path, tmp_path: Path) -> None:
    older = Path(shutil.copytree(runnable, tmp_path / "older"))
    (older / "preprocess.onnx").unlink()
    assert Runner(older).answer(Image.new("RGB", (30, 20)), "w5", 1).preprocess == "python"
    with pytest.raises(RunError, match=r"has no preprocess\.onnx"):
        Runner(older, preprocess="graph")
    with pytest.raises(RunError, match="cut by graph or python, got 'numpy'"):
        Runner(older, preprocess="numpy")


def test_a_graph_of_other_sizes_is_refused(runnable: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(runnable, tmp_path / "other"))
    ids = image_token_ids(read_checkpoint(other), other)
    preprocess_graph(ids, 432).write(other / "preprocess.onnx")
    with pytest.raises(VerificationError, match=r"images must be \[2, 576, 588\], it is \[3, 576, 588\]"):
        Runner(other).prompt("w5", Image.new("RGB", (30, 20)))


def test_features_that_no_crop_has_are_refused(runnable: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(runnable, tmp_path / "other"))
    model = onnx.load(other / "preprocess.onnx")
    (last,) = [node for node in model.graph.node if node.output[0] == "feature_index"]
    last.op_type = "Neg"
    onnx.save(model, other / "preprocess.onnx")
    with pytest.raises(VerificationError, match="feature_index must be from 0 to 287, it is from -287 to 0"):
        Runner(other).prompt("w5", Image.new("RGB", (30, 20)))


@pytest.mark.parametrize("how", ["graph", "python"])
def test_what_is_no_picture_is_refused_alike(how: str, runnable: Path) -> None:
    runner = Runner(runnable, preprocess=how)
    for wrong in (np.zeros((4, 4, 3), np.float32), np.zeros((4, 4), np.uint8), np.zeros((4, 0, 3), np.uint8)):
        with pytest.raises(ImageError, match=r"must be uint8 \[height, width, 3\].*Convert it"):
            runner.prompt("w5", wrong)
    others: tuple[Any, ...] = (np.zeros((4, 4, 3), np.uint8).tolist(), b"", torch.zeros(4, 4, 3, dtype=torch.uint8))
    for foreign in others:
        with pytest.raises(ImageError, match=rf"width, 3\], got {type(foreign).__name__}\. Convert it"):
            answer(runnable, foreign, "w5", preprocess=how)
    with pytest.raises(ImageError, match="at least 1 pixel on the canvas"):
        runner.prompt("w5", np.zeros((1, 400, 3), np.uint8))


def test_stops_at_the_end_token(runnable: Path) -> None:
    runner = Runner(runnable)
    free = runner.answer(None, "w5 w6", max_new_tokens=6)
    assert (free.stopped, len(free.ids)) == ("length", 6)
    assert free.timing.steps == 5  # the first token came with the prompt
    runner.ids = {**runner.ids, "eos": [free.ids[3]]}
    ended = runner.answer(None, "w5 w6", max_new_tokens=6)
    assert ended.stopped == "end"
    assert ended.ids == free.ids[: free.ids.index(free.ids[3])]
    assert ended.timing.steps == len(ended.ids)  # the end token was decoded too


def test_stops_at_the_last_position(runnable: Path) -> None:
    runner = Runner(runnable)
    runner.max_positions = 8
    assert len(runner.answer(None, "w5 w6", max_new_tokens=64).ids) == 3  # 5 of the prompt and these
    with pytest.raises(RunError, match=r"8 positions.*8 tokens"):
        runner.prompt("w5 w6 w7 w8 w9")


def test_refusals(runnable: Path, tmp_path: Path) -> None:
    runner = Runner(runnable)
    with pytest.raises(RunError, match="image's own tokens"):
        runner.prompt("w5 <im_patch> w6")
    with pytest.raises(RunError, match="max_new_tokens=0"):
        runner.answer(None, "w5", max_new_tokens=0)
    with pytest.raises(ImageError, match="10000×10"):
        runner.prompt("w5", Image.new("RGB", (10000, 10)))
    with pytest.raises(RunError, match="must be one of cpu, cuda, tensorrt"):
        answer(runnable, None, "w5", provider="tpu")
    with pytest.raises(RunError, match="got -1"):
        answer(runnable, None, "w5", threads=-1)
    with pytest.raises(KnobError, match=r"no family\.json"):
        answer(runnable, None, "w5", member="k4-b2")
    (tmp_path / "bare").mkdir()
    with pytest.raises(RunError, match=r"must have io\.json"):
        answer(tmp_path / "bare", None, "w5")


def test_a_provider_that_does_not_load_is_refused(runnable: Path) -> None:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers() and Path("/dev/nvidia0").exists():
        pytest.skip("there is a GPU here, the provider may load")
    with pytest.raises(RunError, match="provider must"):
        answer(runnable, None, "w5", provider="cuda")


def test_text_only_model(olmoe: Path, tmp_path: Path) -> None:
    import torch
    from transformers import OlmoeForCausalLM

    target = tmp_path / "text"
    target.mkdir()
    # ids 0 to 25 are A to Z, 26 and 27 the two bytes of é
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    plain = [chr(byte) for byte in range(65, 91)]
    first, second = list(pre_tokenizers.ByteLevel(False).pre_tokenize_str("é")[0][0])
    order = [*plain, first, second, *(c for c in letters if c not in (*plain, first, second))][:128]
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(order)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(target / "tokenizer.json"))
    write_checkpoint(read_checkpoint(olmoe), target)
    written = read_checkpoint(target)
    emit_graphs(written, target, None, REFERENCE)
    write_io(written, target, REFERENCE)

    runner = Runner(target)
    given = runner.answer(None, "ABCABD", max_new_tokens=12)
    ids = torch.tensor([[order.index(letter) for letter in "ABCABD"]])
    theirs = (
        OlmoeForCausalLM.from_pretrained(olmoe)
        .generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False)[0, 6:]
        .tolist()
    )
    assert list(given.ids) == [i for i in theirs if i != 2]
    with pytest.raises(RunError, match="text-only 'olmoe'"):
        runner.answer(Image.new("RGB", (9, 9)), "ABC")
    assert runner.prompt("").ids.tolist() == [[runner.ids["bos"]]]

    pieces: list[str] = []
    runner.generate = lambda *_: iter([0, 26, 27, 1, 26])  # type: ignore[method-assign]
    assert runner.answer(None, "A", stream=pieces.append).text == "AéB\ufffd"
    assert pieces == ["A", "é", "B", "\ufffd"]  # never half a character, but for the last that stays one


def test_a_familys_member_answers_as_the_variant_alone(tmp_path: Path) -> None:

    text = CASES["texts"]["long"]
    family = write_runnable(tmp_path / "family", text, "full")
    add_member(family, "k2-b3", (0, 1, 3), 2)
    alone = write_runnable(tmp_path / "alone", text, "k2_keep013")
    image = Image.new("RGB", (50, 40), (200, 30, 90))
    ours = answer(family, image, "w5 w6", max_new_tokens=8, member="k2-b3", threads=1)
    assert ours.ids == answer(alone, image, "w5 w6", max_new_tokens=8, threads=1).ids
    assert ours.ids != answer(family, image, "w5 w6", max_new_tokens=8, threads=1).ids
    with pytest.raises(KnobError, match=r"one of the family's members, k2-b3; got '\.\./x'"):
        answer(family, None, "w5", member="../x")

    command = ("run", family, "--prompt", "w5 w6", "--max-new-tokens", "4", "--member", "k2-b3", "--threads", "1")
    said = json.loads(knobcast(*command, "--provider", "cpu", "--json").out)
    assert said["ids"] == list(answer(alone, None, "w5 w6", max_new_tokens=4).ids)
    plain = knobcast(*command, "--provider", "cpu")
    assert plain.out.strip() == said["text"]
    assert "tokens/s" in plain.err
    assert "opening" in plain.err and said["seconds"]["opening"] > 0
    whole = knobcast("run", family, "--prompt", "w5", "--max-new-tokens", "1")
    assert "this runs the family's own graph" in whole.err and "--member takes k2-b3" in whole.err
    assert "--member" not in knobcast("run", alone, "--prompt", "w5").err
    for damaged in ("{}", "{", '{"schema": 2}'):  # the family's own graph needs no record of its members
        (family / "family.json").write_text(damaged)
        again = knobcast("run", family, "--prompt", "w5", "--max-new-tokens", "1")
        assert again.out == whole.out and "--member" not in again.err


def test_a_broken_tokenizer_is_named(runnable: Path, tmp_path: Path) -> None:
    for name in ("io.json", "text.onnx", "vision.onnx", "embedding.onnx", "model.safetensors", "config.json"):
        (tmp_path / name).write_bytes((runnable / name).read_bytes())
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(RunError, match=r"tokenizer\.json must be intact"):
        Runner(tmp_path)


def test_no_torch_needed(runnable: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from PIL import Image; from export.run.answer import answer\n"
        f"given = answer(Path({str(runnable)!r}), Image.new('RGB', (30, 20)), 'w5', max_new_tokens=2)\n"
        "sys.exit(len(given.ids) < 1 or bool({'torch', 'transformers', 'onnx', 'safetensors'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])
