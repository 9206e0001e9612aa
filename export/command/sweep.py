"""`knobcast sweep`: every setting of a grid measured on the user's samples and workloads, for `pick` and `report`."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from export.command.options import TASKS, Json, MaxNewTokens, Model, Provider, Revision, Scores
from export.command.output import Console, print_json, remarks, say_note, show_warnings, stderr
from export.command.sample_files import SampleFiles
from transform.errors import KnobError

if TYPE_CHECKING:
    from export.sweep.grid import Grid
    from export.sweep.latency import Clock
    from export.sweep.run import Sweep
    from export.sweep.settings import Planned
    from export.sweep.table import Workload
    from importance.choose import Source
    from importance.score import Setting
    from transform.checkpoint import Checkpoint


@dataclass(frozen=True)
class Swept:
    """A model and the settings of it that are measured. None is not said."""

    grid: Annotated[
        str, typer.Option("--grid", help="'k=2,4,8 blocks=12,16 tokens=288,432 form=cpu,int4', a preset, or a .toml.")
    ]
    model: Model = None
    revision: Revision = None
    scores: Scores = None
    workloads: Annotated[
        Path | None, typer.Option("--workloads", help="A .toml with [workload.NAME]; absent: the grid's, or one.")
    ] = None
    prune: Annotated[
        float | None,
        typer.Option("--prune", help="Don't measure what blocks' scores predict to lose more, 0 to 1."),
    ] = None

    @cached_property
    def source(self) -> "Checkpoint":
        """The model, from its headers."""
        from transform.read import read_checkpoint
        from transform.source import resolve

        return read_checkpoint(resolve(self.model, self.revision))

    @cached_property
    def axes(self) -> "Grid":
        """The grid, read."""
        from export.sweep.grid import read_grid

        return read_grid(self.grid)

    @cached_property
    def ranking(self) -> "Source | None":
        """What the blocks are chosen by, where some setting leaves some out."""
        from export.sweep.settings import drops_blocks
        from importance.choose import find_scores
        from importance.scores import model_digest

        layers = self.source.settings.layers
        if not drops_blocks(self.axes, layers):
            if self.scores is not None:
                raise KnobError(
                    "--scores choose which blocks stay, and the grid keeps all. Give blocks=N, or leave them out."
                )
            return None
        family = self.source.architecture.model_type
        return find_scores(self.source.path, self.scores, layers, lambda: model_digest(self.source), family)

    @cached_property
    def settings(self) -> "tuple[Planned, ...]":
        """All of them, the full one first."""
        from export.sweep.settings import full_setting, settings_of, with_full

        return with_full(settings_of(self.axes, self.source, self.ranking), full_setting(self.source))

    @property
    def asked(self) -> "dict[str, Workload]":
        """The workloads by name."""
        from export.sweep.grid import read_toml
        from export.sweep.workloads import parse_workloads, usual_workloads

        sees = self.source.architecture.modality.sees_images
        if self.workloads is not None:
            raw = read_toml(self.workloads)
            return parse_workloads(raw.get("workload"), sees, self.workloads.name)
        if self.axes.workload is not None:
            return parse_workloads(self.axes.workload, sees, self.axes.where)
        return usual_workloads(sees)


@dataclass(frozen=True)
class Questions:
    """How answers are made and graded."""

    task: Annotated[str, typer.Option("--task", "--metric", help=f"How an answer is graded: {TASKS}")] = "exact_match"
    max_new_tokens: MaxNewTokens = 16

    def setting(self, source: "Checkpoint", files: SampleFiles) -> "Setting | None":
        """The samples, checked; None where none are given."""
        if files.data is None:
            unread = {"--annotations": files.annotations, "--images": files.images, "--limit": files.limit}
            for option in (option for option, value in unread.items() if value is not None):
                raise KnobError(f"{option} is about samples, and none are given. Add --data, or leave it out.")
            return None
        from importance.score import Setting  # numpy, torch: only now
        from transform.load import quiet_transformers

        quiet_transformers()
        made = Setting(
            source, files.paths("a sweep"), files.annotations, files.images, files.most, "accuracy", self.task,
            "generate", max_new_tokens=self.max_new_tokens,
        )  # fmt: skip
        made.check()
        return made


@dataclass(frozen=True)
class Clocked:
    """Where and how latencies are taken."""

    latency: Annotated[bool, typer.Option("--latency/--no-latency", help="Time every setting's graphs.")] = True
    provider: Provider = "cpu"
    threads: Annotated[int | None, typer.Option("--threads", min=1, help="Absent: physical cores.")] = None
    runs: Annotated[int, typer.Option("--runs", min=1, help="Of each workload, after one to warm up.")] = 5
    verify: Annotated[bool, typer.Option("--verify/--no-verify", help="Prove the graphs before they are timed.")] = True

    def clock(self, settings: "tuple[Planned, ...]") -> "Clock | None":
        """None where nothing is timed; raises KnobError for a form that the provider can't run."""
        if not self.latency:
            return None
        from export.bench.machine import physical_cores
        from export.run.providers import PROVIDERS
        from export.sweep.latency import Clock

        if self.provider not in PROVIDERS:
            raise KnobError(
                f"--provider must be one of {', '.join(PROVIDERS)}, got {self.provider[:40]!r}. Choose one of them."
            )
        for form in {setting.plan.form for setting in settings}:
            if self.provider not in form.providers:
                raise KnobError(
                    f"what is timed must run on the {self.provider}: the {form.name} form runs on "
                    f"{', '.join(form.providers)}. Leave it out, give another --provider, or --no-latency."
                )
        return Clock(self.provider, self.threads or physical_cores(), self.runs)


