"""A contestant's process as the parent sees it: one JSON line asks, one answers; a crash or silence is an error."""

import json
import os
import queue
import re
import subprocess
import sys
import tempfile
import threading
from contextlib import suppress
from pathlib import Path

from export.bench.job import BenchJob
from transform.strict_json import Record

TAIL, LONGEST = 3, 400  # lines and characters of a dead process's stderr
CLOSING = 10.0  # seconds


class ContestantError(Exception):
    """A contestant that failed; the message is the reason that the report gives."""


class Contestant:
    """A running `worker.py`. `job` is what it is started with; `ask` waits at most `timeout` seconds."""

    def __init__(self, job: BenchJob, timeout: float) -> None:
        self.timeout = timeout
        threads, root = str(job.threads), str(Path(__file__).parent.parent.parent)
        environment = os.environ | {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        self._process = subprocess.Popen(
            [sys.executable, "-m", "export.bench.worker", job.to_json()],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, env=environment,
        )  # fmt: skip
        self._answers: queue.Queue[bytes] = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()

    def ask(self, what: str) -> Record:
        """`prepare`, `load` or `run`; raises ContestantError with the reason if it fails."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(what.encode() + b"\n")
            self._process.stdin.flush()
            line = self._answers.get(timeout=self.timeout)
        except queue.Empty:
            self.close(kill=True)
            raise ContestantError(
                f"{what} must answer within {self.timeout:g} seconds, it didn't. Raise --timeout."
            ) from None
        except OSError:
            line = b""
        if not line:
            code = self._process.wait()
            tail = self._tail()
            self.close()
            raise ContestantError(f"its process ended with code {code} during {what}{tail}")
        answer = json.loads(line)
        if "error" in answer:
            self.close()
            raise ContestantError(without_folders(answer["error"]))
        return answer

    def close(self, kill: bool = False) -> None:
        """End the process, by asking or at once; a second call changes nothing."""
        if kill:
            self._process.kill()
        assert self._process.stdin is not None
        with suppress(OSError):  # it may be gone with our question unread
            self._process.stdin.close()  # it reads the end of its input and goes
        try:
            self._process.wait(CLOSING)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._errors.close()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                self._answers.put(line)
        self._answers.put(b"")

    def _tail(self) -> str:
        self._errors.seek(0)
        lines = [
            line.strip() for line in self._errors.read().decode(errors="replace").splitlines() if line.strip(" ^~")
        ]
        said = without_folders("; ".join(lines[-TAIL:]))[-LONGEST:]
        return f": {said}" if said else ", without a word"


def without_folders(text: str) -> str:
    """File names instead of paths: a report says nothing about where it was made."""
    return re.sub(r"(?<![\w.:/])/(?:[^\s/:'\"]+/)+", "", text)
