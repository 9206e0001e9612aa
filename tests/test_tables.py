"""Tables under the column names that published data sets have, pictures and answers in all their forms, and shards.

Tables are built from the known names and types of their columns.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from importance.readers.read import read_samples
from importance.samples import EncodedImage, Sample, SamplesError
from importance.tasks import check_samples, metric_named
from tests.support.command import knobcast
from tests.support.data_sets import table
from tests.support.pictures import noise_png

PNG = noise_png(0)
PICTURE = {"bytes": PNG, "path": None}
SEEN = (EncodedImage(PNG),)
TWO = ["yes", "no"]


def annotated(*answers: str) -> list[dict[str, Any]]:
    return [{"answer": a, "answer_confidence": "yes", "answer_id": i} for i, a in enumerate(answers)]


def lettered(form: str, *texts: str | None) -> dict[str, str | None]:
    letters = "ABCD" if form == "{}" else "abcd"
    return {form.format(letter): text for letter, text in zip(letters, texts, strict=True)}


# name: rows, the samples they are, and what is said about their columns
LAYOUTS: dict[str, tuple[list[dict[str, Any]], list[Sample], str]] = {
    "VQAv2": (
        [{"question_type": "what is", "multiple_choice_answer": "net", "answers": annotated("net", "mesh"),
          "image_id": 42, "answer_type": "other", "question_id": 420, "question": "What?", "image": PICTURE}],
        [Sample("420", SEEN, "What?", ("net", "mesh"), "other")],
        "id from question_id, prompt from question, kind from answer_type; not read: question_type, "
        "multiple_choice_answer, image_id",
    ),
    "TextVQA": (
        [{"image_id": "f0", "question_id": 7, "question": "?", "image": PICTURE, "answers": ["a", "a", "b"]}],
        [Sample("7", SEEN, "?", ("a", "a", "b"))],
        "not read: image_id",
    ),
    "OK-VQA": (
        [{"question_id": "7", "image": PICTURE, "question": "?", "answers": ["a", "b"], "answer_type": "other"}],
        [Sample("7", SEEN, "?", ("a", "b"), "other")],
        "kind from answer_type",
    ),
    "VizWiz": (
        [{"question_id": "v.jpg", "image": PICTURE, "question": "?", "answers": ["a"], "category": "other"}],
        [Sample("v.jpg", SEEN, "?", ("a",))],
        "not read: category",
    ),
    "POPE": (
        [{"id": "0", "question_id": "1", "question": "?", "answer": "yes", "image": PICTURE, "category": "random"}],
        [Sample("0", SEEN, "?", ("yes",))],
        "answers from answer; not read: question_id, category",
    ),
    "A-OKVQA": (
        [{"image": PICTURE, "question_id": "q", "question": "?", "choices": ["a", "b"], "correct_choice_idx": 1,
          "direct_answers": "['b', 'b', 'c']", "rationales": ["r"]},
         {"image": PICTURE, "question_id": "t", "question": "?", "choices": ["a", "b"], "correct_choice_idx": None,
          "direct_answers": "['b', 'c']", "rationales": []}],
        [Sample("q", SEEN, "?", ("b",), None, ("a", "b")), Sample("t", SEEN, "?", ("b", "c"), None, ("a", "b"))],
        "answers from correct_choice_idx (the number of a choice), direct_answers; not read: rationales",
    ),
    "ChartQA with labels": (
        [{"image": PICTURE, "query": "How many?", "label": ["14"], "human_or_machine": 0}],
        [Sample("1", SEEN, "How many?", ("14",))],
        "prompt from query, id from the sample's number, answers from label; not read: human_or_machine",
    ),
    "ChartQA without ids": (
        [{"type": "human_test", "question": "?", "answer": "14", "image": PICTURE},
         {"type": "human_test", "question": "?", "answer": "15", "image": PICTURE}],
        [Sample("1", SEEN, "?", ("14",)), Sample("2", SEEN, "?", ("15",))],
        "id from the sample's number",
    ),
    "DocVQA": (
        [{"questionId": "337", "question": "?", "question_types": ["handwritten"], "image": PICTURE, "docId": 279,
          "ucsf_document_page_no": "10", "answers": ["0.28"], "data_split": "val"}],
        [Sample("337", SEEN, "?", ("0.28",))],
        "id from questionId",
    ),
    "InfographicVQA": (
        [{"questionId": "6", "question": "?", "answers": ["yes"], "answer_type": ["single span", "question span"],
          "image": PICTURE, "image_url": "https://…", "ocr": "[]"}],
        [Sample("6", SEEN, "?", ("yes",), "single span, question span")],
        "not read: image_url, ocr",
    ),
    "AI2D": (
        [{"question": "Which?", "options": ["a", "b", "c", "d"], "answer": "2", "image": PICTURE},
         {"question": "How many?", "options": ["2", "3", "4", "1"], "answer": "1", "image": PICTURE}],
        [Sample("1", SEEN, "Which?", ("c",), None, ("a", "b", "c", "d")),
         Sample("2", SEEN, "How many?", ("3",), None, ("2", "3", "4", "1"))],
        "answers from answer (the number of a choice)",
    ),
    "ScienceQA": (
        [{"image": None, "question": "?", "choices": TWO, "answer": 1, "hint": "", "task": "closed", "grade": "2"},
         {"image": PICTURE, "question": "!", "choices": ["2", "1"], "answer": 0, "hint": "h", "task": "", "grade": ""}],
        [Sample("1", (), "?", ("no",), None, ("yes", "no")), Sample("2", SEEN, "!", ("2",), None, ("2", "1"))],
        "not read: hint, task, grade",
    ),
    "RealWorldQA": (
        [{"question": "?", "answer": "A", "image": PICTURE, "image_path": "0.webp"}],
        [Sample("1", SEEN, "?", ("A",))],
        "not read: image_path",
    ),
    "MMBench": (
        [{"index": 241, "question": "?", "hint": "nan", "answer": "A", **lettered("{}", "a", "b", "c", "d"),
          "image": PICTURE},
         {"index": 252, "question": "?", "hint": "h", "answer": "B", **lettered("{}", "a", "b", "nan", None),
          "image": PICTURE}],
        [Sample("241", SEEN, "?", ("A",), None, ("a", "b", "c", "d")),
         Sample("252", SEEN, "?", ("B",), None, ("a", "b"))],
        "choices from A, B, C, D",
    ),
    "MathVista": (
        [{"pid": "1", "question": "?", "image": "images/1.jpg", "decoded_image": PICTURE, "choices": None, "unit": None,
          "precision": 1.0, "answer": "1.2", "answer_type": "float", "query": "Hint: … ?", "metadata": {"a": 1}}],
        [Sample("1", SEEN, "?", ("1.2",), "float")],
        "image from decoded_image",
    ),
    "MMMU": (
        [{"id": "d_1", "question": "<image 1> Which?", "options": "['$6', 'don\\'t']", "image_1": PICTURE,
          "image_2": None, "answer": "B", "question_type": "multiple-choice"},
         {"id": "d_2", "question": "Baxter <image 1>", "options": "[]", "image_1": PICTURE,
          "image_2": None, "answer": "7", "question_type": "open"}],
        [Sample("d_1", SEEN, "Which?", ("B",), None, ("$6", "don't")), Sample("d_2", SEEN, "Baxter", ("7",))],
        "not read: question_type",
    ),
    "GQA": (
        [{"id": "20", "imageId": "n16", "question": "?", "isBalanced": True, "answer": "yes", "fullAnswer": "Yes."}],
        [Sample("20", (Path("n16.jpg"),), "?", ("yes",))],
        "image from imageId",
    ),
    "MME": (
        [{"question_id": "code/20.png", "image": PICTURE, "question": q, "answer": a, "category": "code"}
         for q, a in (("Is it?", "Yes"), ("Is it not?", "No"))],
        [Sample("code/20.png", SEEN, "Is it?", ("Yes",)), Sample("code/20.png#2", SEEN, "Is it not?", ("No",))],
        "id from question_id",
    ),
    "SEED-Bench": (
        [{"answer": "A", **lettered("choice_{}", "1", "2", "3", "4"), "data_id": "9", "data_type": "image",
          "image": [PICTURE], "question": "?", "question_id": "101", "question_type_id": 1, "segment": None}],
        [Sample("101", SEEN, "?", ("A",), None, ("1", "2", "3", "4"))],
        "choices from choice_a, choice_b, choice_c, choice_d",
    ),
    "The Cauldron": (
        [{"images": [PICTURE], "texts": [{"user": "?", "assistant": "Yes.", "source": "s"},
                                         {"user": "!", "assistant": "No.", "source": "s"}]},
         {"images": [PICTURE], "texts": [{"user": "?", "assistant": "3", "source": "s"}]}],
        [Sample("1", SEEN, "?", ("Yes.",)), Sample("2", SEEN, "!", ("No.",)), Sample("3", SEEN, "?", ("3",))],
        "questions and answers from texts",
    ),
    "numbers as answers": (
        [{"id": i, "image": PICTURE, "question": "?", "answer": a}
         for i, a in enumerate((2.0, 0.5, None, float("nan")))],
        [Sample("0", SEEN, "?", ("2",)), Sample("1", SEEN, "?", ("0.5",)), Sample("2", SEEN, "?"),
         Sample("3", SEEN, "?")],
        "answers from answer",
    ),
    "whole numbers as answers": (
        [{"id": 1.0, "image": PICTURE, "question": "?", "answers": [3, 4], "label": 9}],
        [Sample("1", SEEN, "?", ("3", "4"))],
        "not read: label",
    ),
}  # fmt: skip


@pytest.mark.extra
@pytest.mark.parametrize("name", LAYOUTS)
def test_published_layouts(name: str, tmp_path: Path) -> None:
    rows, expected, words = LAYOUTS[name]
    (tmp_path / "n16.jpg").write_bytes(b"")
    said: list[str] = []
    given = read_samples(table(tmp_path / "t.parquet", rows), say=said.append)
    assert given == [
        Sample(s.id, tuple(tmp_path / p if isinstance(p, Path) else p for p in s.images), s.prompt, s.answers, s.kind,
               s.choices)
        for s in expected
    ]  # fmt: skip
    assert len(said) == 1
    assert said[0].startswith("t.parquet: ")
    assert words in said[0]


@pytest.mark.extra
def test_the_choices_of_published_layouts_can_be_graded(tmp_path: Path) -> None:
    for name in ("A-OKVQA", "AI2D", "ScienceQA", "MMBench", "MMMU", "SEED-Bench"):
        samples = read_samples(table(tmp_path / "t.parquet", LAYOUTS[name][0][:1]))
        check_samples(samples, metric_named("multiple_choice"))


ROW: dict[str, Any] = {"id": "a", "image": PICTURE, "question": "?", "answers": ["x"]}
GOOD = {**ROW, "id": "good"}


def rows_with(image: Any, good: Any) -> list[dict[str, Any]]:
    return [{**GOOD, "image": good}, {**ROW, "image": image}]


@pytest.mark.extra
@pytest.mark.parametrize(
    ("image", "good", "words"),
    [
        ({"data": PNG, "format": "png"}, {"data": PNG, "format": "png"}, ["'data', 'format' keys"]),
        (
            {"src": "https://x", "height": 4, "width": 6},
            {"src": "", "height": 1, "width": 1},
            ["'height', 'src', 'width' keys"],
        ),
        ({"url": "https://x"}, {"url": "https://x"}, ["'url' keys"]),
        ({"filename": "x.png"}, {"filename": "x.png"}, ["'filename' keys"]),
        ({"image_bytes": PNG, "path": None}, {"image_bytes": PNG, "path": None}, ["'image_bytes', 'path' (null) keys"]),
        ({"bytes": None, "path": None}, PICTURE, ["'bytes' (null), 'path' (null) keys"]),
        ([{"bytes": None, "path": None}], [PICTURE], ["'bytes' (null), 'path' (null) keys"]),
        ([{"data": PNG}], [{"data": PNG}], ["'data' keys"]),
        ([PICTURE, PICTURE], [PICTURE], ["Several images in one prompt"]),
        ([PNG, PNG], [PNG], ["Several images in one prompt"]),
        (b"", PNG, ["1 to 100,000,000 bytes, got 0"]),
        ("", "x.png", ["image must be one path or null, got ''"]),
        ("https://x.org/y.png", "x.png", ["Addresses are not fetched"]),
        ("data:image/png;base64,aaaa", "x.png", ["Addresses are not fetched"]),
    ],
    ids=str,
)
def test_pictures_that_are_none_are_refused(image: Any, good: Any, words: list[str], tmp_path: Path) -> None:
    """Never asked without, which would give numbers all the same."""
    (tmp_path / "x.png").write_bytes(PNG)
    with pytest.raises(SamplesError, match=r"t\.parquet, row [12]: ") as caught:
        read_samples(table(tmp_path / "t.parquet", rows_with(image, good)))
    for word in words:
        assert word in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.extra
@pytest.mark.parametrize(
    "image", [PICTURE, [PICTURE], PNG, [PNG], {**PICTURE, "width": 6}, {"bytes": PNG}], ids=lambda v: repr(v)[:20]
)
def test_one_picture_is_one_picture(image: Any, tmp_path: Path) -> None:
    assert read_samples(table(tmp_path / "t.parquet", [{**ROW, "image": image}]))[0].images == SEEN


@pytest.mark.extra
@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"image_1": PICTURE, "image_2": PICTURE, "question": "?"}, ["row 1: ", "Several images in one prompt"]),
        ({"imageId": "n17", "question": "?"}, ["'n17.jpg' or 'n17.png' is none", "imageId names", "--images"]),
        ({"image_id": 42, "question": "?"}, ["'42.jpg'", "image_id names"]),
        ({"image": PICTURE, "texts": [{"user": None, "assistant": "x"}]}, ["row 1: user must be a string"]),
        ({"image": PICTURE, "texts": "x"}, ["texts must be a list of structs"]),
        ({"image": PICTURE, "question": "?", **lettered("{}", "", "", "", "")}, []),
        ({"image": PICTURE, "question": "?", "A": "a", "B": None, "C": "c"}, ["choices must begin with A"]),
        ({"image": PICTURE, "question": "?", "choices": TWO, "answer": 2}, ["may be neither"]),
        ({"image": PICTURE, "question": "?", "choices": ["1", "0"], "answer": 1}, ["may be both"]),
        ({"image": PICTURE, "question": "?", "choices": TWO, "answer_idx": 2}, ["from 0 to 1, got 2"]),
        ({"image": PICTURE, "question": "?", "answers": "x"}, ["answers must be a list"]),
        ({"image": PICTURE, "caption": "?"}, ["question or prompt are missing, got ['image', 'caption']"]),
    ],
    ids=str,
)
def test_what_a_table_must_not_be(row: dict[str, Any], words: list[str], tmp_path: Path) -> None:
    if not words:
        assert read_samples(table(tmp_path / "t.parquet", [row]))[0].choices == ()
        return
    with pytest.raises(SamplesError, match=r"t\.parquet") as caught:
        read_samples(table(tmp_path / "t.parquet", [row]))
    for word in words:
        assert word in str(caught.value)


@pytest.mark.extra
def test_numbers_as_choices_stay_what_they_are(tmp_path: Path) -> None:
    """A text among number choices is the text where every row allows that, as before; the table decides as a whole."""
    asked = [{"image": PICTURE, "question": "?", "choices": ["2", "0", "1"], "answer": a} for a in ("1", "2")]
    assert [s.answers for s in read_samples(table(tmp_path / "t.parquet", asked))] == [("1",), ("2",)]
    asked.append({"image": PICTURE, "question": "?", "choices": ["x", "y", "z"], "answer": "2"})
    given = read_samples(table(tmp_path / "t.parquet", asked), 1)  # also where the limit leaves that row out
    assert [s.answers for s in given] == [("0",)]
    same = [{"image": PICTURE, "question": "?", "choices": [0, 1], "answer": 1}]
    assert read_samples(table(tmp_path / "t.parquet", same))[0].answers == ("1",)


# --- shards -----------------------------------------------------------------------------------------------------------


@pytest.mark.extra
def test_the_shards_of_a_split(tmp_path: Path) -> None:
    """A folder, several files, a pattern; ids and numbers go on from file to file."""
    names = [f"val-0000{n}-of-00002.parquet" for n in range(2)]
    first = [{"image": PICTURE, "question": q} for q in "ab"]
    table(tmp_path / names[0], first)
    table(tmp_path / names[1], [{"image": PICTURE, "question": "c"}])
    for given in (tmp_path, [tmp_path / n for n in names], tmp_path / "val-*.parquet", [str(tmp_path / "v*")]):
        assert [(s.id, s.prompt) for s in read_samples(given)] == [("1", "a"), ("2", "b"), ("3", "c")]
    assert [s.prompt for s in read_samples([tmp_path / n for n in names[::-1]], 2)] == ["c", "a"]
    with pytest.raises(SamplesError, match="counts once"):
        read_samples([tmp_path, tmp_path / names[0]])
    table(tmp_path / "test-00000-of-00001.parquet", first)
    with pytest.raises(SamplesError, match=r"one split, got 2: \['test', 'val'\].*test\*\.parquet"):
        read_samples(tmp_path)
    with pytest.raises(SamplesError, match="at least one file, got none"):
        read_samples([])
    (tmp_path / "test-00000-of-00001.parquet").unlink()
    (tmp_path / names[0]).unlink()
    with pytest.raises(SamplesError, match="all files of its split, by their names 2: it has 1"):
        read_samples(tmp_path)
    assert len(read_samples(tmp_path / names[1])) == 1


def lines(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_shards_of_lines(tmp_path: Path) -> None:
    row = {"image": None, "prompt": "?"}
    for n in (10, 2):
        lines(tmp_path / f"part{n}.jsonl", {**row, "id": n})
    assert [s.id for s in read_samples(tmp_path)] == ["10", "2"]
    lines(tmp_path / "part2.jsonl", {**row, "id": 10})
    with pytest.raises(SamplesError, match=r"part2\.jsonl, line 1: ids must be unique, '10' is that of part10\.jsonl"):
        read_samples(tmp_path)
    with pytest.raises(SamplesError, match="one questions file, got 2"):
        read_samples(tmp_path, annotations=tmp_path / "a.json")
    (tmp_path / "part2.jsonl").write_text("")
    with pytest.raises(SamplesError, match=r"part2\.jsonl: at least one sample"):
        read_samples(tmp_path)


# --- lines ------------------------------------------------------------------------------------------------------------

LINE: dict[str, Any] = {"id": "a", "image": None, "prompt": "?"}


@pytest.mark.parametrize(
    ("changed", "answers"),
    [
        ({"answer": "green"}, ("green",)),
        ({"label": "green"}, ("green",)),
        ({"ground_truth": ["green", "lime"]}, ("green", "lime")),
        ({"answers": [], "answer": "green"}, ("green",)),
        ({"answers": None, "label": 3}, ("3",)),
        ({"answers": ["green"], "answer": "red"}, ("green",)),
        ({"answers": [{"answer": "green"}, {"answer": ""}]}, ("green", "")),
        ({"answers": [1, 2.5]}, ("1", "2.5")),
        ({"multiple_choice_answer": "green"}, ("green",)),
        ({"direct_answers": ["green", "lime"]}, ("green", "lime")),
        ({"choices": ["red", "green"], "answer": 1}, ("green",)),
        ({"choices": ["red", "green"], "correct_choice_idx": 1}, ("green",)),
        ({"choices": ["red", "green"], "answer": "B"}, ("B",)),
        ({"options": ["1", "2"], "answer": "2"}, ("2",)),
        ({"answer": ""}, ()),
        ({"answer": "", "label": "green"}, ("green",)),
        ({"label": True}, ()),
        ({"label": {"text": "x"}, "ground_truth": "green"}, ("green",)),
    ],
    ids=str,
)
def test_answers_under_other_keys(changed: dict[str, Any], answers: tuple[str, ...], tmp_path: Path) -> None:
    (sample,) = read_samples(lines(tmp_path / "d.jsonl", {**LINE, **changed}))
    assert sample.answers == answers


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"answer": True}, "answer must be a list"),
        ({"choices": ["1", "0"], "answer": 1}, "may be both"),
        ({"choices": ["x", "y"], "label": 7}, "may be neither"),
        ({"image": ""}, "image must be one path or null, got ''"),
        ({"image": {"path": None}}, r"the key bytes or path.*'path' \(null\) keys"),
        ({"image": {"bytes": "aaaa"}}, "1 to 100,000,000 bytes, got a str"),
        ({"image": "https://x.org/y.png"}, "Addresses are not fetched"),
    ],
    ids=str,
)
def test_lines_that_can_not_be_meant(changed: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(SamplesError, match=words):
        read_samples(lines(tmp_path / "d.jsonl", {**LINE, **changed}))


def test_what_was_read_is_said(tmp_path: Path) -> None:
    """A line where columns have other names or are left over, silence for the canonical form."""
    (tmp_path / "x.png").write_bytes(PNG)
    said: list[str] = []
    canonical = {**LINE, "answers": ["x"], "kind": "k", "choices": ["x", "y"]}
    read_samples(lines(tmp_path / "d.jsonl", canonical, {**LINE, "id": "b"}), say=said.append)
    assert said == []
    other = {"question_id": 7, "image": {"path": "x.png"}, "question": "?", "answer": "x", "seed": 1}
    (sample,) = read_samples(lines(tmp_path / "d.jsonl", other), say=said.append)
    assert (sample.id, sample.images, sample.answers) == ("7", (tmp_path / "x.png",), ("x",))
    assert said.pop() == "d.jsonl: answers from answer, id from question_id, prompt from question; not read: seed"
    many = {f"column {n:02d}": 1 for n in range(30)}
    read_samples(lines(tmp_path / "d.jsonl", {**LINE, **many}), say=said.append)
    assert said.pop().endswith("column 18, column 19 and 10 more")


def test_the_commands_take_shards_and_say_what_they_read(tmp_path: Path) -> None:
    first = lines(tmp_path / "a0.jsonl", {**LINE, "id": 1, "label": "x", "seed": 1})
    second = lines(tmp_path / "a1.jsonl", {**LINE, "id": 2, "label": "x"})
    _, out, err = knobcast("evaluate", "--data", first, "--data", second, "--max-new-tokens", "1", "--json")
    assert json.loads(out)["samples"] == 2
    assert "a0.jsonl: answers from label; not read: seed" in err
    _, out, err = knobcast("score", "--data", tmp_path / "a*.jsonl", "--dry-run", "--json")
    assert (json.loads(out)["metric"], json.loads(out)["samples"]) == ("accuracy", 2)
    assert "not read: seed" in err
    assert "no answers" not in err
    bare = lines(tmp_path / "b.jsonl", {**LINE, "reply": "x"})
    _, out, err = knobcast("score", "--data", bare, "--dry-run", "--json")
    assert json.loads(out)["metric"] == "kl"
    assert "b.jsonl: not read: reply" in err
    assert "no answers found in 1 samples: measuring kl" in err
    code, _, err = knobcast("score", "--data", bare, "--metric", "kl", "--dry-run", "--json")
    assert code == 0
    assert "no answers" not in err
