"""A temporary folder that a killed run doesn't leave for ever: the next one removes it."""

import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from transform.stage import alive

_NAME = re.compile(r"knobcast-[a-z]+-([0-9]+)-\w+")


@contextmanager
def scratch(purpose: str) -> Iterator[Path]:
    """A folder in the system's place for temporary files, named after its purpose (a to z) and process."""
    with suppress(OSError):
        for path in list(Path(tempfile.gettempdir()).iterdir()):
            match = _NAME.fullmatch(path.name)
            if match and not alive(int(match[1])) and _is_own_folder(path):
                shutil.rmtree(path, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=f"knobcast-{purpose}-{os.getpid()}-") as name:
        yield Path(name)


def _is_own_folder(path: Path) -> bool:
    """Others write there too, also links."""
    found = path.lstat()
    return stat.S_ISDIR(found.st_mode) and (not hasattr(os, "geteuid") or found.st_uid == os.geteuid())
