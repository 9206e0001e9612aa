"""What the numbers depend on: processor, threads, versions; and how much memory this process takes. No host name."""

import os
import platform
import re
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TypedDict

PACKAGES = ("onnxruntime", "onnxruntime-gpu", "torch", "transformers", "numpy", "onnxscript", "onnx")
STATUS = {"peak_bytes": "VmHWM", "anonymous_bytes": "RssAnon"}  # in /proc/self/status, in kB


class MachineFacts(TypedDict):
    """What `machine_facts` finds; None: unknown, or no GPU is used."""

    cpu: str
    cores: int
    threads: int
    load: float | None
    gpu: str | None
    system: str
    python: str
    versions: dict[str, str]


def physical_cores() -> int:
    """Cores this process may run on, two hardware threads of one core counted once."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    cores = set()
    for block in _cpuinfo().split("\n\n"):
        facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in block.splitlines())}
        if facts.get("processor", "").isdecimal() and int(facts["processor"]) in allowed:
            # where the system doesn't name cores, each processor counts
            cores.add((facts.get("physical id", "0"), facts.get("core id", f"processor {facts['processor']}")))
    return len(cores) or len(allowed)


def machine_facts(threads: int, gpu: bool) -> MachineFacts:
    """Processor, cores, threads used, load, versions; the GPU's name where one is used and nvidia-smi knows it."""
    model = re.search(r"^model name\s*:\s*(.+)$", _cpuinfo(), re.M)
    return {
        "cpu": model[1].strip() if model else platform.processor() or platform.machine(),
        "cores": physical_cores(),
        "threads": threads,
        "load": load(),
        "gpu": (_smi("--query-gpu=name").strip() or None) if gpu else None,
        "system": platform.system(),
        "python": platform.python_version(),
        "versions": _versions(),
    }


def load() -> float | None:
    """Processes that ran or waited for a core in the last minute; None where the system doesn't count them."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def process_memory() -> dict[str, int | None]:
    """Bytes of this process: the peak of its resident set, and what it holds now that no file backs; None if unknown.

    Pages of mapped weight files count in the first alone: the system can drop them and read them again.
    """
    status = Path("/proc/self/status")
    text = status.read_text() if status.exists() else ""
    found: dict[str, int | None] = {}
    for name, key in STATUS.items():
        match = re.search(rf"^{key}:\s*(\d+) kB$", text, re.M)
        found[name] = int(match[1]) * 1024 if match else None
    return found


def device_memory(process: int) -> int | None:
    """Bytes of GPU memory that nvidia-smi counts for a process; None where it can't tell (containers may hide ids)."""
    return parse_device_memory(_smi("--query-compute-apps=pid,used_gpu_memory"), process)


def parse_device_memory(table: str, process: int) -> int | None:
    """From nvidia-smi's lines `pid, MiB`; a process may have one for each GPU."""
    found = re.findall(rf"^{process}, *(\d+)$", table, re.M)
    return sum(map(int, found)) << 20 if found else None


def _smi(query: str) -> str:
    if shutil.which("nvidia-smi") is None:
        return ""
    command = ["nvidia-smi", query, "--format=csv,noheader,nounits"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


def _cpuinfo() -> str:
    path = Path("/proc/cpuinfo")
    return path.read_text() if path.exists() else ""


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