@dataclass(frozen=True)
class Place:
    """Where jobs run, and where all of it goes."""

    out: Annotated[Path, typer.Option("--out", help="A folder, new or of this sweep: what is done isn't done again.")]
    executor: Annotated[str, typer.Option("--executor", help="Of questions: local, processes or ray.")] = "local"
    workers: Annotated[int | None, typer.Option("--workers", min=1, help="Jobs at once.")] = None
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the settings and what is to do, and stop.")] = False
    as_json: Json = False


def sweep(swept: Swept, files: SampleFiles, questions: Questions, clocked: Clocked, place: Place) -> None:
    """Measure every setting of a grid: accuracy on your samples, latency and memory of your workloads."""
    from export.command.bars import sweep_bars
    from export.command.show_sweep import show_plan, show_sweep, sweep_facts
    from export.sweep.folder import check_same, damaged_files, held
    from export.sweep.run import Runner

    out = place.out
    made = _sweep(swept, files, questions, clocked)
    table = made.empty_table()
    check_same(out, table)
    _check(made)
    show_warnings(dict.fromkeys(w for setting in made.settings for w in setting.plan.warnings))
    if made.clock is not None and not place.dry_run:
        made.clock.check(made.settings[0].plan.form)
    if place.dry_run:
        facts, seconds = sweep_facts(made), _expected(made)
        if place.as_json:
            print_json({**facts, "seconds_of_questions": seconds, "out": str(out)})
        else:
            show_plan(made, facts, seconds, Console(highlight=False))
        return
    from export.sweep.families import Families
    from export.sweep.run import JOBS
    from importance.executors import open_executor
    from importance.jobs import damaged_results

    # what can't start is refused before the folder is made
    with _kept(out / JOBS), open_executor(place.executor, place.workers) as pool, held(out):
        trusted, notes = check_same(out, table)
        damaged = damaged_results(out / JOBS)
        notes += [f"{out / JOBS / name} is damaged and is computed again." for name in damaged]
        if made.questions is not None:
            notes += [f"{out / name} is damaged or gone and is written again." for name in damaged_files(out)]
        show_warnings(notes)
        facts = sweep_facts(made)
        with sweep_bars(remarks, facts["answers"], facts["decoders"]) as (say, asked, timed):
            families = Families(out, clocked.verify, trusted, lambda line: show_warnings([line]))
            runner = Runner(made, out, families, pool, say, asked, timed)
            table = runner.run()
    if place.as_json:
        print_json({**table.as_dict(), "engine": runner.report, "out": str(out)})
    else:
        show_sweep(table, out, Console(highlight=False))
    if all(point.errors for point in table.points):
        raise typer.Exit(1)


def _sweep(swept: Swept, files: SampleFiles, questions: Questions, clocked: Clocked) -> "Sweep":
    """All that is asked for, checked from headers and samples."""
    from export.command.show import ranking_words
    from export.sweep.predict import predicted_drops, pruned
    from export.sweep.run import Sweep

    settings, ranking = swept.settings, swept.ranking
    workloads = swept.asked
    clock = clocked.clock(settings)
    asked = questions.setting(swept.source, files)
    if asked is None and clock is None:
        raise KnobError("a sweep measures something: --data is missing, and --no-latency is given. Add one of them.")
    if asked is None:
        say_note("no --data: latency and memory alone, no accuracy")
    full = settings[0].name
    gone = {} if swept.prune is None else pruned(settings, ranking, swept.prune, full)
    chosen_by = "all blocks stay" if ranking is None else ranking_words(ranking)
    return Sweep(
        swept.source, swept.model, settings, workloads, swept.axes.text, ranking, chosen_by, asked, clock,
        clocked.verify, predicted_drops(settings, ranking), gone,
    )  # fmt: skip


def _check(made: "Sweep") -> None:
    """Refuse what no setting could answer, before any work."""
    from export.sweep.quality import look_at

    if made.questions is not None:
        for line in made.questions.notes:
            say_note(line)
        look_at(made.questions, list(dict.fromkeys(setting.tokens for setting in made.measured)))


def _expected(made: "Sweep") -> float | None:
    """About how many seconds the questions take here, one job after another; None without questions."""
    from export.sweep.quality import groups_of
    from importance.configurations import Cost
    from importance.estimate import estimate

    if made.questions is None:
        return None
    say_note("timing the first two pictures or texts at each budget")
    seconds = 0.0
    for members in made.by_weights().values():
        for tokens, group in groups_of(members).items():
            cost = Cost.of([member.config for member in group])
            seconds += estimate(replace(made.questions, tokens=tokens), cost).seconds
    return round(seconds, 1)


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
