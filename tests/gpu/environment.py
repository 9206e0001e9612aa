"""The machine, and whether CUDA really loads."""

import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator

from tests.gpu.rows import Context, Row, load_libraries

QUERY = "name,driver_version,memory.total,memory.used,compute_cap"
PACKAGES = ("onnxruntime-gpu", "onnxruntime", "torch", "transformers", "onnx", "numpy")
PLAIN = (
    "from export.run.providers import CUDA; from export.run.session import check_loads; import onnxruntime;"
    "onnxruntime.set_default_logger_severity(4); check_loads([(CUDA, {})])"
)


def nvidia(query: str = QUERY) -> list[str] | None:
    """What nvidia-smi says of the first device."""
    if shutil.which("nvidia-smi") is None:
        return None
    command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader,nounits"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = done.stdout.strip().splitlines()
    return [part.strip() for part in lines[0].split(",")] if done.returncode == 0 and lines else None


def used_memory() -> float | None:
    """MB of the device in use, of all processes."""
    found = nvidia("memory.used")
    return float(found[0]) if found and found[0].isdigit() else None  # a slice of a device doesn't say


def versions() -> dict[str, str]:
    """Of the packages that matter."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def missing() -> list[str]:
    """What a machine lacks to run the checks, in words; nothing where all is there."""
    import onnxruntime

    from export.gate.op_checks import missing_cuda
    from export.run.providers import CUDA

    lacks = []
    if nvidia() is None:
        lacks.append("an NVIDIA GPU with its driver: nvidia-smi is not there or finds none")
    if CUDA not in onnxruntime.get_available_providers():
        lacks.append(f"onnxruntime-gpu: onnxruntime {onnxruntime.__version__} has no {CUDA}")
    if not lacks:
        load_libraries()
        reason = missing_cuda()
        lacks += [reason] if reason else []
    import torch

    if not torch.cuda.is_available():
        lacks.append(
            f"a torch that sees the GPU: {torch.__version__} doesn't. Where pip took the CPU's build, "
            '.venv/bin/pip install --force-reinstall "torch>=2.13,<2.14" takes the other one'
        )
    return lacks


def measure(ctx: Context) -> Iterator[Row]:
    """Names, versions, sizes, and how the CUDA provider finds its libraries."""
    yield Row("system", f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores")
    for name, version in versions().items():
        yield Row(name, version)
    found = nvidia()
    if found is not None:
        for what, value in zip(("GPU", "driver", "memory", "used before", "compute capability"), found, strict=True):
            yield Row(what, value + (" MB" if what in ("memory", "used before") else ""))
    if ctx.cuda:
        done = subprocess.run([sys.executable, "-c", PLAIN], capture_output=True, text=True, check=False)
        lines = done.stderr.strip().splitlines()
        yield Row("CUDA provider in a process without torch", "loads" if done.returncode == 0 else lines[-1][:200])
        from export.gate.op_checks import missing_cuda

        yield Row("CUDA provider with pip's CUDA libraries preloaded", missing_cuda() or "loads")
