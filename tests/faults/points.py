"""One point: a run that is killed or finds the disk full, what it left, and the run after it."""

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults import library
from tests.faults.campaigns import Campaign
from tests.faults.servers import CACHE, Served, is_storage, named, prepare, serving, torn_tag

Tree = dict[str, str]
SHELF = "shelf"  # where a server has its files


@dataclass(frozen=True)
class Ended:
    """How a run ended: exit code (negative: the signal), what it printed, calls that were counted, seconds."""

    code: int
    printed: str
    calls: int
    seconds: float


@dataclass(frozen=True)
class Point:
    """Where a run is stopped: at a call, in a `way` of `library.WAYS`; after some seconds, by its own end or the
    registry's (`server`); or by a full disk: when it has written `space` bytes below its folder, or where a file system
    has room for `disk` bytes beside what was there."""

    call: int = 0
    way: str = "call"
    seconds: float = 0.0
    server: bool = False
    space: int = -1
    disk: int = 0

    @property
    def kind(self) -> str:
        """In one word."""
        if self.disk or self.space >= 0:
            return "mounted" if self.disk else "disk"
        return ("server" if self.server else "time") if self.seconds else self.way

    def __str__(self) -> str:
        if self.space >= 0:
            return f"{self.space:,} bytes fit"
        if self.disk:
            return f"a file system of {self.disk:,} bytes"
        if self.seconds:
            return f"{self.seconds:.3f} s" + ", the registry" * self.server
        return f"call {self.call}, {self.way}"


@dataclass
class Result:
    """State: old, new, or between (neither, and it verifies); problems are what no promise allows."""

    campaign: str
    point: Point
    killed: bool
    state: str = "old"
    problems: list[str] = field(default_factory=list)


def run_command(arguments: list[str], folder: Path, point: Point | None = None, served: Served | None = None) -> Ended:
    """A command in a forked child of this warm process, its faults injected below `folder`, and where it talks to a
    server."""
    return begin(arguments, folder, point, served).end(point, served)


def must_run(folder: Path, arguments: list[str], served: Served | None) -> None:
    """An undisturbed one that is needed; RuntimeError with what it printed where it fails."""
    ended = run_command(arguments, folder, None, served)
    if ended.code:
        raise RuntimeError(ended.printed)


@dataclass(frozen=True)
class Begun:
    """A forked child, what it prints, where it says how many calls were counted, and when it began."""

    pid: int
    log: Path
    pipe: int
    start: float

    def end(self, point: Point | None = None, served: Served | None = None) -> Ended:
        """When it ends by itself, or is ended as a point says."""
        if point is not None and point.seconds:
            time.sleep(max(0.0, self.start + point.seconds - time.monotonic()))
            if point.server and served:
                served.end()
            else:
                os.kill(self.pid, signal.SIGKILL)
        counted = os.read(self.pipe, 100)
        os.close(self.pipe)
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return Ended(code, self.log.read_text("utf-8", "replace"), int(counted or 0), time.monotonic() - self.start)


def begin(
    arguments: list[str], folder: Path, point: Point | None, served: Served | None, name: str = "printed"
) -> Begun:
    """Start it; `name`: of the file beside the folder that has what it prints."""
    log = folder.parent.parent / name
    read, write = os.pipe()
    start = time.monotonic()
    pid = os.fork()
    if pid == 0:
        os._exit(_child(arguments, folder, point, log, write, served))
    os.close(write)
    return Begun(pid, log, read, start)


def _child(arguments: list[str], folder: Path, point: Point | None, log: Path, pipe: int, served: Served | None) -> int:
    from export.command.main import main

    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(out, stream)
    sys.argv = ["knobcast", *arguments]
    point = point or Point()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background it is ignored
    if served:
        prepare(served, folder)
    library.arm(folder, point.call, point.way, point.space, served is not None)
    try:
        main()
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 70
    for flushed in (sys.stdout, sys.stderr):
        flushed.flush()
    os.write(pipe, str(library.calls()).encode())
    return code


def tree(folder: Path) -> Tree:
    """{relative name: digest of a file, or what else it is}; of a server what it names; nothing of the Hub client's
    cache."""
    found, storages = {}, []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if name == CACHE or name.startswith(f"{CACHE}/"):
            continue
        if path.is_dir() and is_storage(path):
            storages.append(path)
        if path.is_symlink():
            found[name] = f"to {path.readlink()}"
        else:
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
    for storage in storages:
        found = {name: value for name, value in found.items() if not (folder / name).is_relative_to(storage)}
        place = storage.relative_to(folder).as_posix()
        found |= {f"{place}/{name}": digest for name, digest in named(storage).items()}
    return found


def part(whole: Tree, target: str) -> Tree:
    """What of a tree belongs to a target."""
    return {name: value for name, value in whole.items() if name == target or name.startswith(f"{target}/")}


def shown(whole: Tree) -> Tree:
    """What isn't hidden: derive stages inside its target, a sweep locks its folder."""
    return {name: value for name, value in whole.items() if "/." not in name}


