"""Files of samples other than the canonical form: VQAv2's pair of files, and tables; and `evaluate` with them."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from importance.readers import images, parquet, vqav2
from importance.readers.read import read_samples
from importance.samples import EncodedImage, Sample, SamplesError
from tests.support.command import knobcast
from tests.support.data_sets import ANNOTATIONS, QUESTIONS, TEN, table
from tests.support.pictures import noise_png


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Questions, annotations, and pictures under both names; one picture outside."""
    inside = tmp_path / "vqa"
    (inside / "val2014").mkdir(parents=True)
    (inside / "val2014" / "COCO_val2014_000000000042.jpg").write_bytes(b"")
    (inside / "val2014" / "000000000042.jpg").write_bytes(b"")
    (inside / "val2014" / "000000000007.jpg").write_bytes(b"")
    (tmp_path / "000000000008.jpg").write_bytes(b"")
    (inside / "q.json").write_text(json.dumps(QUESTIONS))
    (inside / "a.json").write_text(json.dumps(ANNOTATIONS))
    return inside


def vqa(folder: Path, limit: int | None = None, labelled: bool = True) -> list[Sample]:
    annotations = folder / "a.json" if labelled else None
    return read_samples(folder / "q.json", limit, annotations=annotations, images=folder / "val2014")


def test_a_pair_of_files(folder: Path) -> None:
    pictures = [folder / "val2014" / name for name in ("COCO_val2014_000000000042.jpg", "000000000007.jpg")]
    assert vqa(folder) == [
        Sample("420", (pictures[0],), "What is this?", tuple(TEN), "other"),
        Sample("421", (pictures[0],), "Is it?", ("yes", "", "no"), "yes/no"),
        Sample("70", (pictures[1],), "How many?", ("2",) * 10, "number"),
    ]
    assert [s.id for s in vqa(folder, 2)] == ["420", "421"]
    assert [(s.id, s.answers, s.kind) for s in vqa(folder, 1, labelled=False)] == [("420", (), None)]


def test_pictures_beside_the_questions_and_of_split_splits(folder: Path) -> None:
    """test-dev2015 is asked about pictures of test2015; without a subtype only plain names are tried."""
    (folder / "COCO_test2015_000000000042.jpg").write_bytes(b"")
    for subtype, name in (("test-dev2015", "COCO_test2015_000000000042.jpg"), (None, "000000000042.jpg")):
        (folder / "000000000042.jpg").write_bytes(b"")
        changed = {"data_subtype": subtype, "questions": QUESTIONS["questions"][:1]}
        (folder / "q.json").write_text(json.dumps(changed))
        assert read_samples(folder / "q.json")[0].images == (folder / name,)


def question(**changed: Any) -> dict[str, Any]:
    return {**QUESTIONS, "questions": [QUESTIONS["questions"][0], {**QUESTIONS["questions"][2], **changed}]}


