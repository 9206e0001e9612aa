"""The bars of a full-size export: MolmoE-1B's sizes in noise, 12 of 16 blocks, verified block by block.

Export and `verify` run in processes of their own, which are told that no memory is free: on any machine both then work
as for models that don't fit. Reading and writing 14 GB, time follows the disk; memory is what must stay bounded.
"""

import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from tests.bench_scoring import write_noise_molmoe
from tests.support.paths import ROOT
from transform.depth import drop_blocks
from transform.forms import form_named
from transform.packed_layout import packed_bytes, packing_for
from transform.read import read_checkpoint
from transform.sizes import weight_bytes

DROP = (5, 8, 10, 12)
EXPORT = """
import runpy, sys
import transform.machine
transform.machine.free_memory = lambda: 0
runpy.run_module("export.command.main", run_name="__main__")
"""


def bench_export(work: Path, form: str) -> dict[str, Any]:
    """One export in `form`, from the checkpoint that all bars of noise share; what it wrote is removed."""
    source, out = work / "noise", work / f"full-size-{form}"
    if not (source / "config.json").is_file():
        write_noise_molmoe(source)
    command = [
        sys.executable, "-c", EXPORT, "export", str(source), "--k", "4", "--drop-blocks", ",".join(map(str, DROP)),
        "--tokens", "432", "--form", form, "--json", "--out", str(out),
    ]  # fmt: skip
    start = time.perf_counter()
    manifest, peak = run_watched(command)
    seconds = time.perf_counter() - start
    compared = {}
    if form == "cpu":  # others quantise, which has a time of its own
        baseline = copied_and_summed(out, work / "cp")
        compared = {"cp_sync_sha256sum_seconds": round(baseline, 1), "ratio": round(seconds / baseline, 2)}
    checked = manifest["verification"]
    bars = ["peak_anonymous_mb <= 4096", "verify_peak_anonymous_mb <= 4096", *(["ratio <= 5"] if compared else [])]
    found = {
        "mode": checked["mode"],
        "blocks": len(manifest["blocks_kept"]),
        "seconds": round(seconds),
        **compared,
        "peak_anonymous_mb": round(peak / 2**20),
        "bytes_on_disk": sum(file.stat().st_size for file in out.iterdir()),
        "weight_bytes": manifest["bytes"],
        "static_vs_dynamic": max(checked["static_vs_dynamic"].values()),
        "onnx_vs_torch": max(checked["onnx_vs_torch"][part] for part in ("prefill", "decode", "padded")),
        "largest_value": round(checked["onnx_vs_torch"]["largest_value"], 2),
    }
    start = time.perf_counter()
    _, peak = run_watched([sys.executable, "-c", EXPORT, "verify", str(out), "--json"])
    found |= {"verify_seconds": round(time.perf_counter() - start), "verify_peak_anonymous_mb": round(peak / 2**20)}
    shutil.rmtree(out)
    if form == "int4":
        whole = read_checkpoint(source)
        kept = drop_blocks(whole, manifest["blocks_kept"])
        found["bytes_over_bfloat16_same_blocks"] = round(manifest["bytes"] / weight_bytes(kept), 4)
        # by the headers alone: all 16 blocks aren't written
        packing = packing_for(form_named(form), whole)
        assert packing is not None
        found["bytes_over_bfloat16_all_blocks"] = round(packed_bytes(whole, packing) / weight_bytes(whole), 4)
        bars.append("bytes_over_bfloat16* <= 0.30")
    return found | {"bar": ", ".join(bars)}


def copied_and_summed(directory: Path, copy: Path) -> float:
    """Seconds of `cp`, `sync` and `sha256sum` of all its files: what no export can do without."""
    words = 'cp --reflink=never -r "$1" "$2" && sync "$2"/* "$2" && sha256sum "$2"/*'
    start = time.perf_counter()
    subprocess.run(["sh", "-c", words, "sh", str(directory), str(copy)], stdout=subprocess.DEVNULL, check=True)
    seconds = time.perf_counter() - start
    shutil.rmtree(copy)
    return seconds


def run_watched(command: list[str]) -> tuple[dict[str, Any], int]:
    """(the JSON object a process prints, the peak of anonymous bytes of the process and its children)."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:  # pipes could fill up
        process = subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=errors)
        peak = 0
        while process.poll() is None:
            peak = max(peak, anonymous_bytes(process.pid))
            time.sleep(0.02)
        out.seek(0)
        errors.seek(0)
        if process.returncode:
            raise SystemExit(f"failed: {' '.join(command)}\n{errors.read()}")
        return json.loads(out.read()), peak


def anonymous_bytes(pid: int) -> int:
    """Resident bytes that no file stands behind, of a process and all below it."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:  # it ended meanwhile
        return 0
    own = next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon")), 0)
    return own + sum(anonymous_bytes(int(child)) for child in children)


def bars(work: Path) -> list[tuple[str, Callable[[], dict[str, Any]]]]:
    """For tests/bench.py."""
    return [(f"export_full_size_{form}", partial(bench_export, work, form)) for form in ("cpu", "int4")]
