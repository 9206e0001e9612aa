"""The small install, `pip install '.[run]'`: it runs, checks files and measures graphs; all else names what it lacks.

Twice: with the full environment's packages hidden, and by `.venv-small`, which has no others.
"""

import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from PIL import Image

from export.command.main import app
from export.run.answer import answer
from tests.support.bench_records import bench_record
from tests.support.paths import PROGRAMS, ROOT
from tests.support.pictures import synthetic_image
from tests.support.sweeps import synthetic_sweep
from tests.support.variants import add_member, read_json, record_sums, write_variant
from transform.extras import EXTRAS, lacking
from transform.source import resolve

SMALL = ROOT / ".venv-small"
COMMAND = SMALL / "bin" / "knobcast"
BEYOND = sorted(EXTRAS.keys() - {"onnxruntime", "huggingface_hub", "fsspec"})  # the last two come with tokenizers
QUESTION = "What colour is the circle?"
MIB = 1 << 20
needs_small = [
    pytest.mark.extra,
    pytest.mark.skipif(not COMMAND.exists(), reason="no .venv-small: `make small-env` creates it"),
]


def knobcast(install: str, *words: object, hidden: str = ",".join(BEYOND)) -> subprocess.CompletedProcess[str]:
    """The command in the small environment, or with packages hidden in this one; in a folder outside the checkout."""
    start = [COMMAND] if install == "small" else [sys.executable, PROGRAMS / "small_install.py", hidden]
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    if install != "small":
        env["PYTHONPATH"] = str(ROOT)
    return subprocess.run(
        [str(word) for word in (*start, *words)], cwd=Path(os.environ.get("TMPDIR", "/tmp")),
        capture_output=True, text=True, env=env,
    )  # fmt: skip


