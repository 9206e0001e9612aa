"""The canonical form of samples: what is accepted, and what each broken line is told. Labels and digests of any."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from importance.readers.jsonl import MAX_LINE
from importance.readers.read import read_samples
from importance.samples import EncodedImage, Sample, SamplesError, require_answers, samples_digest
from tests.support.pictures import encoded
from transform.molmoe.pictures import ImageError

GOOD = {"id": "a", "image": "images/x.png", "prompt": "Which?", "answers": ["one", "1"], "kind": "count"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with `images/x.png` inside, which is no picture, and `secret.png` outside."""
    inside = tmp_path / "data"
    (inside / "images").mkdir(parents=True)
    (inside / "images" / "x.png").write_bytes(b"not opened while reading")
    (tmp_path / "secret.png").write_bytes(b"")
    return inside


def write(folder: Path, *lines: Any) -> Path:
    file = folder / "d.jsonl"
    file.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
    return file


def test_the_canonical_form(folder: Path) -> None:
    others = [{**GOOD, "id": "b", "image": None}, {**GOOD, "id": "c", "image": []}]
    file = write(folder, GOOD, "", *others, {**GOOD, "id": "d", "image": ["images/x.png"], "kind": None, "seed": 7})
    samples = read_samples(file)
    assert [s.id for s in samples] == ["a", "b", "c", "d"]
    assert [s.images for s in samples] == [(folder / "images" / "x.png",), (), (), (folder / "images" / "x.png",)]
    assert (samples[0].prompt, samples[0].answers, samples[0].kind) == ("Which?", ("one", "1"), "count")
    assert samples[3].kind is None


@pytest.mark.parametrize("answers", [{}, {"answers": None}, {"answers": []}], ids=str)
def test_answers_may_be_left_out(folder: Path, answers: dict[str, Any]) -> None:
    line = {key: value for key, value in GOOD.items() if key != "answers"}
    assert read_samples(write(folder, {**line, **answers}))[0].answers == ()


def test_choices(folder: Path) -> None:
    given = read_samples(write(folder, GOOD, *({**GOOD, "id": str(c), "choices": c} for c in (None, [], ["x", "y"]))))
    assert [sample.choices for sample in given] == [(), (), (), ("x", "y")]


def test_files_written_elsewhere(folder: Path) -> None:
    """A byte order mark, Windows line ends, a line separator inside a string, no newline at the end."""
    text = (
        json.dumps({**GOOD, "prompt": "two\u2028lines"}, ensure_ascii=False) + "\r\n" + json.dumps({**GOOD, "id": "b"})
    )
    (folder / "d.jsonl").write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert [s.prompt for s in read_samples(folder / "d.jsonl")] == ["two\u2028lines", "Which?"]


