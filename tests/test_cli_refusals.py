"""Bad input: exit code not 0, one message with the rule, the numbers and the way out, nothing written."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.table import Table

from export.command.output import Console, print_json
from tests.support.command import knobcast
from tests.support.paths import ROOT
from transform.errors import CheckpointError
from transform.read import read_checkpoint


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--k", "0"], ["k must be", "'0'"]),
        (["--k", "9"], ["from 1 to 8", "9"]),
        (["--k", "four"], ["whole number", "'four'"]),
        (["--k", "4,4"], ["2 values", "4 blocks"]),
        (["--k", "-1"], ["k must be"]),
        (["--blocks", "0"], ["1 to 4", "0"]),
        (["--blocks", "5"], ["1 to 4", "5"]),
        (["--blocks", "few"], ["whole number", "few"]),
        (["--blocks", "3"], ["scores", "--keep-blocks"]),
        (["--blocks", "3", "--drop-blocks", "2"], ["--blocks", "--drop-blocks"]),
        (["--keep-blocks", "0,1", "--drop-blocks", "2"], ["--keep-blocks", "--drop-blocks"]),
        (["--keep-blocks", "0,4"], ["4"]),
        (["--drop-blocks", "0,1,2,3"], ["at least one"]),
        (["--tokens", "144"], ["288", "144"]),
        (["--tokens", "300"], ["288 and 432", "300"]),
        (["--tokens", "14400"], ["4096", "14400"]),
        (["--tokens", "lots"], ["multiple of 144", "lots"]),
        (["--dtype", "int8"], ["float32", "int8"]),
        (["--resize", "stretch"], ["pad, fill", "stretch"]),
        (["--rule", "golden"], ["canvas, linear", "golden"]),
        (["--k", "9" * 5000], ["whole number"]),
        (["--scores", "preset:exp3-nested", "--blocks", "3"], ["16"]),
        (["--scores", "/nowhere.json", "--blocks", "3"], ["nowhere"]),
        (["--scores", "preset:vqa-nested", "--keep-blocks", "0,1"], ["--blocks N"]),
    ],
)
def test_settings_that_can_not_be(molmo: Path, tmp_path: Path, arguments: list[str], words: list[str]) -> None:
    done = knobcast("export", molmo, *arguments, "--out", tmp_path / "v")
    assert done.code == 1
    assert done.out == ""
    assert done.said.count("error:") == 1
    for word in words:
        assert word in done.said
    assert list(tmp_path.iterdir()) == []


def test_a_refusal_as_a_shell_sees_it(molmo: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "export.command.main", "export", str(molmo), "--k", "0", "--out", f"{tmp_path}/v"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: k must be")
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", ['{"1": NaN, "2": 0.1}', '{"1": 0.1, "7": 0.2}', '{"1": 0.1}', "[1, 2]", "{"])
def test_unusable_scores(molmo: Path, tmp_path: Path, content: str) -> None:
    (tmp_path / "scores.json").write_text(content)
    done = knobcast("export", molmo, "--blocks", "3", "--scores", tmp_path / "scores.json", "--out", tmp_path / "v")
    assert done.code == 1
    assert "error:" in done.err
    assert not (tmp_path / "v").exists()


@pytest.mark.parametrize("words", [("run", "--prompt", "x"), ("layout", "--for", "triton")])
def test_a_variant_that_is_not_there_is_not_told_to_be_exported_again(words: tuple[str, ...], tmp_path: Path) -> None:
    done = knobcast(words[0], tmp_path / "absent", *words[1:])
    assert done.code == 1
    assert "absent is none. Check the path." in done.said


def test_tokens_are_refused_for_models_without_eyes(olmoe: Path, tmp_path: Path) -> None:
    done = knobcast("export", olmoe, "--tokens", "432", "--out", tmp_path / "v")
    assert done.code == 1
    assert "no images" in done.said


def test_a_model_that_is_not_there(tmp_path: Path) -> None:
    done = knobcast("plan", tmp_path / "absent")
    assert done.code == 1
    assert "no such directory" in done.said


def test_an_existing_target_needs_force(molmo: Path, tmp_path: Path) -> None:
    (tmp_path / "v").mkdir()
    (tmp_path / "v" / "mine").write_text("mine")
    done = knobcast("export", molmo, "--k", "2", "--out", tmp_path / "v")
    assert done.code == 1
    assert "--force" in done.err
    assert [p.name for p in (tmp_path / "v").iterdir()] == ["mine"]


def test_the_source_is_never_the_target(molmo: Path, copy_of: Callable[[Path], Path]) -> None:
    copy = copy_of(molmo)
    (copy / "manifest.json").write_text("{}")
    done = knobcast("export", copy, "--k", "2", "--out", copy, "--force")
    assert done.code == 1
    assert "is the source" in done.said
    assert knobcast("export", copy, "--k", "2", "--out", copy / "sub").code == 1
    assert not (copy / "sub").exists()


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"max_crops": "x"}, "max_crops"),
        ({"mlp_hidden_size": 66}, "must have the shape [I, d]"),
        ({"layer_norm_eps": "x"}, "layer_norm_eps"),
        ({"rope_theta": 0}, "rope_theta"),
        ({"moe_top_k": True}, "moe_top_k"),
        ({"vit_layers": "x"}, "can't be built"),
        ({"embedding_size": 7}, "must have the shape [V, d]"),
        ({"overlap_margins": [0, 0]}, "overlap_margins"),
    ],
)
def test_a_broken_config_gets_one_message(
    molmo: Path, tmp_path: Path, copy_of: Callable[[Path], Path], change: dict[str, object], word: str
) -> None:
    copy = copy_of(molmo)
    (copy / "config.json").write_text(json.dumps(json.loads((copy / "config.json").read_text()) | change))
    done = knobcast("export", copy, "--k", "2", "--no-onnx", "--out", tmp_path / "v")
    assert done.code == 1
    assert word in done.said
    assert not (tmp_path / "v").exists()


def test_primes_and_untrained_k_warn_and_go_on(molmo: Path) -> None:
    done = knobcast("plan", molmo, "--k", "6", "--tokens", "864", "--json")
    assert done.code == 0
    warnings = " ".join(json.loads(done.out)["warnings"])
    assert "prime" in warnings
    assert "720" in warnings  # the better budget
    assert "above the trained k=4" in warnings


def test_planning_needs_neither_torch_nor_transformers(molmo: Path) -> None:
    script = (
        "import sys\nfrom export.command.main import main\n"
        f"sys.argv = ['knobcast', 'export', {str(molmo)!r}, '--k', '2', '--tokens', '432', '--dry-run', '--json']\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code\n"
        "assert not {'torch', 'transformers', 'onnx', 'onnxruntime'} & sys.modules.keys()\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    assert plan["top_k"] == [2, 2, 2, 2]
    assert [t["image_tokens"] for t in plan["vision"]["tilings"]] == [412, 420]


def test_ctrl_c_says_that_nothing_was_written(molmo: Path, tmp_path: Path) -> None:
    # the handler by name: a runner in the background has its children ignore the signal
    restore = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    program = f"{restore}; from export.command.main import main; main()"
    command = [sys.executable, "-c", program, "export", str(molmo), "--k", "2", "--out", str(tmp_path / "v")]
    started = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert started.stderr
    while "weights\n" not in (line := started.stderr.readline()) and line:
        pass
    started.send_signal(signal.SIGINT)
    printed, said = started.communicate(timeout=120)
    assert started.returncode == 130
    assert printed == ""
    assert said.endswith("interrupted; nothing was written\n")
    assert list(tmp_path.iterdir()) == []


def test_what_others_wrote_steers_no_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Names in manifests, files beside a variant, answers of a model."""
    (tmp_path / "x\x1b]0;gotcha\x07\x1b[2Jy\x9b1m").mkdir()
    done = knobcast("plan", next(tmp_path.iterdir()))
    assert "x\ufffd]0;gotcha\ufffd\ufffd[2Jy\ufffd1m" in done.err
    table = Table("a")
    table.add_row("\x1b[2J")
    Console().print(table, "\x1b[31m[bold]b[/bold]\r")
    print_json({"a": "\x9b1m\x1b\x7f é"})
    out = capsys.readouterr().out
    assert not {"\x1b", "\x9b", "\x7f", "\r"} & set(out)
    assert json.loads(out[out.index("{") :]) == {"a": "\x9b1m\x1b\x7f é"}


