"""Whole commands on a checkpoint or a variant of which one file was changed: `export`, `run`, `bench` and `push`."""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from export.run.answer import answer
from export.run.io_file import FILE as IO
from tests.fuzz.mutate import Mutate, in_json, in_protobuf
from tests.fuzz.records import in_text
from tests.fuzz.target import Target, of_rows, put
from tests.support.command import knobcast
from tests.support.models import small_tokenizer
from tests.support.pictures import noise_png
from tests.support.variants import record_sums
from transform.errors import KnobcastError
from transform.molmoe.pictures import decode_image
from transform.ownership import MANIFEST, SUMS

PROMPT = "what is it"
TEXT, CONFIG, GENERATION = "text.onnx", "config.json", "generation_config.json"
SIZES = ("--prompt-tokens", 24, "--new-tokens", 2)
SEEING = ("preprocess.onnx", "vision.onnx", "embedding.onnx", TEXT, IO)


class BrokenCommandError(Exception):
    """A command that neither did its work nor refused in words."""


def running_targets(folder: Path, sources: Sequence[Path], text: Path, seeing: Path) -> tuple[Target, ...]:
    """`sources`: checkpoints to export; `text`, `seeing`: variants without and with pictures."""
    folder.mkdir()
    exported = _exported(folder / "export", sources)
    reading, looking = (Path(shutil.copytree(of, folder / name)) for name, of in (("r", text), ("l", seeing)))
    small_tokenizer(96).save_pretrained(reading)
    small_tokenizer(250, image_tokens=True).save_pretrained(looking)
    benched, pushed = (Path(shutil.copytree(reading, folder / name)) for name in ("benched", "pushed"))
    record_sums(pushed)
    picture = decode_image(noise_png(0))

    def run(file: str, data: bytes) -> object:
        with _changed(reading, file, data):
            return answer(reading, None, PROMPT, 3, threads=1)

    def run_on_picture(file: str, data: bytes) -> object:
        with _changed(looking, file, data):
            return answer(looking, picture, PROMPT, 3, threads=1)

    def bench(file: str, data: bytes) -> None:
        with _changed(benched, file, data):
            _command("bench", benched, "--against", "none", *SIZES, "--dry-run", "--json")

    def push(file: str, data: bytes) -> None:
        with _changed(pushed, file, data), _changed(pushed, SUMS), _changed(pushed, MANIFEST):
            if file not in (SUMS, MANIFEST):
                record_sums(pushed)  # as someone who changes all of them would
            _command("push", pushed, f"dir:{folder / 'shelf'}", "--dry-run")
        if (folder / "shelf").exists():
            raise BrokenCommandError("a dry run wrote")

    return (
        exported,
        of_rows("run", _files(reading, (TEXT, IO)), _mutation, run),
        of_rows("run on a picture", _files(looking, SEEING), _mutation, run_on_picture),
        of_rows("bench", _files(benched, (TEXT, IO, CONFIG, MANIFEST)), _mutation, bench),
        of_rows("push", _files(pushed, (TEXT, IO, CONFIG, MANIFEST, SUMS)), _mutation, push),
    )


def _exported(folder: Path, sources: Sequence[Path]) -> Target:
    """All but the gate: a whole variant, or nothing at all."""
    folder.mkdir()
    places = {source.name: Path(shutil.copytree(source, folder / source.name)) for source in sources}
    out = folder / "out"

    def export(row: str, data: bytes) -> None:
        name, file = row.split("/")
        shutil.rmtree(out, ignore_errors=True)
        refused: KnobcastError | None = None
        with _changed(places[name], file, data):
            try:
                _command("export", places[name], "--k", 1, "--no-verify", "--out", out)
            except KnobcastError as error:
                refused = error
        left = {path.name for path in folder.iterdir()} - places.keys()
        if left != (set() if refused else {"out"}) or (not refused and not (out / TEXT).is_file()):
            raise BrokenCommandError(f"export left {sorted(left)}")
        if refused:
            raise refused

    rows = [
        f"{name}/{file}" for name, place in places.items() for file in (CONFIG, GENERATION) if (place / file).exists()
    ]
    return of_rows("export", {row: (folder / row).read_bytes() for row in rows}, lambda _: in_json, export)


def _files(place: Path, names: Sequence[str]) -> dict[str, bytes]:
    return {name: (place / name).read_bytes() for name in names}


def _mutation(file: str) -> Mutate:
    return {".onnx": in_protobuf, ".json": in_json}.get(Path(file).suffix, in_text)


@contextmanager
def _changed(place: Path, file: str, data: bytes | None = None) -> Iterator[None]:
    """A file with other bytes, or whatever becomes of it, and then its own again."""
    before = (place / file).read_bytes()
    if data is not None:
        put(place / file, data)
    try:
        yield
    finally:
        put(place / file, before)


def _command(*words: object) -> None:
    """The command succeeds, or refuses in words."""
    done = knobcast(*words)
    if done.code == 0:
        return
    if done.code != 1 or "error:" not in done.said or "Traceback" in done.said:
        raise BrokenCommandError(f"{words[0]}: exit code {done.code}: {done.said[-300:]}")
    raise KnobcastError(done.said)