def test_the_limit_takes_the_first_lines(folder: Path) -> None:
    file = write(folder, GOOD, {**GOOD, "id": "b"}, "{broken")
    assert [s.id for s in read_samples(file, 2)] == ["a", "b"]
    assert [s.id for s in read_samples(file, 1)] == ["a"]
    with pytest.raises(SamplesError, match="at least 1"):
        read_samples(file, 0)
    with pytest.raises(SamplesError, match="line 3"):
        read_samples(file, 3)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", ["JSON object"]),
        ('{"id": "a", "id"', ["JSON object"]),
        ("[" * 100_000, ["JSON object"]),
        ("[1]", ["JSON object", "list"]),
        ("7", ["JSON object", "int"]),
        (" " * MAX_LINE + "{}", ["1,000,000 bytes"]),
        ({"id": "b", "prompt": "?", "answers": ["x"]}, ["image missing", "null"]),
        ({**GOOD, "choices": "ab"}, ["choices must be a list of 2 to 26", "'ab'"]),
        ({**GOOD, "choices": ["a"]}, ["choices must be a list of 2 to 26"]),
        ({**GOOD, "choices": ["a", " "]}, ["choices must be a list of 2 to 26"]),
        ({**GOOD, "choices": ["a"] * 27}, ["choices must be a list of 2 to 26"]),
        ({"image": None}, ["id, prompt missing"]),
        ({**GOOD, "id": 7.5}, ["id must be a string", "7.5"]),
        ({**GOOD, "id": True}, ["id must be a string", "True"]),
        ({**GOOD, "id": " "}, ["id must be a string"]),
        ({**GOOD, "prompt": ["?"]}, ["prompt must be a string"]),
        ({**GOOD, "prompt": "\ud800"}, ["prompt must be a string"]),
        ({**GOOD, "answers": "one"}, ["answers must be a list", "'one'"]),
        ({**GOOD, "answers": {}}, ["answers must be a list", "leave it out"]),
        ({**GOOD, "answers": ["one", True]}, ["answers must be a list"]),
        ({**GOOD, "answers": [""]}, ["answers must be a list"]),
        ({**GOOD, "kind": 3}, ["kind must be a string", "leave it out"]),
        ({**GOOD, "image": 3}, ["image must be one path", "3"]),
        ({**GOOD, "image": ["images/x.png", "images/x.png"]}, ["at most one", "never trained"]),
        ({**GOOD, "image": [None]}, ["image must be one path"]),
        ({**GOOD, "image": "images/y.png"}, ["must be a file", "images/y.png"]),
        ({**GOOD, "image": "images"}, ["must be a file"]),
        ({**GOOD, "image": "x" * 5000}, ["must be a file"]),
        ({**GOOD, "image": "images/x\0.png"}, ["must be a file"]),
        ({**GOOD, "image": "../secret.png"}, ["below the folder", "../secret.png"]),
        ({**GOOD, "image": "images/../images/x.png"}, ["below the folder"]),
        ({**GOOD, "image": "/etc/passwd"}, ["below the folder"]),
        ({**GOOD, "image": "out.png"}, ["below the folder"]),
        ({**GOOD, "image": "up/secret.png"}, ["below the folder"]),
        ({**GOOD, "image": "circle.png"}, ["must be a file"]),
        ({**GOOD, "id": "first"}, ["unique", "'first'", "line 1"]),
    ],
    ids=str,
)
def test_broken_lines(folder: Path, line: Any, words: list[str]) -> None:
    (folder / "out.png").symlink_to(folder.parent / "secret.png")
    (folder / "up").symlink_to(folder.parent)
    (folder / "circle.png").symlink_to(folder / "circle.png")
    with pytest.raises(SamplesError) as caught:
        read_samples(write(folder, {**GOOD, "id": "first"}, line))
    message = str(caught.value)
    assert message.startswith("d.jsonl, line 2: ")
    assert len(message) < 500
    for word in words:
        assert word in message


def test_links_inside_the_folder_are_fine(folder: Path) -> None:
    (folder / "link.png").symlink_to(folder / "images" / "x.png")
    assert read_samples(write(folder, {**GOOD, "image": "link.png"}))[0].images == (folder / "link.png",)


def test_the_folder_may_be_a_link_itself(folder: Path, tmp_path: Path) -> None:
    write(folder, GOOD)
    (tmp_path / "link").symlink_to(folder)
    assert read_samples(tmp_path / "link" / "d.jsonl")[0].images == (tmp_path / "link" / "images" / "x.png",)


@pytest.mark.parametrize("content", ["", "\n \n"])
def test_an_empty_file(folder: Path, content: str) -> None:
    (folder / "d.jsonl").write_text(content)
    with pytest.raises(SamplesError, match=r"d\.jsonl: at least one sample.* has 0"):
        read_samples(folder / "d.jsonl")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("absent.jsonl", "absent.jsonl: cannot be read"),
        ("images", "images: a folder of samples must hold .parquet or .jsonl files, it has 0"),
        ("absent-*.jsonl", "a pattern must match at least 1 file, got 0"),
    ],
)
def test_a_file_that_can_not_be_read(folder: Path, name: str, words: str) -> None:
    with pytest.raises(SamplesError, match=re.escape(words)):
        read_samples(folder / name)


def test_text_that_is_not_utf_8(folder: Path) -> None:
    (folder / "d.jsonl").write_bytes(json.dumps(GOOD).encode("utf-16"))
    with pytest.raises(SamplesError, match=r"line 1: .* UTF-8"):
        read_samples(folder / "d.jsonl")


