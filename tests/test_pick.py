"""`knobcast pick`: equal to brute force over the table, honest about what can't be told, and its variant says why."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from export.sweep.answers import read_answers, read_samples
from export.sweep.constraints import (
    ACCURACY,
    BYTES,
    DECODE,
    LATENCY,
    MEMORY,
    PREFILL,
    Constraint,
    check_constraints,
    choose_workload,
    parse_constraint,
)
from export.sweep.difference import Differences, within_error
from export.sweep.lookup import make_lookup
from export.sweep.pareto import Place, front, places
from export.sweep.pick import NOTICEABLE, optimised_by, pick
from export.sweep.table import Point, Table
from tests.support.command import knobcast
from tests.support.sweeps import SAMPLES, TASKS, synthetic_sweep
from transform.errors import KnobError, VerificationError


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Table]:
    directory = tmp_path_factory.mktemp("sweep")
    return directory, synthetic_sweep(directory)


def _numbers(point: Point, at: str) -> dict[str, float]:
    """A setting's values, read from the record without the code under test."""
    assert point.quality
    found = point.latency[at]
    assert found.peak_bytes
    return {
        "accuracy": point.quality.total.accuracy,
        "latency": found.total_ms,
        "prefill": found.prefill_ms,
        "decode": found.decode_ms,
        "memory": found.peak_bytes / 1e6,
        "bytes": point.cost.bytes / 1e6,
        **{task: share.accuracy for task, share in point.quality.by_task.items()},
    }


def test_picks_equal_brute_force_for_200_constraint_sets(swept: tuple[Path, Table]) -> None:
    _, table = swept
    draws = np.random.default_rng(7)
    none = several = 0
    for _ in range(200):
        at = str(draws.choice(["qa", "caption"]))
        rows = {point.name: _numbers(point, at) for point in table.points}
        full = rows[table.full]
        constraints, tests = [], []
        for quantity in (ACCURACY, LATENCY, PREFILL, DECODE, MEMORY, BYTES):
            if draws.uniform() < 0.6:
                continue
            task = str(draws.choice(TASKS)) if quantity is ACCURACY and draws.uniform() < 0.5 else None
            key = task or quantity.word
            relative = bool(draws.uniform() < 0.5)
            bound = float(draws.uniform(0.6, 1.0) if relative else draws.choice([r[key] for r in rows.values()]))
            constraints.append(Constraint(quantity, bound, relative, task))
            limit = bound * full[key] if relative else bound
            tests.append((key, limit, quantity is ACCURACY))
        fitting = [n for n, r in rows.items() if all(r[k] >= x if up else r[k] <= x for k, x, up in tests)]
        timed = {k for k, _, _ in tests} & {"latency", "prefill", "decode"}
        least_time = any(up for _, _, up in tests) and not timed
        found = pick(table, constraints, at)
        assert found.fitting == len(fitting)
        assert (found.optimised is LATENCY) == least_time == (optimised_by(constraints) is LATENCY)
        if not fitting:
            none += 1
            worst = {n: max((x - r[k]) / x if up else (r[k] - x) / x for k, x, up in tests) for n, r in rows.items()}
            assert found.best is None
            assert found.closest
            assert worst[found.closest.name] == min(worst.values())
            assert max(failed.excess for failed in found.failed) == pytest.approx(min(worst.values()), rel=1e-12)
            continue
        several += len(fitting) > 4

        def order(name: str) -> tuple[float | str, ...]:
            r = rows[name]  # noqa: B023 called in this round alone
            ranked = (r["latency"], -r["accuracy"]) if least_time else (-r["accuracy"], r["latency"])  # noqa: B023
            return (*ranked, r["bytes"], name)

        ranked = sorted(fitting, key=order)
        assert found.best
        assert found.best.name == ranked[0]
        chosen = [ranked[0]]
        for name in ranked[1:]:
            ours = rows[name]
            if len(chosen) < 4 and all(
                ours["accuracy"] > rows[other]["accuracy"]
                or any(ours[cost] < rows[other][cost] * (1 - NOTICEABLE) for cost in ("latency", "memory", "bytes"))
                for other in chosen
            ):
                chosen.append(name)
        assert [point.name for point in found.runners_up] == chosen[1:]
    assert none > 10
    assert several > 50


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=40))
def test_fronts_equal_an_independent_computation(pairs: list[tuple[int, int]]) -> None:
    found = [Place(str(n), float(cost), accuracy / 10) for n, (cost, accuracy) in enumerate(pairs)]
    wanted = {
        a.name
        for a in found
        if not any(
            b.cost <= a.cost and b.accuracy >= a.accuracy and (b.cost, b.accuracy) != (a.cost, a.accuracy)
            for b in found
        )
    }
    made = front(found)
    assert {place.name for place in made} == wanted
    assert [place.cost for place in made] == sorted(place.cost for place in made)


