"""`make faults`: kills runs at every call that changes a file, and more; a table, and 1 for any broken promise.

    python -m tests.faults.run [--seed 1] [--points 50] [--only derive] [--json FILE]

Without --points: every call, calls in their middle, times, full disks, and the gate at times. With it: so many of all
these, drawn by the seed.
"""

import argparse
import json
import random
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from export.publish import web
from tests.faults import library
from tests.faults.campaigns import CAMPAIGNS, GATED, make_model, make_worlds
from tests.faults.points import Bench, Point, Result, can_mount, must_run
from tests.faults.servers import end_all, lacking
from tests.faults.servers import warm as warm_clients

TORN, TIMES, FULL, MOUNTED, GATE_TIMES, FAILING = 10, 8, 10, 6, 8, 6  # per campaign

# kinds of points: columns of the table
KINDS = {
    "call": "calls", "torn": "in their middle", "time": "times", "server": "the server's end", "interrupt": "Ctrl-C",
    "error": "I/O error", "read-only": "read-only", "disk": "full: quota", "mounted": "full: tmpfs",
}  # fmt: skip


def main(arguments: Sequence[str]) -> int:
    """Exit code: 0 all kept, 1 something wasn't, 2 it can't be tried here."""
    parser = argparse.ArgumentParser(prog="make faults")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--points", type=int, help="only so many, drawn by the seed")
    parser.add_argument("--only", default="", help="campaigns whose name contains this, or one of A|B|…")
    parser.add_argument("--json", type=Path, help="write every point there")
    options = parser.parse_args(arguments)
    if reason := library.missing():
        print(f"{reason}.", file=sys.stderr)
        return 2
    home = library.loaded(arguments, "tests.faults.run")
    results: list[Result] = []
    try:
        for result in campaign_results(home, options):
            results.append(result)
            if options.json:  # what is stopped has said what it found
                rows = [{**vars(r), "point": str(r.point), "kind": r.point.kind} for r in results]
                options.json.write_text(json.dumps(rows, indent=1) + "\n", "utf-8")
    finally:
        end_all()
        shutil.rmtree(home)
    print(table(results))
    broken = [result for result in results if result.problems]
    for result in broken:
        print(f"{result.campaign}, {result.point}, {result.state}: {'; '.join(result.problems)}")
    return int(bool(broken))


def campaign_results(home: Path, options: argparse.Namespace) -> Iterator[Result]:
    """All points, one campaign after the other."""
    warm()
    model, folder = home / "model", home / "run" / "folder"
    (home / "run").mkdir()

    make_model(model)
    draw = random.Random(options.seed)
    chosen = [
        campaign for campaign in (*CAMPAIGNS, GATED) if any(word in campaign.name for word in options.only.split("|"))
    ]
    for kind in sorted({campaign.server for campaign in chosen}):
        if reason := lacking(kind):
            print(f"{reason}; the campaigns that ask one are left out", file=sys.stderr)
            chosen = [campaign for campaign in chosen if campaign.server != kind]
    worlds = make_worlds(model, home / "worlds", partial(must_run, folder), {campaign.server for campaign in chosen})
    if options.points is not None:
        chosen = [campaign for campaign in chosen if campaign is not GATED]
    for number, campaign in enumerate(chosen):
        bench = Bench.of(campaign, model, worlds[campaign.before], folder)
        points = times(bench, draw, GATE_TIMES) if campaign is GATED else every_point(bench, draw)
        if options.points is not None:
            share = (options.points - number - 1) // len(chosen) + 1
            points = draw.sample(points, min(share, len(points)))
        print(f"{campaign.name}: {bench.calls} calls, {len(points)} points", file=sys.stderr, flush=True)
        for point in points:
            result = bench.try_point(point)
            if result.problems:
                print(f"  {point}: {'; '.join(result.problems)}", file=sys.stderr, flush=True)
            yield result


def every_point(bench: Bench, draw: random.Random) -> list[Point]:
    """Every call; then drawn ones in their middle, times, and sizes of a disk."""
    points = [Point(call=call) for call in range(1, bench.calls + 1)]
    points += [Point(call=draw.randint(1, bench.calls), way="torn") for _ in range(TORN)]
    points += [Point(call=draw.randint(1, bench.calls), way=w) for w in ("interrupt", "error") for _ in range(FAILING)]
    points += [Point(call=1, way="read-only")]
    writes = not (bench.campaign.server and bench.campaign.goes_on)  # else it is the server that does
    if writes:
        points += [Point(space=int(bench.size * draw.random() ** 2)) for _ in range(FULL - 1)] + [Point(space=0)]
    if can_mount(bench.folder.parent):
        mounted = MOUNTED if writes else MOUNTED + FULL
        points += [Point(disk=4096 + int(bench.size * draw.random() ** 2)) for _ in range(mounted)]
    if bench.campaign.server:
        points += [replace(point, server=True) for point in times(bench, draw, TIMES)]
    return points + times(bench, draw, TIMES)


def times(bench: Bench, draw: random.Random, count: int) -> list[Point]:
    """Parts of the time that an undisturbed run took."""
    return [Point(seconds=max(0.001, bench.seconds * draw.random())) for _ in range(count)]


def warm() -> None:
    """Import all that commands do, once: children are forked."""
    import onnx  # noqa: F401
    import onnxruntime  # noqa: F401
    import torch
    import transformers  # noqa: F401

    import importance.score  # noqa: F401

    torch.set_num_threads(1)
    web.WAITS = (0.05,) * len(web.WAITS)  # what lasts is known sooner
    warm_clients()


def table(results: Sequence[Result]) -> str:
    """A row per campaign and kind of point."""
    heads = [*KINDS.values(), "killed", "old", "new", "between", "broken"]
    rows = [f"| campaign | {' | '.join(heads)} |", "|---" * (1 + len(heads)) + "|"]
    names = list(dict.fromkeys(result.campaign for result in results))
    for name in [*names, "**together**"]:
        mine = [r for r in results if r.campaign == name or name not in names]
        kinds = [sum(r.point.kind == kind for r in mine) for kind in KINDS]
        states = [sum(r.state == state for r in mine) for state in ("old", "new", "between")]
        numbers = [*kinds, sum(r.killed for r in mine), *states, sum(bool(r.problems) for r in mine)]
        rows.append(f"| {name} | " + " | ".join(map(str, numbers)) + " |")
    return "\n".join(rows)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
