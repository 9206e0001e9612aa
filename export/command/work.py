"""How `score`, `search` and `share` do their work: cost first, then jobs with kept results, then one file."""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypedDict

import typer
from rich.markup import escape

from export.command.options import Json
from export.command.output import Console, print_json, remarks, say_note, stderr
from export.command.score_files import show_result
from importance.atomic import sweep_staged
from importance.store import job_folder
from transform.errors import WriteError

if TYPE_CHECKING:
    from importance.configurations import Cost
    from importance.score import Scorer, Setting
    from transform.checkpoint import Checkpoint

Out = Annotated[
    Path | None,
    typer.Option("--out", help="Beside the model if absent: scores.json; of search sets.json, of share widths.json."),
]
Force = Annotated[bool, typer.Option("--force", help="Replace an existing file.")]


class CostFacts(TypedDict):
    """What a run takes at most, before it starts. passes: how often the samples are gone through."""

    metric: str
    samples: int
    jobs: int
    configurations: int
    block_evaluations: int
    naive_block_evaluations: int
    full_passes: float
    passes: int


@dataclass(frozen=True)
class Work:
    """Where jobs run, and where the result goes."""

    executor: Annotated[str, typer.Option("--executor", help="local, processes or ray.")] = "local"
    workers: Annotated[int | None, typer.Option("--workers", min=1, help="Jobs at once.")] = None
    jobs: Annotated[
        Path | None, typer.Option("--jobs", help="Folder of finished jobs, kept; absent: OUT.jobs until it is done.")
    ] = None
    out: Out = None
    force: Force = False
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what it would cost and stop.")] = False
    as_json: Json = False

    def target(self, checkpoint: "Checkpoint", name: str) -> Path:
        """The result's file, in a folder that takes it."""
        target = (self.out or checkpoint.path / name).resolve()
        check_writable(target)
        return target

    def do(
        self,
        setting: "Setting",
        target: Path,
        cost: "Cost",
        passes: int,
        measure: Callable[["Scorer"], Mapping[str, object]],
        other: "Setting | None" = None,
    ) -> None:
        """Say what it costs, and unless that is all, run `measure` and show what it wrote to `target`.

        cost, passes: at most, of `setting` alone. other: further samples that `measure` goes through once.
        """
        for line in [*setting.notes, *([] if other is None else other.notes)]:
            say_note(line)
        if not self.dry_run:
            sweep_staged(target.parent, target.name)
            refuse_existing(target, self.out is None, self.force)
        for one in (setting, *([] if other is None else [other])):
            one.look()
        facts = _facts(setting, cost, passes)
        if self.dry_run:
            self._show_cost(facts, setting, cost, target)
            return
        remarks.print(_words(facts))
        store = self.jobs or target.with_name(f"{target.name}.jobs")
        total = len(setting.samples) * passes + (0 if other is None else len(other.samples))
        with (
            job_folder(store, self.jobs is not None, lambda: not self.force and target.exists()),
            _kept(store),
            self._scorer(setting, store, total) as scorer,
        ):
            result = measure(scorer)
        if self.as_json:
            print_json({**result, "engine": scorer.report, "out": str(target)})
        else:
            show_result(result, target, setting.checkpoint.settings.layers)

    def _show_cost(self, facts: CostFacts, setting: "Setting", cost: "Cost", target: Path) -> None:
        from importance.estimate import estimate

        say_note("timing the first two pictures or texts")
        expected = estimate(setting, cost)
        if self.as_json:
            print_json({**facts, **expected.as_dict(), "out": str(target)})
        else:
            Console(highlight=False).print(f"{_words(facts)}\n{expected.words()}")

    @contextmanager
    def _scorer(self, setting: "Setting", store: Path, total: int) -> Iterator["Scorer"]:
        from export.command.bars import sample_bar
        from importance.executors import open_executor
        from importance.score import Scorer

        with sample_bar(remarks, total) as (say, advance), open_executor(self.executor, self.workers) as pool:
            say("score")
            yield Scorer(setting, store, pool, advance)


def check_writable(path: Path) -> None:
    """Find out now, not after the work, that nothing can be written."""
    if path.is_dir():
        raise WriteError(f"{path} is a folder, and the name of a file is needed. Choose another.")
    folder = path.resolve().parent
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise WriteError(f"{path} must lie in a folder that can be written to, {folder} is none. Choose another.")


def refuse_existing(target: Path, beside_model: bool, force: bool) -> None:
    """Of a file beside the model, which may have come with it, --out is the first way out."""
    if force or not target.exists():
        return
    if beside_model:
        raise WriteError(
            f"{target} is there already, perhaps as the model came. Give yours a name of its own with --out FILE, "
            "which export takes as --scores FILE; or replace that one with --force."
        )
    raise WriteError(f"{target} exists; pass --force or choose another --out.")


def _facts(setting: "Setting", cost: "Cost", passes: int) -> CostFacts:
    return {
        "metric": setting.chosen.name,
        "samples": len(setting.samples),
        "jobs": len(setting.shards()),
        "configurations": cost.sets,
        "block_evaluations": cost.block_evaluations,
        "naive_block_evaluations": cost.naive_block_evaluations,
        "full_passes": round(cost.block_evaluations / len(setting.full), 2),
        "passes": passes,
    }


def _words(facts: CostFacts) -> str:
    return (
        f"{facts['metric']} on {facts['samples']} samples, {facts['configurations']:,} configurations: "
        f"{facts['block_evaluations']:,} block evaluations per picture (one by one: "
        f"{facts['naive_block_evaluations']:,}), as much as {facts['full_passes']:,} passes of the full model"
    )


@contextmanager
def _kept(store: Path) -> Iterator[None]:
    """Ctrl-C says where the finished jobs are."""
    try:
        yield
    except KeyboardInterrupt:
        done = len(list(store.glob("*.json"))) if store.is_dir() else 0
        kept = f"interrupted; {done} finished jobs are kept in {store}, the same command goes on from there"
        stderr.print(escape(kept), soft_wrap=True)
        raise typer.Exit(130) from None
