"""llama.cpp, by the package xllamacpp, over the same weights: written as a GGUF file before the clock runs.

Its server makes all tokens of an answer in one request and hands each over as it is made: a step waits for the next.
"""

import json
import queue
import threading
from pathlib import Path

from export.bench.gguf_file import checkpoint_of, token_of, write_gguf
from export.bench.job import BenchJob
from export.bench.workload import Workload
from transform.strict_json import Record

FILE = "model.gguf"


class Engine:
    """One server; a sequence is a request. Greedy, end tokens don't end it, nothing is kept of the last prompt."""

    sees = False

    def __init__(self, job: BenchJob, workload: Workload) -> None:
        import xllamacpp

        self.job, self.workload = job, workload
        self.path = Path(job.scratch) / FILE
        self.server: xllamacpp.Server
        self._made: queue.Queue[int | str] = queue.Queue()

    def prepare(self) -> None:
        """Write the file."""
        write_gguf(checkpoint_of(self.job), self.path)

    def load(self) -> None:
        """Open the file, with the room that prompt and answer take."""
        import xllamacpp

        asked = xllamacpp.CommonParams()
        asked.model.path = str(self.path)
        asked.n_ctx = self.workload.ids.shape[1] + self.workload.new_tokens + 1
        asked.n_parallel = 1
        asked.n_gpu_layers = 0
        asked.cpuparams.n_threads = asked.cpuparams_batch.n_threads = self.job.threads
        asked.cache_ram_mib = 0
        asked.verbosity = -1
        self.server = xllamacpp.Server(asked)

    def start(self) -> None:
        """Forget the last sequence."""
        self._made = queue.Queue()

    def see(self) -> None:
        """It sees nothing."""

    def prefill(self) -> int:
        """The first new token."""
        request = {
            "prompt": self.workload.ids[0].tolist(), "n_predict": self.workload.new_tokens, "temperature": 0.0,
            "stream": True, "cache_prompt": False, "ignore_eos": True,
        }  # fmt: skip
        threading.Thread(target=self._answer, args=(json.dumps(request), self._made), daemon=True).start()
        return self._next()

    def step(self, token: int) -> int:  # noqa: ARG002 - the answer goes on by itself
        """The next one."""
        return self._next()

    def _next(self) -> int:
        found = self._made.get()
        if isinstance(found, str):
            raise RuntimeError(f"llama.cpp: {found}")
        return found

    def _answer(self, request: str, made: "queue.Queue[int | str]") -> None:
        def take(part: str | Record) -> bool:
            found: Record = json.loads(part) if isinstance(part, str) else part
            if "choices" not in found:
                made.put(str(found)[:200])
                return False
            text = str(found["choices"][0]["text"])
            if text:
                made.put(token_of(text))
            return False

        self.server.handle_completions(request, take)
        made.put("the answer ended early")