def test_brackets_in_a_path_are_printed(molmo: Path, tmp_path: Path) -> None:
    out = tmp_path / "a [red] one"
    done = knobcast("export", molmo, "--k", "2", "--no-verify", "--no-onnx", "--out", out)
    assert done.code == 0
    assert f"not verified {out}\n" in done.out


@pytest.mark.parametrize(
    "words",
    [
        ["verify", "DIR"], ["run", "DIR", "--prompt", "x"], ["report", "DIR"], ["push", "DIR", "dir:shelf"],
        ["layout", "DIR", "--for", "triton", "--out", "laid"], ["derive", "DIR", "--k", "1"], ["bench", "DIR"],
        ["pick", "DIR", "--latency-ms", "3"], ["tile", "DIR"], ["merge", "DIR", "DIR", "--out", "m.json"],
        ["export", "MODEL", "--k", "1", "--out", "DIR"], ["plan", "DIR"],
    ],
    ids=lambda words: words[0],
)  # fmt: skip
def test_a_name_that_no_file_system_takes_is_refused(words: list[str], molmo: Path) -> None:
    named = {"DIR": "x" * 300, "MODEL": molmo}
    done = knobcast(*(named.get(word, word) for word in words))
    assert done.code == 1
    assert "error: " in done.said
    assert done.said.endswith("Check the path.")
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_checkpoint(Path("x" * 300))