@pytest.fixture(params=["hidden", pytest.param("small", marks=needs_small)])
def install(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def variant(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model with three blocks, its sums recorded."""
    made = write_variant(resolve(None), tmp_path_factory.mktemp("small") / "variant", (0, 5, 10), 4, tokens=432)
    record_sums(made)
    return made


@pytest.fixture
def copy(variant: Path, tmp_path: Path) -> Path:
    """To be damaged."""
    return Path(shutil.copytree(variant, tmp_path / "variant"))


def test_the_answer_is_that_of_the_full_environment(install: str, variant: Path, tmp_path: Path) -> None:
    file = tmp_path / "p.png"
    Image.fromarray(synthetic_image(400, 300, 0)).save(file)
    for picture in (file, None):
        shown = ["--image", file] if picture else []
        done = knobcast(install, "run", variant, "--prompt", QUESTION, *shown, "--json")
        assert done.returncode == 0, done.stderr
        expected = answer(variant, picture, QUESTION)
        found = json.loads(done.stdout)
        assert (found["ids"], found["text"]) == (list(expected.ids), expected.text)
        assert found["ids"]


def test_files_are_verified(install: str, variant: Path) -> None:
    done = knobcast(install, "verify", variant, "--level", "files", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["level"], found["verification"]) == ("files", "passed")
    assert found["files"] == len(list(variant.iterdir())) - 2  # the sums and the manifest
    assert found["facts"] >= 20
    assert found["graph_ranges"].keys() == {"text.onnx", "embedding.onnx", "vision.onnx", "preprocess.onnx"}


@pytest.mark.parametrize("name", ["model-00001-of-00002.safetensors", "text.onnx", "tokenizer.json"])
def test_a_changed_byte_is_found(install: str, copy: Path, name: str) -> None:
    data = bytearray((copy / name).read_bytes())
    data[len(data) // 2] ^= 1
    (copy / name).write_bytes(data)
    done = knobcast(install, "verify", copy, "--level", "files")
    assert done.returncode == 1
    assert f"{name} must have the digest in SHA256SUMS" in " ".join(done.stderr.split())


def test_a_changed_fact_is_found(install: str, copy: Path) -> None:
    manifest = read_json(copy / "manifest.json")
    manifest["blocks_kept"] = [0, 5, 11]
    (copy / "manifest.json").write_text(json.dumps(manifest))
    done = knobcast(install, "verify", copy, "--level", "files")
    assert done.returncode == 1
    assert "blocks_removed" in done.stderr


def test_a_family_is_verified_with_its_members_digests(install: str, copy: Path) -> None:
    add_member(copy, "k4-b2", (0, 2))
    record_sums(copy)
    done = knobcast(install, "verify", copy, "--level", "files", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["member_graphs"] == 1
    record_sums(copy, {"sha256": "0" * 64})
    done = knobcast(install, "verify", copy, "--level", "files")
    assert done.returncode == 1
    assert "text-k4-b2.onnx must have the digest in family.json" in " ".join(done.stderr.split())


def test_graphs_are_measured_and_the_others_left_out(install: str, variant: Path) -> None:
    small = ("--runs", 1, "--warmup", 0, "--new-tokens", 3, "--threads", 1)
    done = knobcast(install, "bench", variant, "--against", "none", *small, "--json")
    assert done.returncode == 0, done.stderr
    assert [found["status"] for found in json.loads(done.stdout)["contestants"]] == ["measured"]
    listed = knobcast(install, "bench", variant, "--dry-run", "--json")
    reasons = {found["name"]: found["reason"] for found in json.loads(listed.stdout)["contestants"]}
    assert reasons.pop("graphs") is None
    assert len(reasons) == 3
    assert all("the package torch of the extra [full]" in reason for reason in reasons.values())


@pytest.mark.parametrize("place", [pytest.param("small", marks=needs_small)])
def test_packing_needs_a_checkout(place: str, variant: Path, tmp_path: Path) -> None:
    done = knobcast(place, "pack", variant, "--out", tmp_path / "device.tar", "--platform", "linux-x86_64")
    assert done.returncode == 1
    assert "Run pack in a checkout." in done.stderr
    assert not (tmp_path / "device.tar").exists()


# What a verb is asked for, and whether it is done; a new verb needs a row. tests/test_pack.py has pack's.
VERBS = {
    "run": (("run", "VARIANT", "--prompt", "Why?"), True),
    "bench": (("bench", "VARIANT", "--dry-run"), True),
    "plan": (("plan", "SOURCE", "--k", "4", "--blocks", "3", "--device", "rtx-4060-laptop"), True),
    "merge": (("merge", "SOURCE/scores.json", "SOURCE/scores.json", "--model", "SOURCE", "--out", "OUT"), True),
    "pick": (("pick", "SWEEP", "--at", "qa", "--latency-ms", "0.9x"), True),
    "report": (("report", "SWEEP", "--no-plots"), True),
    "tile": (("tile", "PICTURE", "--out", "OUT"), True),
    "calibrate": (("calibrate", "OUT.toml", "--from", "BENCH"), True),
    "push": (("push", "VARIANT", "dir:OUT", "--alias", "edge"), True),
    "pull": (("pull", "dir:VARIANT", "OUT"), True),
    "verify": (("verify", "VARIANT"), False),
    "export": (("export", "SOURCE", "--k", "4", "--blocks", "3", "--out", "OUT"), False),
    "evaluate": (("evaluate", "SOURCE", "--data", "DATA"), False),
    "score": (("score", "SOURCE", "--data", "DATA", "--out", "OUT"), False),
    "search": (("search", "SOURCE", "--data", "DATA", "--strategy", "exact", "--out", "OUT"), False),
    "sweep": (("sweep", "SOURCE", "--data", "DATA", "--grid", "k=4", "--out", "OUT"), False),
    "share": (("share", "SOURCE", "--data", "DATA", "--mean-k", "4", "--out", "OUT"), False),
    "derive": (("derive", "VARIANT", "--k", "2"), False),
    "sign": (("sign", "VARIANT", "--private-key", "OUT.pem"), False),
    "layout": (("layout", "VARIANT", "--for", "triton", "--out", "OUT"), False),
}


def test_every_verb_has_a_row() -> None:
    verbs = {command.callback.__name__ for command in app.registered_commands if command.callback}
    assert verbs == VERBS.keys() | {"pack"}


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_works_or_says_what_it_lacks(install: str, variant: Path, tmp_path: Path, verb: str) -> None:
    words, works = VERBS[verb]
    (tmp_path / "data.jsonl").write_text(json.dumps({"id": "0", "image": None, "prompt": "Why?", "answers": ["red"]}))
    (tmp_path / "sweep").mkdir()
    synthetic_sweep(tmp_path / "sweep")
    Image.new("RGB", (40, 30)).save(tmp_path / "p.png")
    (tmp_path / "bench.json").write_text(json.dumps(bench_record(variant, top_k=[4] * 3)))
    places = {
        "VARIANT": variant, "SOURCE": resolve(None), "DATA": tmp_path / "data.jsonl", "OUT": tmp_path / "out",
        "BENCH": tmp_path / "bench.json", "SWEEP": tmp_path / "sweep", "PICTURE": tmp_path / "p.png",
    }  # fmt: skip
    given = [next((word.replace(n, str(p)) for n, p in places.items() if n in word), word) for word in words]
    done = knobcast(install, *given)
    if works:
        assert done.returncode == 0, done.stderr
        return
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: this needs the package ")
    install_full = "Run make setup in the checkout, or pip install -e '.[full]'"
    assert ("Run pip install -e '.[sign]'" if verb == "sign" else install_full) in last
    assert ("--level files" in last) == (verb == "verify")
    assert not (tmp_path / "out").exists()


def test_the_base_install_has_no_onnxruntime(variant: Path) -> None:
    hidden = ",".join([*BEYOND, "onnxruntime"])
    assert knobcast("hidden", "verify", variant, "--level", "files", hidden=hidden).returncode == 0
    done = knobcast("hidden", "run", variant, "--prompt", "Why?", hidden="onnxruntime")
    assert done.returncode == 1
    assert done.stderr == (
        "error: this needs the package onnxruntime of the extra [run], which isn't installed here. "
        "Run pip install -e '.[run]'.\n"
    )


@pytest.mark.parametrize("extra", ["run", "full"])
def test_every_package_of_an_extra_is_known(extra: str) -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"][extra]
    names = {Requirement(text).name.replace("-", "_").removesuffix("_gpu") for text in declared}
    assert names - {"onnxruntime"} == {name for name, home in EXTRAS.items() if home == extra} - {"onnxruntime"}
    assert "onnxruntime" in names


def test_both_onnxruntimes_have_one_range() -> None:
    """`[run]` has the CPU's everywhere, `[full]` whichever has wheels."""
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    found = [Requirement(text) for text in (*declared["run"], *declared["full"]) if text.startswith("onnxruntime")]
    assert len(found) == 3
    assert len({str(requirement.specifier) for requirement in found}) == 1


@pytest.mark.extra
@pytest.mark.skipif(not COMMAND.exists(), reason="no .venv-small: `make small-env` creates it")
def test_the_small_environment_is_small() -> None:
    (packages,) = (SMALL / "lib").glob("python3.*/site-packages")
    assert not [name for name in BEYOND if (packages / name).exists()]
    assert (packages / "onnxruntime").exists()
    assert not list(packages.glob("onnxruntime_gpu*"))
    size = sum(file.stat(follow_symlinks=False).st_size for file in SMALL.rglob("*") if not file.is_dir())
    assert size < 400 * MIB


def test_sign_names_its_package_before_a_byte_is_hashed(variant: Path, tmp_path: Path) -> None:
    done = knobcast("full", "sign", variant, "--private-key", tmp_path / "key.pem", hidden="model_signing")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.split() == f"error: {lacking('model_signing')}".split()