def test_a_front_is_of_measured_settings_alone(swept: tuple[Path, Table]) -> None:
    _, table = swept
    gone = front(places(table, LATENCY, "qa"))[-1].name
    lacking = replace(table, points=tuple(replace(p, quality=None) if p.name == gone else p for p in table.points))
    assert gone not in {place.name for place in places(lacking, LATENCY, "qa")}
    for task in TASKS:
        assert front(places(table, MEMORY, "caption", task))


def test_what_was_not_measured_is_never_picked(swept: tuple[Path, Table]) -> None:
    _, table = swept
    best = pick(table, [], "qa").best
    assert best
    points = tuple(
        replace(p, quality=None, errors={"quality": "x"}) if p.name == best.name else p for p in table.points
    )
    found = pick(replace(table, points=points), [], "qa")
    assert found.best
    assert found.best.name != best.name
    assert found.unmeasured == (best.name,)
    with pytest.raises(KnobError, match=r"no setting of this sweep has all that is asked for"):
        pick(replace(table, points=tuple(replace(p, latency={}) for p in points)), [], "qa", LATENCY)


def test_differences_are_paired_and_by_picture(swept: tuple[Path, Table]) -> None:
    directory, table = swept
    ours, theirs = table.points[40].name, table.full
    found = Differences(directory).between(ours, theirs)
    scores = [np.array(read_answers(directory, name, SAMPLES).scores) for name in (ours, theirs)]
    apart = scores[0] - scores[1]
    pictures = np.array(read_samples(directory).pictures)
    sums = np.array([(apart - apart.mean())[pictures == n].sum() for n in range(SAMPLES // 4)])
    error = np.sqrt(len(sums) / (len(sums) - 1) * (sums**2).sum()) / SAMPLES
    assert found.mean == pytest.approx(apart.mean(), abs=1e-12)
    assert found.stderr == pytest.approx(error, rel=1e-12)
    assert within_error(Differences(directory).between(ours, ours))


@pytest.mark.parametrize(
    ("option", "text", "said"),
    [
        (LATENCY, "200", "latency <= 200 ms"),
        (LATENCY, " <= 0.8x", "latency <= 0.8x"),
        (ACCURACY, ">=0.95x", "accuracy >= 0.95x"),
        (ACCURACY, "colour >= 0.9", "accuracy of colour >= 0.9"),
        (ACCURACY, "a >= b>=0.9", "accuracy of a >= b >= 0.9"),
    ],
)
def test_words_become_constraints(option: object, text: str, said: str) -> None:
    assert str(parse_constraint(option, text)) == said  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("option", "text"),
    [(LATENCY, "-3"), (LATENCY, ">=200"), (LATENCY, "0"), (LATENCY, "1e3"), (LATENCY, "nan"), (LATENCY, "colour<=3"),
     (ACCURACY, "1.2"), (ACCURACY, "<=0.9"), (ACCURACY, "95%"), (ACCURACY, "")],
)  # fmt: skip
def test_other_words_are_refused(option: object, text: str) -> None:
    with pytest.raises(KnobError, match=r"--(latency-ms|accuracy) .*got"):
        parse_constraint(option, text)  # type: ignore[arg-type]


def test_contradictions_and_unknown_names_are_refused(swept: tuple[Path, Table]) -> None:
    _, table = swept
    with pytest.raises(KnobError, match=r"several workloads, qa, caption: choose one with --at"):
        choose_workload(table, None)
    with pytest.raises(KnobError, match=r"--at must be a workload of the sweep, qa, caption; got 'video'"):
        choose_workload(table, "video")
    with pytest.raises(KnobError, match=r"tasks are colour, count, detail, got 'smell'"):
        check_constraints(table, [Constraint(ACCURACY, 0.5, task="smell")], "qa")
    with pytest.raises(KnobError, match=r"bounded once"):
        check_constraints(table, [Constraint(LATENCY, 5.0), Constraint(LATENCY, 6.0)], "qa")
    untimed = replace(table, points=tuple(replace(point, latency={}) for point in table.points))
    with pytest.raises(KnobError, match=r"no setting of this sweep has a measured memory"):
        check_constraints(untimed, [Constraint(MEMORY, 5.0)], "qa")
    with pytest.raises(KnobError, match=r"refers to the full setting"):
        Constraint(LATENCY, 0.5, relative=True).limit(untimed, "qa")


@pytest.mark.parametrize("budget", [1.0, 391.0, 500.0, 1234.5, 1e9])
def test_a_lookup_gives_the_most_accurate_within_the_tolerance(swept: tuple[Path, Table], budget: float) -> None:
    _, table = swept
    rows = [(point.name, _numbers(point, "qa")) for point in table.points]
    within = [(-r["accuracy"], r["latency"], name) for name, r in rows if r["latency"] <= budget * 1.05]
    entry, fits = make_lookup(table, LATENCY, "qa").setting(budget)
    assert fits == bool(within)
    quickest = min((r["latency"], -r["accuracy"], name) for name, r in rows)[2]
    assert entry.name == (min(within)[2] if within else quickest)


def test_the_command_answers_refuses_and_writes(swept: tuple[Path, Table], tmp_path: Path) -> None:
    directory, table = swept
    said = json.loads(knobcast("pick", directory, "--at", "qa", "--latency-ms", "0.6x", "--json").out)
    wanted = pick(table, [Constraint(LATENCY, 0.6, relative=True)], "qa")
    assert wanted.best
    assert said["best"]["name"] == wanted.best.name
    assert said["best"]["latency_ms"] == wanted.best.latency["qa"].total_ms
    assert [other["name"] for other in said["runners_up"]] == [point.name for point in wanted.runners_up]
    done = knobcast("pick", directory, "--at", "qa", "--latency-ms", "1")
    assert done.code == 1
    assert "none of 75 settings fits" in done.out
    ruled = knobcast("pick", directory, "--at", "qa", "--rule", "lookup", "--latency-ms", "500").out
    assert "lookup: most accuracy at qa with latency <= 500 ms, 0.05 of it more allowed" in ruled
    file = tmp_path / "lookup.json"
    assert knobcast("pick", directory, "--at", "qa", "--lookup", file).code == 0
    entries = json.loads(file.read_text())["entries"]
    assert [e["name"] for e in entries] == [e.name for e in make_lookup(table, LATENCY, "qa").entries]
    refused = knobcast("pick", directory, "--at", "qa", "--lookup", file)
    assert refused.code == 1
    assert "--force" in refused.said


@pytest.mark.parametrize("name", ["sweep.json", "samples.json", "answers/{}.json", "pictures.json"])
def test_what_is_no_json_says_to_sweep_again(swept: tuple[Path, Table], tmp_path: Path, name: str) -> None:
    """Nothing of a sweep was downloaded."""
    synthetic_sweep(tmp_path)
    file = tmp_path / name.format(swept[1].full)
    file.write_text('{"half": ')
    done = knobcast("report", tmp_path, "--no-plots")
    assert done.code == 1
    assert f"{file.name}: it must be JSON" in done.said
    assert "un the sweep again" in done.said
    assert "Download" not in done.said


def test_a_damaged_sweep_is_named(swept: tuple[Path, Table], tmp_path: Path) -> None:
    synthetic_sweep(tmp_path)
    (tmp_path / "answers" / f"{swept[1].full}.json").write_text("{}")
    with pytest.raises(VerificationError, match=r"answers.*Remove it and run the sweep again"):
        Differences(tmp_path).between(swept[1].full, swept[1].points[0].name)
