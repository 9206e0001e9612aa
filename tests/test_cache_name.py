"""Our own calls give transformers its cache under the name of the running version: nobody reads of deprecation."""

import subprocess
import sys
from pathlib import Path

import pytest

from transform.source import DEFAULT

RUN = """
import sys
from pathlib import Path

import torch

from export.bench.engine_torch import Engine as Contestant
from export.bench.job import BenchJob
from export.bench.workload import Workload
from export.gate.compare import run_text
from export.gate.probe import text_probe
from importance.batch import answer_batch, prefill
from importance.blocks import ResidentBlocks
from importance.chunks import from_batch
from importance.engine import Engine, full_config
from importance.greedy import greedy_answers
from transform.load import load_model
from transform.runtime import BlockMaskWrapper

path = Path(sys.argv[1])
model = load_model(path)
ids = torch.arange(5, 17)[None]

blocks, full = ResidentBlocks(model), full_config(model)
def read(state, logits):
    assert len(greedy_answers(blocks, state, logits, model, frozenset(), 3)[0]) == 3
Engine(blocks, full, remember=True).run([from_batch(model, {"input_ids": ids})], [full], read)

with BlockMaskWrapper(model, [True] * (len(full) - 1) + [False]):
    prefix = prefill(model, model.get_input_embeddings()(ids).detach())
    made = answer_batch(model, prefix, [[5, 6], [7]], frozenset(), 3)
    assert [len(answer) for answer in made] == [3, 3]
    assert torch.isfinite(run_text(model, text_probe(100, 0))["decode"]).all()

contestant = Contestant(BenchJob(path, "cpu", 1, name="eager"), Workload(ids.numpy(), 2, {}, "text"))
contestant.load()
contestant.start()
contestant.step(contestant.prefill())
assert contestant.cache.get_seq_length() == 13
"""


@pytest.mark.parametrize("family", ["olmoe", "molmo"])
def test_no_word_of_deprecation_reaches_a_user(family: str, olmoe: Path) -> None:
    """Of scoring, evaluating, the gate and the benchmark's PyTorch. transformers says it once for each process, and not
    as a Python warning only."""
    path = olmoe if family == "olmoe" else DEFAULT
    done = subprocess.run(
        [sys.executable, "-W", "always", "-c", RUN, str(path)],
        capture_output=True, text=True, check=False, cwd=Path(__file__).parents[1],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "deprecated" not in done.stderr
