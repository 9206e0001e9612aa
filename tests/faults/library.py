"""`kill.c`, compiled and preloaded: the process starts itself again under it, and forked children arm it."""

import ctypes
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

SOURCE = Path(__file__).with_name("kill.c")


def missing() -> str | None:
    """Why the library can't be used here; None where it can."""
    if not sys.platform.startswith("linux"):
        return "the faults are injected by a preloaded library, which needs Linux"
    if compiler() is None:
        return "the faults are injected by a small C library, and there is no gcc or cc. Install one"
    return None


def compiler() -> str | None:
    """gcc, or what stands for it."""
    return shutil.which("gcc") or shutil.which("cc")


def compiled(folder: Path) -> Path:
    """The library, made from its source into `folder`."""
    out, found = folder / "kill.so", compiler()
    assert found is not None
    subprocess.run([found, "-O1", "-shared", "-fPIC", "-o", str(out), str(SOURCE), "-ldl"], check=True)
    return out


def loaded(arguments: Sequence[str], module: str) -> Path:
    """The folder of the library that this process has loaded; without one the module's process begins again with it."""
    found = Path(os.environ.get("LD_PRELOAD", ""))
    if found.name != "kill.so":
        restart_under(compiled(Path(tempfile.mkdtemp(prefix="faults-"))), arguments, module)
    return found.parent


def restart_under(library: Path, arguments: Sequence[str], module: str) -> None:
    """A module's process again, with the library loaded first and one thread, so that it can fork."""
    quiet = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    quiet |= {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_DISABLE_TELEMETRY": "true"}
    environment = os.environ | quiet | {"LD_PRELOAD": str(library), "PYTHONHASHSEED": "0"}
    os.execve(sys.executable, [sys.executable, "-m", module, *arguments], environment)


WAYS = ("call", "torn", "interrupt", "error", "read-only")  # what happens at a call, as kill.c numbers it


def arm(folder: Path, at: int = 0, way: str = "call", space: int = -1, network: bool = False) -> None:
    """From now on, at call `at` below `folder` (0: never): end before it, end in its middle, Ctrl-C, EIO, or EROFS from
    there on; or let only `space` bytes fit. `network`: what is sent to others counts as well."""
    faults_arm = ctypes.CDLL(None).faults_arm
    faults_arm.argtypes = (ctypes.c_char_p, ctypes.c_long, ctypes.c_int, ctypes.c_longlong, ctypes.c_int)
    faults_arm(os.fsencode(folder) + b"/", at, WAYS.index(way), space, network)


def calls() -> int:
    """How many calls were counted since then."""
    return int(ctypes.CDLL(None).faults_calls())