def annotation(**changed: Any) -> dict[str, Any]:
    return {"annotations": [*ANNOTATIONS["annotations"][1:], {**ANNOTATIONS["annotations"][0], **changed}]}


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("q", "{", ["q.json: must be one JSON object", '"questions"']),
        ("q", "[]", ["q.json: must be a JSON object, got a list"]),
        ("q", {}, ["q.json: must have a list of questions, got None"]),
        ("q", {"questions": {}}, ["must have a list of questions"]),
        ("q", {"questions": []}, ["q.json: at least one sample", "has 0"]),
        ("q", {"questions": [7]}, ["question 1: must be a JSON object, got a int"]),
        ("q", {**QUESTIONS, "data_subtype": "../x"}, ["data_subtype", "'../x'"]),
        ("q", {"questions": [{"question_id": 1}]}, ["question 1: ", "image_id, question missing"]),
        ("q", question(question_id=None), ["question 2: question_id must be a string"]),
        ("q", question(question_id=True), ["question 2: question_id must be a string"]),
        ("q", question(question_id=420), ["question 2: ids must be unique", "'420'", "question 1"]),
        ("q", question(question=""), ["question 2: question must be a string"]),
        ("q", question(image_id="42"), ["question 2: image_id must be a whole number", "'42'"]),
        ("q", question(image_id=-1), ["image_id must be a whole number"]),
        ("q", question(image_id=10**12), ["image_id must be a whole number"]),
        ("q", question(image_id=True), ["image_id must be a whole number"]),
        ("q", question(image_id=8), ["must be a file", "COCO_val2014_000000000008.jpg", "000000000008.jpg"]),
        ("q", question(question_id=71), ["question 2: every question", "a.json has none for 71 among 4"]),
        ("a", "{", ["a.json: must be one JSON object", '"annotations"']),
        ("a", QUESTIONS, ["a.json: must have a list of annotations"]),
        ("a", {"annotations": [{"question_id": 1}]}, ["annotation 1: ", "answers missing"]),
        ("a", annotation(question_id=420), ["annotation 4: question ids must be unique, 420", "annotation 1"]),
        ("a", annotation(answers="2"), ["annotation 4: answers must be a list", "'2'"]),
        ("a", annotation(answers=[{"answer": 2}]), ["answers must be a list"]),
        ("a", annotation(answers=[{"text": "2"}]), ["answers must be a list"]),
        ("a", annotation(answers=[""]), ["at least one not empty"]),
        ("a", annotation(answers=[]), ["annotation 4: an annotation must have at least 1 answer, got 0"]),
        ("a", annotation(answer_type=2), ["answer_type must be a string"]),
    ],
    ids=str,
)
def test_broken_pairs(folder: Path, file: str, content: Any, words: list[str]) -> None:
    (folder / f"{file}.json").write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(SamplesError) as caught:
        vqa(folder)
    assert len(str(caught.value)) < 500
    for word in words:
        assert word in str(caught.value)


def test_pictures_must_not_lead_outside(folder: Path) -> None:
    (folder / "val2014" / "000000000008.jpg").symlink_to(folder.parent / "000000000008.jpg")
    (folder / "q.json").write_text(json.dumps(question(image_id=8)))
    with pytest.raises(SamplesError, match="question 2: images must lie below"):
        vqa(folder)


def test_files_have_a_size(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vqav2, "MAX_BYTES", len(json.dumps(QUESTIONS)))
    assert len(vqa(folder, labelled=False)) == 3
    monkeypatch.setattr(vqav2, "MAX_BYTES", len(json.dumps(QUESTIONS)) - 1)
    with pytest.raises(SamplesError, match=r"q\.json: a file has at most 2\d\d bytes"):
        vqa(folder, labelled=False)
    with pytest.raises(SamplesError, match=r"absent\.json: cannot be read"):
        read_samples(folder / "absent.json")


# --- tables -----------------------------------------------------------------------------------------------------------


ROW = {"id": "a", "image": {"bytes": noise_png(0), "path": "x.png"}, "question": "Which?", "answers": ["one", "1"]}


@pytest.mark.extra
def test_a_table_as_on_the_hub(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {**ROW, "kind": "count", "choices": ["x", "y"]},
        {
            **ROW,
            "id": "b",
            "image": {"bytes": noise_png(1), "path": None},
            "answers": None,
            "kind": None,
            "choices": [],
        },
        {**ROW, "id": "c", "answers": []},
        {**ROW, "id": "d", "image": None},
        {**ROW, "id": "e", "image": {"bytes": None, "path": "y.png"}, "extra": 7},
    ]
    (tmp_path / "y.png").write_bytes(b"")
    samples = read_samples(table(tmp_path / "t.parquet", rows, row_group_size=2))
    assert [s.id for s in samples] == list("abcde")
    assert [s.answers for s in samples] == [("one", "1"), (), (), ("one", "1"), ("one", "1")]
    assert (samples[0].prompt, samples[0].kind, samples[0].choices) == ("Which?", "count", ("x", "y"))
    assert (samples[1].kind, samples[1].choices) == (None, ())
    assert samples[0].images == (EncodedImage(noise_png(0)),)
    assert samples[2].images[0] is samples[0].images[0]  # equal pictures are held once
    assert [s.images for s in samples[3:]] == [(), (tmp_path / "y.png",)]
    assert [s.id for s in read_samples(tmp_path / "t.parquet", 3)] == list("abc")


