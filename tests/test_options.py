"""Options of all commands: given twice, beside others that they don't go with, and paths that look like markup."""

import ast
import builtins
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer
from typer.testing import CliRunner

from export.command.family import _show_result as show_family
from export.command.groups import flat, said
from export.command.main import app
from export.command.once import CommandLineError, joined
from export.command.output import Console
from export.command.score_files import show_result
from importance.metrics import METRICS
from importance.search import STRATEGIES
from importance.tasks import METRICS as TASK_METRICS
from transform.errors import KnobError, WriteError

COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]
DOCS = Path(__file__).parents[1] / "docs"
LISTS = {
    "--data",
    "--keep-blocks",
    "--drop-blocks",
    "--protect",
    "--ks",
    "--weights",
    "--against",
    "--from",
    "--accuracy",
}
ARGUMENTS = {
    "verify": ["d"],
    "run": ["d"],
    "derive": ["g.onnx"],
    "bench": ["d"],
    "layout": ["d"],
    "merge": ["a.json"],
    "calibrate": ["d.toml"],
}


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


FLOATS = [(name, flag) for name, command in COMMANDS.items() for option in command.params
          for flag in option.opts[:1] if option.type.name in ("float", "float range")]  # fmt: skip


@pytest.mark.parametrize(("command", "flag"), FLOATS)
@pytest.mark.parametrize("value", ["nan", "inf"])
def test_no_option_takes_what_is_no_number(command: str, flag: str, value: str) -> None:
    beside = ARGUMENTS.get(command, []) + {"pick": ["d"], "sweep": ["--grid", "k=1", "--out", "o"]}.get(command, [])
    with pytest.raises(KnobError, match=rf"{flag} must be a finite number, got {value}"):
        invoke(command, *beside, flag, value)


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


OWN = {
    "score": {"--validate", "--validate-annotations", "--plot"},
    "search": {"--strategy", "--max-drop", "--protect", "--nested", "--beam-width"},
    "share": {"--mean-k", "--ks"},
    "merge": {"--model", "--revision", "--how", "--weights", "--plot", "--out", "--force", "--json", "--quiet"},
}


def test_each_verb_that_scores_has_the_options_it_uses_and_no_other() -> None:
    found = {verb: {flag for name, flag, _ in options() if name == verb} for verb in OWN}
    common = found["score"] & found["search"] & found["share"]
    assert {"--data", "--metric", "--stream", "--executor", "--dry-run", "--quiet"} <= common
    assert {verb: flags - common for verb, flags in found.items() if verb != "merge"} == {
        verb: flags for verb, flags in OWN.items() if verb != "merge"
    }
    assert found["merge"] == OWN["merge"]
    done = invoke("merge", "a.json", "--data", "x")
    assert (done.exit_code, "No such option: --data" in done.stderr) == (2, True)


@pytest.mark.parametrize(
    ("words", "verb"),
    [(["--search", "exact"], "search"), (["--search=exact"], "search"), (["--mean-k", "4"], "share"),
     (["--merge", "a.json", "--merge", "b.json"], "merge")],
)  # fmt: skip
def test_what_score_did_besides_names_its_own_verb(words: list[str], verb: str) -> None:
    with pytest.raises(CommandLineError, match=rf"is a command of its own now: knobcast {verb} "):
        invoke("score", "--data", "x", *words)


def test_the_help_names_what_the_registries_have() -> None:
    helps = {(name, p.opts[0]): str(p.help) for name, command in COMMANDS.items() for p in command.params[1:]}
    assert all(each.name in helps["search", "--strategy"] for each in STRATEGIES)
    assert all(each.name in helps["share", "--metric"] for each in METRICS)
    assert all(name in helps["score", "--task"] and name in helps["evaluate", "--metric"] for name in TASK_METRICS)


def test_a_group_is_its_options() -> None:
    @dataclass(frozen=True)
    class Group:
        k: Annotated[int, typer.Option("--k")] = 8
        name: Annotated[str | None, typer.Option("--name")] = None

    seen: list[Group] = []

    def command(group: Group, more: Annotated[str, typer.Option("--more")]) -> None:
        seen.append(group)

    alone = typer.Typer()
    alone.command()(flat(command))
    assert CliRunner().invoke(alone, ["--more", "x", "--name", "y", "--quiet"]).exit_code == 0
    assert seen == [Group(8, "y")]
    assert said(seen[0]) == ["--name"]


@pytest.mark.parametrize("static", ["0", "00", "31"])
@pytest.mark.parametrize("more", [[], ["--dry-run"], ["--json"]])
def test_no_room_for_a_static_graph_is_refused(static: str, more: list[str], olmoe: Path, tmp_path: Path) -> None:
    with pytest.raises(KnobError, match="--static is the longest sequence"):
        invoke("export", str(olmoe), "--k", "1", "--static", static, "--out", str(tmp_path / "v"), *more)
    with pytest.raises(KnobError, match="--static adds graphs"):
        invoke("export", str(olmoe), "--k", "1", "--static", static, "--no-onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("force", [[], ["--force"]])
@pytest.mark.parametrize("purpose", [["score"], ["search", "--strategy", "one_shot"], ["share", "--mean-k", "2"]])
def test_no_scores_over_a_folder(purpose: list[str], force: list[str], molmo: Path, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    data = tmp_path / "q.jsonl"
    data.write_text('{"id": "1", "prompt": "a", "answers": ["b"]}\n')
    with pytest.raises(WriteError, match="is a folder"):
        invoke(*purpose, str(molmo), "--data", str(data), "--out", str(tmp_path / "folder"), *force)
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