@dataclass(frozen=True)
class Bench:
    """A campaign with its folder, the world before, and the tree and size after a run that nothing disturbed."""

    campaign: Campaign
    model: Path
    world: Path
    folder: Path
    old: Tree
    new: Tree
    calls: int
    seconds: float
    size: int

    @classmethod
    def of(cls, campaign: Campaign, model: Path, world: Path, folder: Path) -> "Bench":
        """Run it once; raises RuntimeError where that fails."""
        renew(world, folder)
        old = tree(folder)
        with serving(campaign.server, folder / SHELF) as served:
            ended = run_command(campaign.arguments(model, folder, port(served)), folder, None, served)
        if ended.code:
            raise RuntimeError(f"{campaign.name}: fails by itself: {ended.printed[-2000:]}")
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        return cls(campaign, model, world, folder, old, tree(folder), ended.calls, ended.seconds, size)

    def try_point(self, point: Point) -> Result:
        """Everything that is promised, at one point."""
        if not point.disk:
            return self._tried(point)
        size = point.disk + sum(-(-p.stat().st_size // 4096) * 4096 + 4096 for p in self.world.rglob("*"))
        with mounted(self.folder.parent, size):
            return self._tried(point)

    def _tried(self, point: Point) -> Result:
        renew(self.world, self.folder)
        campaign, target = self.campaign, self.campaign.target
        with serving(campaign.server, self.folder / SHELF) as served:
            ended = run_command(campaign.arguments(self.model, self.folder, port(served)), self.folder, point, served)
        result = Result(campaign.name, point, ended.code == -signal.SIGKILL)
        left = tree(self.folder)
        states = {name: shown(part(whole, target)) for name, whole in (("new", self.new), ("old", self.old))}
        seen_of = shown(part(left, target))
        result.state = next((name for name, value in states.items() if seen_of == value), "between")
        if result.state == "between" and not campaign.between:
            result.problems.append("neither old nor new")
        if campaign.between and (why := campaign.between(self.folder / target)):
            result.problems.append(f"verify refuses it: {why}")
        allowed = {target, *campaign.beside}
        seen = {name.split("/")[0] for name in left if not name.startswith(".")} - allowed
        if seen:
            result.problems.append(f"visible beside it: {', '.join(sorted(seen))}")
        if "Traceback" in ended.printed:
            result.problems.append(f"traceback: {ended.printed.strip().splitlines()[-1][:200]}")
        if point.space >= 0 or point.disk:
            self._check_refusal(ended, left, result)
        if point.kind in ("interrupt", "error", "read-only", "server"):
            self._check_failure(ended, result)
        if point.disk:
            subprocess.run(["mount", "-o", "remount,size=1g", str(self.folder.parent)], check=True)
        if point.disk and torn_tag(self.folder / SHELF):
            return result  # the registry's own damage
        with serving(campaign.server, self.folder / SHELF) as served:
            words = campaign.arguments(self.model, self.folder, port(served), force=result.state == "new")
            again = run_command(words, self.folder, None, served)
        if again.code:
            result.problems.append(f"the run after it fails: {again.printed.strip()[-300:]}")
        elif (after := tree(self.folder)) != self.new:
            odd = sorted(name for name in after.keys() | self.new.keys() if after.get(name) != self.new.get(name))
            result.problems.append(f"the run after it leaves others: {', '.join(odd[:5])}")
        return result

    def _check_refusal(self, ended: Ended, left: Tree, result: Result) -> None:
        """A full disk is an error in words, or all fitted; what was there stays, and nothing else does."""
        if ended.code not in (0, 1):
            result.problems.append(f"exit code {ended.code}: {ended.printed.strip()[-200:]}")
        told = "free" in ended.printed or "full" in ended.printed
        theirs = self.campaign.server and self.campaign.goes_on  # whose disk it is: it says what it likes
        if ended.code == 1 and not told and not theirs:
            result.problems.append(f"refused in other words: {ended.printed.strip()[-200:]}")
        hidden = [name for name in left if "/." in f"/{name}" and name not in self.old | self.new]
        if hidden:
            result.problems.append(f"left by a run that ended by itself: {', '.join(hidden[:3])}")

    def _check_failure(self, ended: Ended, result: Result) -> None:
        """What the system refuses is told in words; Ctrl-C has its exit code; what comes too late to matter is none."""
        allowed = (0, 1, 130) if result.point.way == "interrupt" else (0, 1)
        if ended.code not in allowed:
            result.problems.append(f"exit code {ended.code}: {ended.printed.strip()[-200:]}")


@contextmanager
def mounted(place: Path, size: int) -> Iterator[None]:
    """A file system in memory of so many bytes at a folder."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)], check=True, capture_output=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(place)], check=True)


def can_mount(place: Path) -> bool:
    """Whether this user may mount file systems."""
    try:
        with mounted(place, 4096):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False


def renew(world: Path, folder: Path) -> None:
    """The folder as it is before a command."""
    if folder.exists():
        shutil.rmtree(folder)
    shutil.copytree(world, folder, symlinks=True)


def port(served: Served | None) -> int | None:
    """Where a server listens."""
    return served.port if served else None