@pytest.mark.extra
def test_other_names_of_columns(tmp_path: Path) -> None:
    """VQAv2's rows; and one answer, a picture's path, a number as id."""
    ten = [{"answer": a, "answer_id": i} for i, a in enumerate(TEN)]
    row = {"question_id": 42, "image": "x.png", "question": "Which?", "answers": ten, "answer_type": "other"}
    (tmp_path / "x.png").write_bytes(b"")
    expected = Sample("42", (tmp_path / "x.png",), "Which?", tuple(TEN), "other")
    assert read_samples(table(tmp_path / "t.parquet", [row])) == [expected]
    row = {"id": 7, "image": None, "prompt": "?", "answer": "x", "options": ["x", "y"]}
    assert read_samples(table(tmp_path / "u.PARQUET", [row])) == [Sample("7", (), "?", ("x",), None, ("x", "y"))]
    unlabelled = {"id": 7, "image": None, "prompt": "?"}
    assert read_samples(table(tmp_path / "v.parquet", [unlabelled])) == [Sample("7", (), "?")]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({**ROW, "id": " "}, ["row 2: id must be a string"]),
        ({**ROW, "id": None}, ["row 2: id must be a string"]),
        ({**ROW, "id": "first"}, ["row 2: ids must be unique", "row 1"]),
        ({**ROW, "question": None}, ["row 2: question must be a string"]),
        ({**ROW, "answers": [""]}, ["row 2: answers must be a list", "at least one not empty"]),
        ({**ROW, "answers": ["x", None]}, ["row 2: answers must be a list"]),
        ({**ROW, "kind": ""}, ["row 2: kind must be a string"]),
        ({**ROW, "choices": ["x"]}, ["row 2: choices must be a list of 2 to 26"]),
        ({**ROW, "image": {"bytes": b"", "path": "x.png"}}, ["row 2: an image must have 1 to", "got 0"]),
        ({**ROW, "image": {"bytes": None, "path": "../x.png"}}, ["row 2: images must lie below", "../x.png"]),
        ({**ROW, "image": {"bytes": None, "path": "/etc/passwd"}}, ["row 2: images must lie below"]),
        ({**ROW, "image": {"bytes": None, "path": "z.png"}}, ["row 2: the image must be a file", "z.png"]),
    ],
    ids=lambda value: str(value)[-60:],
)
@pytest.mark.extra
def test_broken_rows(tmp_path: Path, row: dict[str, Any], words: list[str]) -> None:
    file = table(tmp_path / "t.parquet", [{"kind": "k", "choices": None, **ROW, "id": "first"}, row])
    with pytest.raises(SamplesError) as caught:
        read_samples(file)
    assert str(caught.value).startswith("t.parquet, row 2: ")
    for word in words:
        assert word in str(caught.value)


