"""The command line as a whole: version, completion, --quiet, exit codes, and what newcomers are told."""

import json
import os
import shlex
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from export.command.main import app
from tests.support.command import knobcast

ROOT = Path(__file__).parents[1]
PROGRAM = "import sys; sys.argv[0] = 'knobcast'; from export.command.main import main; main()"


def test_the_version() -> None:
    assert knobcast("--version").out == f"knobcast {version('knobcast')}\n"


def in_bash(words: str, **environment: str) -> str:
    """What the program says to a shell: typer asks which program called it."""
    command = f"{shlex.quote(sys.executable)} -c {shlex.quote(PROGRAM)} {words}; true"  # or bash becomes the program
    done = subprocess.run(
        ["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, check=True, env={**os.environ, **environment}
    )
    assert done.stderr == ""
    return done.stdout


def test_a_shell_completes_verbs_and_options() -> None:
    script = in_bash("--show-completion bash")
    assert "complete -o default -F _knobcast_completion knobcast" in script
    asked = {"_KNOBCAST_COMPLETE": "complete_bash", "COMP_CWORD": "1"}
    assert in_bash("", COMP_WORDS="knobcast s", **asked).split() == ["sign", "score", "search", "share", "sweep"]
    assert "--beam-width" in in_bash("", COMP_WORDS="knobcast search --b", **asked | {"COMP_CWORD": "2"}).split()


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["plan"], 0),
        (["plan", "--k", "four"], 1),
        (["plan", "/nowhere"], 1),
        (["verify", "/nowhere"], 1),
        (["plan", "--nonsense"], 2),
        (["nonsense"], 2),
        (["verify"], 2),
        (["run", "DIR"], 2),
        (["run", "DIR", "--prompt", "x", "--threads", "few"], 2),
        (["plan", "--k", "1", "--k", "2"], 2),
        (["evaluate"], 2),
        (["score", "--merge", "a.json"], 2),
        ([], 2),
    ],
    ids=str,
)
def test_exit_codes_are_those_of_the_documentation(arguments: list[str], code: int) -> None:
    done = knobcast(*arguments)
    assert done.code == code
    if code == 1:
        assert (done.out, done.err.count("error:"), "Traceback" in done.err) == ("", 1, False)


def test_every_verb_is_in_the_documentation() -> None:
    page = (ROOT / "docs" / "commands.md").read_text()
    verbs = [str(each.name or getattr(each.callback, "__name__", "")) for each in app.registered_commands]
    assert len(verbs) == 21
    assert [verb for verb in verbs if f"\n| `{verb}` |" not in page] == []


def commands(stderr: str) -> list[list[str]]:
    """What the end of an export says to do next, as a shell splits it, without the program."""
    lines = stderr[stderr.index("next:") :].removeprefix("next:").splitlines()
    return [shlex.split(line)[1:] for line in lines]


def test_an_export_ends_with_what_to_do_next(olmoe: Path, tmp_path: Path) -> None:
    out, one_block = tmp_path / "it's a variant", ["export", "--k", "1", "--keep-blocks", "0", "--no-verify"]
    run, evaluate, verify = commands(knobcast(*one_block, "--out", out).err)
    assert run == ["run", str(out), "--image", "PICTURE", "--prompt", "QUESTION"]
    assert evaluate == ["evaluate", str(out), "--data", "FILE"]
    assert verify == ["verify", str(out)]
    Image.new("RGB", (40, 30)).save(tmp_path / "p.png")
    assert knobcast(*run[:3], tmp_path / "p.png", *run[4:], "--max-new-tokens", "1").code == 0
    bare = knobcast(*one_block, "--no-onnx", "--out", tmp_path / "bare")
    assert [words[0] for words in commands(bare.err)] == ["evaluate", "verify"]
    silent = knobcast("export", olmoe, "--k", "1", "--no-verify", "--out", tmp_path / "silent")
    assert [words[0] for words in commands(silent.err)] == ["verify"], "it has no tokenizer"
    family = knobcast("export", "--family", "k=1,2", "--no-verify", "--out", tmp_path / "f")
    assert commands(family.err)[0][:5] == ["run", str(tmp_path / "f"), "--member", "k1-b16", "--image"]


def test_quiet_leaves_results_warnings_and_errors(molmo: Path, tmp_path: Path) -> None:
    beyond = ["export", molmo, "--k", "6", "--no-verify", "--no-onnx"]
    loud, quiet = knobcast(*beyond, "--out", tmp_path / "a"), knobcast(*beyond, "--out", tmp_path / "b", "--quiet")
    assert "router top-k" in loud.err and "… weights" in loud.err
    warnings = quiet.err.splitlines()
    assert any("above the trained k=4" in warning for warning in warnings)
    assert all(warning.startswith("warning: ") and warning in loud.err for warning in warnings)
    assert quiet.out == loud.out.replace("/a", "/b") != ""
    done = knobcast(*beyond, "--out", tmp_path / "c", "--json")
    assert "next:" not in done.err and json.loads(done.out)["top_k"] == [6] * 4


def test_quiet_is_no_state(olmoe: Path) -> None:
    assert knobcast("export", olmoe, "--dry-run", "--quiet").out
    done = knobcast("score", olmoe, "--data", "x.jsonl", "--quiet", "--help")
    assert done.code == 0
    assert knobcast("run", olmoe, "--help").out


SCORES = {"schema": 1, "metric": "rise of the log-loss", "samples": 1234}


@pytest.mark.parametrize(
    ("content", "words", "facts"),
    [
        (
            {**SCORES, "blocks": [{"index": block, "score": block} for block in range(6)]},
            "by.json: rise of the log-loss, 1,234 samples",
            {"source": "by.json", "metric": "rise of the log-loss", "samples": 1234},
        ),
        (
            {str(block): block for block in range(6)},
            "by.json: metric not said, samples not said",
            {"source": "by.json", "metric": None, "samples": None},
        ),
        (
            {"schema": 1, "layers": 6, "sets": {"5": [2]}, "strategy": "beam", "objective": "nll", "samples": 7},
            "by.json: beam search by nll, 7 samples",
            {"source": "by.json", "metric": "beam search by nll", "samples": 7},
        ),
        (
            {"schema": 1, "layers": 6, "sets": {"5": [2]}, "title": "mine", "samples": "many"},
            "by.json: mine, samples not said",
            {"source": "by.json", "metric": "mine", "samples": None},
        ),
    ],
)
def test_a_plan_names_what_chose_the_blocks(
    content: dict[str, Any], words: str, facts: dict[str, Any], olmoe: Path, tmp_path: Path
) -> None:
    (tmp_path / "by.json").write_text(json.dumps(content))
    asked = ["plan", olmoe, "--blocks", "5", "--scores", tmp_path / "by.json"]
    assert f"chosen by {words}" in " ".join(knobcast(*asked).out.split())
    assert json.loads(knobcast(*asked, "--json").out)["scores"] == facts
    assert "chosen by" not in knobcast("plan", olmoe, "--drop-blocks", "2").out
    grid = ["export", olmoe, "--family", "k=1 blocks=5", *asked[4:], "--dry-run"]
    assert f"blocks chosen by {words}\n" in knobcast(*grid).out
