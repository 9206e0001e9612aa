"""Options of all commands: given twice, beside others that they don't go with, and paths that look like markup."""

import ast
import builtins
import json
import re
from pathlib import Path
from typing import Any

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

from export.command.family import _show_result as show_family
from export.command.main import app
from export.command.once import joined
from export.command.score_files import show_result
from transform.errors import KnobcastError, KnobError, WriteError

COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]
DOCS = Path(__file__).parents[1] / "docs"
LISTS = {"--data", "--keep-blocks", "--drop-blocks", "--protect", "--ks", "--weights", "--against", "--merge"}
ARGUMENTS = {"verify": ["d"], "run": ["d"], "derive": ["g.onnx"], "bench": ["d"], "layout": ["d"]}


def invoke(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments), catch_exceptions=False)


def options() -> list[tuple[str, str, list[str]]]:
    """(command, flag, its words) of every option but --help."""
    found = []
    for name, command in COMMANDS.items():
        for option in command.params:
            if option.param_type_name == "option" and option.name != "help":
                number = option.type.name in ("integer", "float", "integer range", "float range")
                found.append((name, option.opts[0], [] if option.is_flag else ["2" if number else "x"]))
    return found


def test_there_are_as_many_options_as_there_were() -> None:
    assert len(COMMANDS) >= 8
    assert len(options()) > 90


@pytest.mark.parametrize(("command", "flag", "words"), options())
def test_no_option_that_is_given_twice_counts_once(command: str, flag: str, words: list[str]) -> None:
    option = next(p for p in COMMANDS[command].params if flag in p.opts)
    arguments = [command, *ARGUMENTS.get(command, []), flag, *words, flag, *words]
    if flag in LISTS:
        assert option.multiple
    elif option.is_flag and not option.secondary_opts:
        assert not words  # the same said twice
    else:
        with pytest.raises(KnobError, match=rf"{flag}.* takes one value, it is given 2 times"):
            invoke(*arguments)


def test_a_switch_and_its_opposite_are_refused() -> None:
    with pytest.raises(KnobError, match="--onnx/--no-onnx takes one value"):
        invoke("export", "--onnx", "--no-onnx")
    with pytest.raises(KnobError, match="--verify/--no-verify"):
        invoke("derive", "g.onnx", "--no-verify", "--no-verify")


def test_lists_are_taken_together(molmo: Path) -> None:
    assert joined(None) is None
    assert joined(["2", "5,6"]) == "2,5,6"
    for one, other in ((["--drop-blocks", "1,2"], ["--drop-blocks", "1", "--drop-blocks", "2"]),
                       (["--keep-blocks", "0,3"], ["--keep-blocks", "0", "--keep-blocks", "3"])):  # fmt: skip
        first, second = (json.loads(invoke("plan", str(molmo), *given, "--json").stdout) for given in (one, other))
        assert first == second
        assert first["blocks_kept"] == [0, 3]


MERGE = ["score", "--merge", "a.json", "--merge", "b.json"]


@pytest.mark.parametrize(
    "idle",
    [["--metric", "nll"], ["--k", "2"], ["--tokens", "99"], ["--stream"], ["--executor", "nonsense"], ["--data", "x"],
     ["--executor", "local"], ["--dry-run"], ["--limit", "3"], ["--task", "exact_match"], ["--workers", "2"],
     ["--jobs", "x"], ["--scoring", "generate"], ["--vision-weight", "0.5"], ["--max-new-tokens", "16"],
     ["--annotations", "x"], ["--images", "x"]],
)  # fmt: skip
def test_what_means_nothing_beside_merge_is_refused(idle: list[str], molmo: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "out.json")
    with pytest.raises(KnobError, match=rf"--merge only reads and writes.*{idle[0]}"):
        invoke(*MERGE, *idle, str(molmo), "--out", out)
    with pytest.raises(KnobcastError, match=r"a\.json"):  # what goes with it comes as far as its files
        invoke(*MERGE, str(molmo), "--out", out, "--how", "mean", "--force", "--json")


@pytest.mark.parametrize("static", ["0", "00", "31"])
@pytest.mark.parametrize("more", [[], ["--dry-run"], ["--json"]])
def test_no_room_for_a_static_graph_is_refused(static: str, more: list[str], olmoe: Path, tmp_path: Path) -> None:
    with pytest.raises(KnobError, match="--static is the longest sequence"):
        invoke("export", str(olmoe), "--k", "1", "--static", static, "--out", str(tmp_path / "v"), *more)
    with pytest.raises(KnobError, match="--static adds graphs"):
        invoke("export", str(olmoe), "--k", "1", "--static", static, "--no-onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("force", [[], ["--force"]])
@pytest.mark.parametrize("purpose", [[], ["--search", "one_shot"], ["--mean-k", "2"]])
def test_no_scores_over_a_folder(purpose: list[str], force: list[str], molmo: Path, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    data = tmp_path / "q.jsonl"
    data.write_text('{"id": "1", "prompt": "a", "answers": ["b"]}\n')
    with pytest.raises(WriteError, match="is a folder"):
        invoke("score", str(molmo), "--data", str(data), "--out", str(tmp_path / "folder"), *purpose, *force)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder", "q.jsonl"]


NAMES = ["out[bold]", "a[/x]", "[red]b", "c[/]", "d[link=x]e", "[0]"]


@pytest.mark.parametrize("name", NAMES)
def test_names_are_shown_as_they_are(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(highlight=False)
    checked = {"mode": "resident", "onnx_vs_torch": {"prefill": 0.0, "decode": 0.0, "padded": 0.0}}
    show_family({"members": [{"verification": checked}]}, Path(name), console)
    show_family({"members": [{"verification": "skipped"}]}, Path(name), console)
    agreed = {"spearman": 1.0, "data": name, "band": "strong"}
    scores = {"merged_scores": {"0": 0.5, "1": 0.25}, "validation": agreed}
    show_result(scores, Path(name), 2)
    printed = capsys.readouterr().out
    assert printed.count(f"{name}") == 4, printed


def test_examples_in_the_documentation_import_what_they_use() -> None:
    found = 0
    for page in sorted([*DOCS.glob("*.md"), DOCS.parent / "README.md"]):
        known = set(dir(builtins))
        for text in re.findall(r"```python\n(.*?)```", page.read_text("utf-8"), re.S):
            tree = ast.parse(text)
            for node in ast.walk(tree):
                match node:
                    case ast.Import() | ast.ImportFrom():
                        known.update(alias.asname or alias.name.partition(".")[0] for alias in node.names)
                    case ast.FunctionDef() | ast.ClassDef():
                        known.add(node.name)
                    case ast.arg():
                        known.add(node.arg)
                    case ast.Name(ctx=ast.Store()):
                        known.add(node.id)
            used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
            # a lower-case name that stands for the reader's own, such as `directory`, is none of them
            missing = {name for name in used - known if name[0].isupper() or name in ("np", "og", "torch")}
            assert not missing, page.name
            found += 1
    assert found > 3