def test_pictures_of_another_folder(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "y.png").write_bytes(b"")
    file = write(folder, {**GOOD, "image": "y.png"})
    assert read_samples(file, images=tmp_path / "pictures")[0].images == (tmp_path / "pictures" / "y.png",)
    with pytest.raises(SamplesError, match=r"below the folder.*'\.\./data/images/x.png'"):
        read_samples(write(folder, {**GOOD, "image": "../data/images/x.png"}), images=tmp_path / "pictures")
    with pytest.raises(SamplesError, match="must be in a directory"):
        read_samples(file, images=tmp_path / "absent")


def test_annotations_belong_to_another_kind_of_file(folder: Path) -> None:
    with pytest.raises(SamplesError, match=r"VQAv2 questions.*d\.jsonl"):
        read_samples(write(folder, GOOD), annotations=folder / "d.jsonl")


def test_answers_are_required_of_all() -> None:
    labelled = [Sample(str(i), (), "?", ("x",)) for i in range(3)]
    bare = [replace(sample, id=f"bare {sample.id}", answers=()) for sample in labelled[:2]]
    require_answers(labelled, "accuracy")
    require_answers([], "accuracy")
    with pytest.raises(SamplesError, match=r"accuracy needs samples with answers: 0 of 2 have any.*annotations"):
        require_answers(bare, "accuracy")
    with pytest.raises(SamplesError, match=r"nll needs.*2 of 5 have none, the first is 'bare 0'\. Add them"):
        require_answers([*labelled, *bare], "nll")


def test_encoded_images() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    assert np.array_equal(EncodedImage(encoded(pixels)).open(), pixels)
    assert EncodedImage(encoded(pixels)) == EncodedImage(encoded(pixels))
    assert len({EncodedImage(encoded(pixels)), EncodedImage(encoded(pixels)), EncodedImage(b"")}) == 2
    assert len(repr(EncodedImage(bytes(10_000)))) < 100
    for broken in (b"", b"no picture", encoded(pixels)[:60]):
        with pytest.raises(ImageError, match="must be"):
            EncodedImage(broken).open()


def test_encoded_bombs(monkeypatch: pytest.MonkeyPatch) -> None:
    image = EncodedImage(encoded(np.zeros((20, 20, 3), np.uint8)))
    for most in (399, 199):  # pillow warns, and refuses
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", most)
        with pytest.raises(ImageError, match=f"at most {most} pixels"):
            image.open()


def test_digest_of_samples(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    file, moved = tmp_path / "a.png", tmp_path / "b.png"
    file.write_bytes(encoded(pixels))
    moved.write_bytes(file.read_bytes())
    base = Sample("1", (file,), "Which?", ("x", "y"), "kind", ("x", "y"))
    first = samples_digest([base])
    assert len(first) == 64
    # the same data: the same file elsewhere or inside a table, another kind
    for same in ((moved,), (str(file),), (EncodedImage(file.read_bytes()),)):
        assert samples_digest([replace(base, images=same, kind=None)]) == first
    assert samples_digest([replace(base, images=(pixels,))]) == samples_digest(
        [replace(base, images=(Image.fromarray(pixels),))]
    )
    others = [
        [replace(base, id="2")],
        [replace(base, prompt="which?")],
        [replace(base, answers=("y", "x"))],
        [replace(base, answers=("x",))],
        [replace(base, choices=())],
        [replace(base, answers=(), choices=("x", "y", "x", "y"))],
        [replace(base, images=())],
        [replace(base, images=(pixels,))],
        [replace(base, images=(pixels.reshape(7, 5, 3),))],
        [replace(base, images=(EncodedImage(b"other"),))],
        [base, replace(base, id="2")],
        [replace(base, id="2"), base],
        [],
    ]
    assert len({first, *map(samples_digest, others)}) == len(others) + 1
    file.write_bytes(b"changed")
    assert samples_digest([base]) != first
    file.unlink()
    with pytest.raises(SamplesError, match=r"a\.png: the image cannot be read"):
        samples_digest([base])
