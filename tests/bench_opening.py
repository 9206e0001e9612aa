"""The bars of opening and of the gate's own process: processor time on the embedded model, contestants in turns."""

import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import onnxruntime

from export.gate.as_user import check_as_user
from export.run.providers import CPU, SESSION_ATTRIBUTES
from export.run.session import open_session
from export.run.session_options import session_options
from export.variant import export_variant
from tests.support.paths import ROOT
from transform.forms import form_named
from transform.knobs import Knobs
from transform.plan import make_plan
from transform.read import read_checkpoint

TURNS = 7


def variant(work: Path, form: str, purpose: str) -> Path:
    """The embedded model with k=4, blocks 0 to 11 and 432 tokens, unverified."""
    plan = make_plan(
        read_checkpoint(ROOT / "artifacts" / "molmoe-nano"), Knobs(4, tuple(range(12)), 432, "source", form)
    )
    out = work / f"{purpose}-{form}"
    export_variant(plan, out, verify=False)
    return out


def bench_opening(work: Path, form: str) -> dict[str, Any]:
    """`text.onnx` opened as `io.json` says, against onnxruntime's own plan of reused buffers."""
    path = variant(work, form, "opening") / "text.onnx"
    options = SESSION_ATTRIBUTES["cpu"]
    seconds: dict[bool, list[float]] = {False: [], True: []}
    try:
        for _ in range(TURNS):
            for planned in seconds:
                options["enable_mem_reuse"] = planned
                start = time.process_time()
                open_session(path, {}, threads=1)
                seconds[planned].append(time.process_time() - start)
    finally:
        options["enable_mem_reuse"] = False
    ours, theirs = (statistics.median(seconds[planned]) for planned in (False, True))
    return {
        "onnxruntime": onnxruntime.__version__,
        "seconds": round(ours, 3),
        "planned_seconds": round(theirs, 3),
        "ratio": round(ours / theirs, 2),
        "bar": "ratio <= 0.65",
    }


def bench_opening_against_int4(work: Path) -> dict[str, Any]:
    """`text.onnx` in 16 bits against int4's, opened as `io.json` says and with onnxruntime's default options."""
    paths = {form: variant(work, form, "against") / "text.onnx" for form in ("cpu", "int4")}
    defaults = onnxruntime.SessionOptions()
    defaults.log_severity_level, defaults.intra_op_num_threads = 3, 1
    ways: dict[str, Callable[[str], object]] = {
        "io_json": lambda form: open_session(paths[form], session_options(form_named(form)), threads=1),
        "default": lambda form: onnxruntime.InferenceSession(str(paths[form]), defaults, providers=[CPU]),
    }
    seconds: dict[tuple[str, str], list[float]] = {(way, form): [] for way in ways for form in paths}
    for _ in range(TURNS):
        for way, form in seconds:
            start = time.process_time()
            ways[way](form)
            seconds[way, form].append(time.process_time() - start)
    found = {place: statistics.median(values) for place, values in seconds.items()}
    return {
        "onnxruntime": onnxruntime.__version__,
        **{f"{form}_{way}_seconds": round(value, 3) for (way, form), value in found.items()},
        **{f"{way}_ratio": round(found[way, "cpu"] / found[way, "int4"], 2) for way in ways},
        "bar": "io_json_ratio <= 1.5, default_ratio <= 1.5",
    }


def bench_user_process(work: Path) -> dict[str, Any]:
    """What loading and generating as users do adds to the main job, all processes counted."""

    def spent(job: Callable[[], object]) -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        job()
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    written = read_checkpoint(variant(work, "cpu", "user"))
    command = [
        sys.executable,
        "-m",
        "export.command.main",
        "export",
        "--k",
        "4",
        "--blocks",
        "12",
        "--tokens",
        "432",
        "--force",
    ]
    alone, whole = [], []
    for _ in range(3):
        alone.append(spent(lambda: check_as_user(written)))
        main_job = partial(
            subprocess.run, [*command, "--out", str(work / "job")], cwd=ROOT, check=True, capture_output=True
        )
        whole.append(spent(main_job))
    process, job = statistics.median(alone), statistics.median(whole)
    return {
        "seconds": round(process, 2),
        "main_job_seconds": round(job, 2),
        "added": round(process / (job - process), 2),
        "bar": "added <= 0.33",
    }


def bars(work: Path) -> list[tuple[str, Callable[[], dict[str, Any]]]]:
    """For tests/bench.py."""
    return [
        ("open_text_cpu", lambda: bench_opening(work, "cpu")),
        ("open_text_int4", lambda: bench_opening(work, "int4")),
        ("open_text_cpu_against_int4", lambda: bench_opening_against_int4(work)),
        ("user_process", lambda: bench_user_process(work)),
    ]
