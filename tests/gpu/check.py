"""Verify and measure on a CUDA machine: `make gpu-check`, or `python -m tests.gpu.check`.

Every section runs in a process of its own, so that a crash or a poisoned device costs that section alone. Results are
written after each; `--resume` goes on with what is missing. Exit codes: 0 all is right, 1 a check failed, 2 no CUDA.
`--dry-cpu` runs all that a CPU can, at tiny sizes, to test this script.
"""

import argparse
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tests.gpu.report import FAILED, as_lines, update_page
from tests.gpu.rows import Context, NotAvailableError, Row, load_libraries

ROOT = Path(__file__).parents[2]
RESULTS, PAGE = ROOT / "docs" / "gpu.json", ROOT / "docs" / "gpu.md"
BUDGET = 900.0  # seconds


class Section(NamedTuple):
    """`function` of a module of this package gives rows; it is stopped after `seconds`."""

    name: str
    title: str
    function: str
    seconds: float


SECTIONS = (
    Section("environment", "The machine", "environment.measure", 60),
    Section("operators", "Self-tests of operators", "layer.measure_operators", 60),
    Section("layer", "One layer at real widths against PyTorch", "layer.measure", 120),
    Section("model", "The embedded model against PyTorch", "model.measure", 120),
    Section("default", "The default form on the device", "default.measure", 120),
    Section("quantised", "QMoE on the device (facts)", "quantised.measure", 60),
    Section("speed", "Decode time against k and depth", "speed.measure", 300),
    Section("static", "Static graphs and captured CUDA graphs", "static.measure", 240),
    Section("commands", "Commands", "model.measure_commands", 120),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, run, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=[s.name for s in SECTIONS], help="this section; repeatable")
    parser.add_argument("--resume", action="store_true", help="keep the sections of --out that are done")
    parser.add_argument("--dry-cpu", action="store_true", help="without a GPU, at tiny sizes; writes no page")
    parser.add_argument("--out", type=Path, help="default: docs/gpu.json; --dry-cpu writes only where it is told")
    parser.add_argument("--work", type=Path, help="scratch space that is kept; default: a temporary directory")
    parser.add_argument("--budget", type=float, default=BUDGET, help="seconds for all sections")
    parser.add_argument("--section", choices=[s.name for s in SECTIONS], help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.section:
        return run_section(given.section, Context(not given.dry_cpu, given.work), given.out)
    if not given.dry_cpu:
        from tests.gpu.environment import missing

        if lacks := missing():
            print("The GPU checks need a machine with CUDA; this one lacks:", *lacks, sep="\n- ", file=sys.stderr)
            print("docs/gpu.md says more; `--dry-cpu` tests the script itself.", file=sys.stderr)
            return 2
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    out = given.out or (None if given.dry_cpu else RESULTS)
    sections = [s for s in SECTIONS if not given.only or s.name in given.only]
    with tempfile.TemporaryDirectory(prefix="knobcast-gpu-") as scratch:
        work = (given.work or Path(scratch)).resolve()
        work.mkdir(parents=True, exist_ok=True)
        return check_all(sections, Context(not given.dry_cpu, work), out, given.resume, given.budget)


def check_all(sections: Sequence[Section], ctx: Context, out: Path | None, resume: bool, budget: float) -> int:
    """Run the sections one after the other; the exit code."""
    began = time.monotonic()
    results: dict[str, Any] = {"schema": 1, "dry": not ctx.cuda, "sections": {}}
    if out is not None and out.is_file() and (resume or len(sections) < len(SECTIONS)):
        results["sections"] = json.loads(out.read_text())["sections"]
    for section in sections:
        if resume and results["sections"].get(section.name, {}).get("status") == "done":
            continue
        left = budget - (time.monotonic() - began)
        found = isolated(section, ctx, min(section.seconds, left)) if left > 5 else out_of_time(section)
        results["sections"][section.name] = found
        print(*as_lines(section.title, found), sep="\n", flush=True)
        if out is not None:
            order = [s.name for s in SECTIONS if s.name in results["sections"]]
            results["sections"] = {name: results["sections"][name] for name in order}
            out.write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n")
    if out == RESULTS:
        update_page(PAGE, results, {s.name: s.title for s in SECTIONS})
    failed = [s.name for s in sections if results["sections"][s.name]["status"] in FAILED]
    print(f"\nfailed: {', '.join(failed)}" if failed else "\nall checks passed")
    return 1 if failed else 0


def out_of_time(section: Section) -> dict[str, Any]:
    """A section that was not begun; not a failure, but nothing that --resume keeps."""
    return {"status": "skipped", "reason": f"no time was left for {section.name}", "seconds": 0.0, "rows": []}


def isolated(section: Section, ctx: Context, seconds: float) -> dict[str, Any]:
    """Run a section in a process; its rows up to wherever it came."""
    rows, log = ctx.work / f"{section.name}.jsonl", ctx.work / f"{section.name}.log"
    rows.unlink(missing_ok=True)
    command = [sys.executable, "-m", "tests.gpu.check", "--section", section.name, "--out", str(rows)]
    command += ["--work", str(ctx.work), *([] if ctx.cuda else ["--dry-cpu"])]
    began, died = time.monotonic(), None
    with log.open("wb") as errors:
        process = subprocess.Popen(command, cwd=ROOT, stdout=errors, stderr=errors, start_new_session=True)
        try:
            if code := process.wait(seconds):
                said = log.read_text(errors="replace").strip()[-300:]
                died = f"its process ended with {code}: {said}"
        except subprocess.TimeoutExpired:
            died = f"it was stopped after {seconds:.0f} s"
        finally:  # also where this process is asked to end: a section left alone would be measured with the next
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)  # with the commands that it called
                process.wait()
    lines = [json.loads(line) for line in rows.read_text().splitlines()] if rows.is_file() else []
    end = lines.pop() if lines and "status" in lines[-1] else {"status": "failed", "reason": died or "it gave no end"}
    return {**end, "seconds": round(time.monotonic() - began, 1), "rows": lines}


def run_section(name: str, ctx: Context, out: Path) -> int:
    """In the section's own process: rows as they come, one JSON object per line, the status last."""
    section = next(s for s in SECTIONS if s.name == name)
    if ctx.cuda:
        load_libraries()
    with out.open("w") as file:
        for entry in entries(section, ctx):
            file.write(json.dumps(entry, ensure_ascii=False) + "\n")
            file.flush()
    return 0


def entries(section: Section, ctx: Context) -> Iterator[dict[str, Any]]:
    """The rows, then the status with a reason where there is one."""
    module, _, function = section.function.partition(".")
    failed = 0
    try:
        given: Iterator[Row] = getattr(importlib.import_module(f"tests.gpu.{module}"), function)(ctx)
        for row in given:
            failed += not row.passed
            yield row.as_dict()
    except NotAvailableError as error:
        yield {"status": "not available", "reason": str(error)}
    except Exception as error:  # whatever goes wrong, the other sections go on
        yield {"status": "failed", "reason": f"{type(error).__name__}: {error}"[:600]}
    else:
        yield {"status": "wrong", "reason": f"{failed} beyond their limits"} if failed else {"status": "done"}


if __name__ == "__main__":
    sys.exit(main())
