"""`knobcast sweep`: every setting of a grid measured, in one table that is written after each finished part.

    families      the graphs of all settings over the same weights, where latencies or other weights need them
    quality       a budget after the other, all its settings in one pass (quality.py)
    latency       a decoder after the other, the likeliest ones first (latency.py)

Results are kept per job, so that a run that is killed at any time goes on where it was. What fails, fails alone: the
table has the reason in its place.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from export.cost.count import cost_of
from export.sweep.answers import Answers, write_answers, write_samples
from export.sweep.families import Families, graph_of
from export.sweep.latency import Asked, Clock, ask_name, asks_of, latency_of, time_decoder, time_vision
from export.sweep.pictures import keep_pictures
from export.sweep.quality import Asker, Failure, graded, qualities, samples_of
from export.sweep.settings import Planned
from export.sweep.table import FILE, Data, Latency, Point, Source, Table, Workload, table_text
from importance.atomic import write_atomically
from importance.choose import SCORES
from importance.choose import Source as Ranking
from importance.jobs import Submits
from importance.samples import samples_digest
from importance.score import Setting
from importance.scores import Scores, model_digest, write_scores
from importance.shards import forget
from transform.checkpoint import Checkpoint
from transform.errors import KnobcastError
from transform.hub_cache import hub_id, name_of
from transform.knobs import spelt_k
from transform.machine import release_memory
from transform.progress import Progress, Say
from transform.read import read_checkpoint

JOBS = "jobs"


@dataclass(frozen=True)
class Sweep:
    """What is measured of which settings, the full one first. `model`: as the user named it, None for the embedded one;
    `ranking`: what chose blocks, None: all stay; `chosen_by`: the same in words;
    `questions` None: no quality; `clock` None: no latencies; `expected`: what a setting is predicted to lose, by its
    name, which orders the work; `pruned`: why some are not measured."""

    source: Checkpoint
    model: str | None
    settings: Sequence[Planned]
    workloads: Mapping[str, Workload]
    grid: str
    ranking: Ranking | None
    chosen_by: str
    questions: Setting | None
    clock: Clock | None
    verify: bool = True
    expected: Mapping[str, float] = field(default_factory=dict)
    pruned: Mapping[str, str] = field(default_factory=dict)

    @property
    def full(self) -> Planned:
        """The setting that all others are compared with."""
        return self.settings[0]

    @property
    def measured(self) -> list[Planned]:
        """The settings that weren't pruned."""
        return [setting for setting in self.settings if setting.name not in self.pruned]

    def by_weights(self) -> dict[tuple[str, str], list[Planned]]:
        """Measured settings over the same weights together, the source's own first."""
        found: dict[tuple[str, str], list[Planned]] = {}
        for setting in sorted(self.measured, key=lambda each: not each.as_source):
            found.setdefault(setting.weights, []).append(setting)
        return found

    def empty_table(self) -> Table:
        """Before anything is measured."""
        settings = self.source.settings
        where = hub_id(self.source.path) or str(self.source.path.resolve())
        source = Source(
            name_of(self.source.path), where, self.source.architecture.model_type, model_digest(self.source),
            settings.layers, settings.top_k, settings.experts,
        )  # fmt: skip
        data = None if self.questions is None else _data(self.questions)
        points = tuple(self._point(setting) for setting in self.settings)
        machine = None if self.clock is None else self.clock.machine()
        return Table(source, data, self.workloads, self.grid, self.chosen_by, self.full.name, machine, points)

    def _point(self, setting: Planned) -> Point:
        parts = [*(["quality"] if self.questions else []), *(["latency"] if self.clock else [])]
        why = self.pruned.get(setting.name)
        return Point(
            setting.name, spelt_k(setting.top_k), setting.top_k, setting.plan.keep_blocks, setting.tokens,
            setting.plan.form.name, setting.plan.knobs.dtype, setting.command(self.model),
            cost_of(setting.plan, self.workloads),
            errors={} if why is None else dict.fromkeys(parts, why),
        )  # fmt: skip