@pytest.mark.extra
def test_broken_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = table(tmp_path / "t.parquet", [ROW])
    whole = file.read_bytes()
    for content in (b"", b"no table", whole[: len(whole) // 2]):
        (tmp_path / "broken.parquet").write_bytes(content)
        with pytest.raises(SamplesError, match=r"broken\.parquet: must be an intact parquet file"):
            read_samples(tmp_path / "broken.parquet")
    with pytest.raises(SamplesError, match="cannot be read"):
        read_samples(tmp_path / "absent.parquet")
    with pytest.raises(SamplesError, match="VQAv2 questions"):
        read_samples(file, annotations=tmp_path / "a.json")
    with pytest.raises(SamplesError, match=r"the columns image are missing, got \['prompt'\]"):
        read_samples(table(tmp_path / "c.parquet", [{"prompt": "?"}]))
    with pytest.raises(SamplesError, match="answer must be a list of strings"):
        read_samples(table(tmp_path / "n.parquet", [{"id": 7, "image": None, "prompt": "?", "answer": True}]))
    with pytest.raises(SamplesError, match="image must be one path"):
        read_samples(table(tmp_path / "i.parquet", [{"id": 7, "image": 3, "prompt": "?"}]))
    with pytest.raises(SamplesError, match=r"1 to .* bytes, got a str"):
        read_samples(table(tmp_path / "s.parquet", [{"id": 7, "image": {"bytes": "x"}, "prompt": "?"}]))
    empty = table(tmp_path / "e.parquet", [ROW]).with_name("none.parquet")
    import pyarrow as pa

    table(empty, [], pa.Table.from_pylist([ROW]).schema)
    with pytest.raises(SamplesError, match=r"none\.parquet: at least one sample.*has 0"):
        read_samples(empty)
    monkeypatch.setattr(images, "MAX_PICTURE", len(noise_png(0)) - 1)
    with pytest.raises(SamplesError, match=f"row 1: an image must have 1 to .* got {len(noise_png(0))}"):
        read_samples(file)
    monkeypatch.setattr(parquet, "MAX_GROUP", 10)
    with pytest.raises(SamplesError, match="a row group has at most 10 bytes, number 1 has"):
        read_samples(file)


@pytest.mark.extra
def test_a_text_of_a_table_that_is_none_is_told(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="no pyarrow: `pip install -e .[eval]`")
    import pyarrow as pa

    wrong = pa.array([b"What\xff?"]).view(pa.string())
    rows = pa.table({"id": ["1"], "image": pa.array([None], pa.string()), "prompt": wrong, "answers": [["a"]]})
    parquet.write_table(rows, tmp_path / "t.parquet")
    with pytest.raises(SamplesError, match=r"t\.parquet: must be an intact parquet file \('utf-8' codec"):
        read_samples(tmp_path / "t.parquet")


def test_tables_need_an_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(SamplesError, match=r"t\.parquet: tables need pyarrow.*pip install -e '\.\[eval\]'"):
        read_samples(tmp_path / "t.parquet")


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.mark.extra
def test_a_table_and_a_pair_are_evaluated(tmp_path: Path, folder: Path) -> None:
    """The same pictures and questions in both forms get the same scores."""
    for name, seed in (("COCO_val2014_000000000042.jpg", 0), ("000000000007.jpg", 1)):
        (folder / "val2014" / name).write_bytes(noise_png(seed))
    rows = [
        {"id": s.id, "image": {"bytes": Path(str(s.images[0])).read_bytes(), "path": None}, "question": s.prompt,
         "answers": [*s.answers], "kind": s.kind}
        for s in vqa(folder)
    ]  # fmt: skip
    pair = ("--data", folder / "q.json", "--annotations", folder / "a.json", "--images", folder / "val2014")
    found = []
    for data in (("--data", table(tmp_path / "t.parquet", rows)), pair):
        done = knobcast("evaluate", *data, "--metric", "anls", "--max-new-tokens", "2", "--json")
        found.append(json.loads(done.out))
    assert found[0] == found[1]
    assert found[0]["samples"] == 3
    assert set(found[0]["by_kind"]) == {"number", "other", "yes/no"}
    rows[0]["image"] = {"bytes": b"no picture", "path": None}
    done = knobcast("evaluate", "--data", table(tmp_path / "t.parquet", rows))
    assert done.code == 1
    assert "sample '420': The image must be a picture" in done.said


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["exact_match needs samples with answers: 0 of 3", "annotations"]),
        (["--metric", "bleu"], ["the metric must be one of exact_match, vqa_score,", "'bleu'"]),
        (["--annotations", "a.json", "--metric", "multiple_choice"], ["needs choices", "3 of 3"]),
        (["--annotations", "absent.json"], ["absent.json: cannot be read"]),
        (["--images", "absent"], ["must be in a directory"]),
    ],
    ids=str,
)
def test_what_evaluate_refuses(
    folder: Path, arguments: list[str], words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    images = () if "--images" in arguments else ("--images", "val2014")
    done = knobcast("evaluate", "--data", "q.json", *images, *arguments)
    assert (done.code, done.out) == (1, "")
    for word in words:
        assert word in done.said
