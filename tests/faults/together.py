"""Two runs at once on one place: pushes of one version, of two with one alias, a pull beside a push.

    python -m tests.faults.together [--rounds 10] [--seed 1] [--only oci] [--json FILE]

Each begins after a drawn part of the other's time. What is named must be whole at the end, a pull has one whole version
or none, at least one push succeeds, a loser says so in words, and the same commands, one after the other, succeed.
"""

import argparse
import json
import random
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from tests.faults import library
from tests.faults.campaigns import SERVED, make_model, make_worlds
from tests.faults.points import SHELF, Tree, begin, must_run, part, port, renew, run_command, tree
from tests.faults.run import warm
from tests.faults.servers import Served, end_all, lacking, serving
from tests.faults.sound import published

MODULE = "tests.faults.together"
PLACES = {
    "dir": ("dir:{s}/shelf", "dir:{s}/shelf/edge", "on a shelf"),
    "file": ("file://{s}/shelf", "file://{s}/shelf/edge", "in a store"),
    "oci": (SERVED["oci"][0], f"{SERVED['oci'][0]}:edge", "registered"),
    "hf": (SERVED["hf"][0], f"{SERVED['hf'][0]}@edge", "on a hub"),
    "mlflow": (SERVED["mlflow"][0], f"{SERVED['mlflow'][0]}/edge", "tracked"),
}
PUSH, OTHER, PULL = "push {s}/v {to} --alias edge", "push {s}/w {to} --alias edge", "pull {at} {s}/out"
PAIRS = {
    "one version twice": (PUSH, PUSH),
    "two versions, one alias": (PUSH, OTHER),
    "a pull while its version is pushed again": (PULL, OTHER),
    "a pull while the alias moves": (PULL, PUSH),
}


@dataclass
class Round:
    """What two runs left; `ended`: their exit codes; `said`: why one failed."""

    place: str
    pair: str
    ended: tuple[int, int] = (0, 0)
    said: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def main(arguments: Sequence[str]) -> int:
    """Exit code: 0 all kept, 1 something wasn't, 2 it can't be tried here."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=10, help="of each pair at each place")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default="", help="places whose name contains this")
    parser.add_argument("--json", type=Path, help="write every round there")
    options = parser.parse_args(arguments)
    if reason := library.missing():
        print(f"{reason}.", file=sys.stderr)
        return 2
    home = library.loaded(arguments, MODULE)
    try:
        rounds = list(all_rounds(home, options))
    finally:
        end_all()
        shutil.rmtree(home)
    print(table(rounds))
    if options.json:
        options.json.write_text(json.dumps([vars(one) for one in rounds], indent=1) + "\n", "utf-8")
    return int(any(one.problems for one in rounds))


def all_rounds(home: Path, options: argparse.Namespace) -> Iterator[Round]:
    """Every pair at every place that can be had here."""
    warm()
    model, folder = home / "model", home / "run" / "folder"
    (home / "run").mkdir()

    make_model(model)
    chosen = [name for name in PLACES if options.only in name and not lacking(name if name in SERVED else "")]
    worlds = make_worlds(model, home / "worlds", partial(must_run, folder), {name for name in chosen if name in SERVED})
    draw = random.Random(options.seed)
    for place in chosen:
        world = worlds[PLACES[place][2]]
        shutil.copytree(worlds["variant"] / "v", world / "w")  # what is there already
        for pair in PAIRS:
            seconds = 0.3
            for _ in range(options.rounds):
                renew(world, folder)
                found = Round(place, pair)
                seconds = _round(found, folder, draw.uniform(-seconds, seconds))
                print(f"{place}, {pair}: {found.ended} {'; '.join(found.problems)}", file=sys.stderr, flush=True)
                yield found


def _round(found: Round, folder: Path, after: float) -> float:
    """One; returns how long the longer run took. `after`: seconds from the first to the second, or from that to it."""
    kind = found.place if found.place in SERVED else ""
    with serving(kind, folder / SHELF) as served:
        words = [_filled(command, found.place, folder, served) for command in PAIRS[found.pair]]
        first, second = (0, 1) if after >= 0 else (1, 0)
        begun = {first: begin(words[first], folder, None, served, f"printed-{first}")}
        time.sleep(abs(after))
        begun[second] = begin(words[second], folder, None, served, f"printed-{second}")
        ended = [begun[number].end() for number in (0, 1)]
    found.ended = (ended[0].code, ended[1].code)
    for one, command in zip(ended, words, strict=True):
        if "Traceback" in one.printed:
            found.problems.append(f"traceback: {one.printed.strip().splitlines()[-1][:200]}")
        elif one.code not in (0, 1):
            found.problems.append(f"exit code {one.code}")
        elif one.code:
            found.said.append(f"{command[0]}: {one.printed.strip().splitlines()[-1][:300]}")
    if all(one.code for one, command in zip(ended, words, strict=True) if command[0] == "push"):
        found.problems.append("no push succeeds")
    if why := published(folder / SHELF):
        found.problems.append(f"half-published: {why}")
    if hidden := [name for name in tree(folder) if "/." in f"/{name}"]:
        found.problems.append(f"left: {', '.join(hidden[:3])}")
    pulled = part(tree(folder), "out")
    if pulled and not any(_same(pulled, folder, name) for name in ("v", "w")):
        found.problems.append("what was pulled is neither version")
    with serving(kind, folder / SHELF) as served:
        for template in PAIRS[found.pair]:
            again = [*_filled(template, found.place, folder, served), *(["--force"] if template == PULL else [])]
            ran = run_command(again, folder, None, served)
            if ran.code:
                found.problems.append(f"the run after it fails: {ran.printed.strip()[-200:]}")
    return max(one.seconds for one in ended)


def _filled(command: str, place: str, folder: Path, served: Served | None) -> list[str]:
    to, at, _ = PLACES[place]
    return [word.format(s=folder, p=port(served)) for word in command.replace("{to}", to).replace("{at}", at).split()]


def _same(pulled: Tree, folder: Path, name: str) -> bool:
    own = part(tree(folder), name)
    return [*pulled.values()] == [*own.values()]


def table(rounds: Sequence[Round]) -> str:
    """A row per pair and place."""
    rows = ["| place | two at once | rounds | both succeed | one says why not | broken |", "|---" * 6 + "|"]
    for place, pair in dict.fromkeys((one.place, one.pair) for one in rounds):
        mine = [one for one in rounds if (one.place, one.pair) == (place, pair)]
        both, broken = sum(one.ended == (0, 0) for one in mine), sum(bool(one.problems) for one in mine)
        rows.append(f"| {place} | {pair} | {len(mine)} | {both} | {len(mine) - both} | {broken} |")
    said = Counter(text for one in rounds for text in one.said)
    return "\n".join([*rows, *(f"{count}: {text}" for text, count in said.most_common())])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