@dataclass(eq=False)
class Runner:
    """One run into `out`, which exists and is its own. asked, timed: told how many samples, how many decoders are done;
    report: what the engine counted."""

    sweep: Sweep
    out: Path
    families: Families
    executor: Submits | None
    say: Say
    asked: Progress
    timed: Progress
    report: dict[str, int] = field(default_factory=dict)
    _table: Table = field(init=False)  # as it is without errors and latencies
    _answers: dict[str, Answers] = field(default_factory=dict)
    _latency: dict[str, dict[str, Latency]] = field(default_factory=dict)
    _errors: dict[str, dict[str, str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._table = self.sweep.empty_table()

    def run(self) -> Table:
        """Everything, and the finished table."""
        self._write()  # first: it says whose folder this is
        if self.sweep.questions is not None:
            write_samples(self.out, samples_of(self.sweep.questions))
            keep_pictures(self.sweep.questions.samples, self.out)
        if isinstance(self.sweep.ranking, Scores):
            write_scores(self.sweep.ranking, self.out / SCORES, force=True)
        else:  # those of an earlier run chose other blocks
            with suppress(OSError):
                (self.out / SCORES).unlink()
        for members in self.sweep.by_weights().values():
            own = members[0].as_source
            if own:
                self._ask(members, self.sweep.source)
            if own and self.sweep.clock is None:
                continue
            try:
                # without a clock the weights alone are needed
                family, failed = self.families.of(members if self.sweep.clock else members[:1], self.say)
                written = read_checkpoint(family)
            except KnobcastError as error:
                self._fail(members, ([] if own else ["quality"]) + ["latency"], str(error))
                continue
            if not own:
                self._ask(members, written)
            for graph, reason in failed.items():
                self._fail([member for member in members if graph_of(member) == graph], ["latency"], reason)
            self._time([member for member in members if graph_of(member) not in failed], family)
        return self._write()

    def _ask(self, members: Sequence[Planned], weights: Checkpoint) -> None:
        if self.sweep.questions is None:
            return
        self.say("questions")
        questions = self.sweep.questions
        asker = Asker(questions, weights, self.out / JOBS, self.executor, self.asked, self.report)
        for found in asker.ask(members):
            for name, answered in found.items():
                if isinstance(answered, Failure):
                    self._errors.setdefault(name, {})["quality"] = answered.reason
                    continue
                self._answers[name] = graded(questions, answered)
                write_answers(self.out, name, self._answers[name])
            self._judge()
            self._write()

    def _time(self, members: Sequence[Planned], family: Path) -> None:
        clock = self.sweep.clock
        if clock is None:
            return
        forget()
        release_memory()
        store, workloads = self.out / JOBS, self.sweep.workloads
        self.say("vision")
        try:
            vision = time_vision(family, asks_of(members, workloads), clock, store)
        except KnobcastError as error:
            self._fail(members, ["latency"], f"the vision part: {error}")
            return
        decoders: dict[str, list[Planned]] = {}
        for member in sorted(members, key=lambda each: self.sweep.expected.get(each.name, 0.0)):
            decoders.setdefault(graph_of(member), []).append(member)
        for graph, settings in decoders.items():
            self.say(f"time {graph}")
            asked: dict[str, Asked] = {}
            failed: dict[str, str] = {}
            for ask in asks_of(settings, workloads):
                try:
                    asked[ask.name] = time_decoder(family, graph, ask, clock, store)
                except KnobcastError as error:
                    failed[ask.name] = str(error)
            for setting in settings:
                names = {name: ask_name(setting, name) for name in workloads}
                self._latency[setting.name] = {
                    name: latency_of(asked[key], vision.get(key)) for name, key in names.items() if key in asked
                }
                reasons = {name: failed[key] for name, key in names.items() if key in failed}
                if reasons:
                    self._errors.setdefault(setting.name, {})["latency"] = _reason(reasons, len(workloads))
            self.timed(1)
            self._write()

    def _fail(self, settings: Sequence[Planned], parts: Sequence[str], reason: str) -> None:
        for setting in settings:
            for part in parts:
                self._errors.setdefault(setting.name, {})[part] = reason
        self._write()

    def _judge(self) -> None:
        """Put what all answers say into the table."""
        questions, full = self.sweep.questions, self.sweep.full.name
        if questions is None:
            return
        if full not in self._answers:
            why = f"the full setting {full}, which all are compared with, has none"
            self._errors |= {name: {**self._errors.get(name, {}), "quality": why} for name in self._answers}
            return
        found = qualities(samples_of(questions), self._answers, full)
        points = tuple(replace(point, quality=found.get(point.name)) for point in self._table.points)
        self._table = replace(self._table, points=points)

    def _write(self) -> Table:
        points = tuple(
            replace(
                point,
                latency=self._latency.get(point.name, {}),
                errors={**point.errors, **self._errors.get(point.name, {})},
            )
            for point in self._table.points
        )
        table = replace(self._table, points=points)
        write_atomically(self.out / FILE, table_text(table), force=True)
        return table


def _data(questions: Setting) -> Data:
    pictures = {g for g, s in zip(questions.groups.tolist(), questions.samples, strict=True) if s.images}
    name = ", ".join(file.name for file in questions.files)
    return Data(name, samples_digest(questions.samples), len(questions.samples), len(pictures), questions.task)


def _reason(by_workload: Mapping[str, str], workloads: int) -> str:
    """Why a decoder wasn't timed: the one reason for all of so many workloads, or each one's."""
    reasons = set(by_workload.values())
    if len(reasons) == 1 and len(by_workload) == workloads:
        return reasons.pop()
    return "; ".join(f"at {name}: {why}" for name, why in by_workload.items())
