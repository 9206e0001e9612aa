"""Fixtures shared by the tests: the reference's parity checkpoint, and small OLMoE checkpoints made by transformers."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.paths import FIXTURES, PROGRAMS


@pytest.fixture(scope="session")
def molmo() -> Path:
    """The reference's tiny MolmoE checkpoint: 4 blocks, 8 experts, top-4, float32, no tokenizer."""
    return FIXTURES


@pytest.fixture(scope="session")
def olmoe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny OLMoE checkpoint of 6 blocks, sharded, written by transformers."""
    import torch
    from transformers import OlmoeConfig, OlmoeForCausalLM

    torch.manual_seed(0)
    config = OlmoeConfig(
        vocab_size=128, hidden_size=64, intermediate_size=32, num_hidden_layers=6, num_attention_heads=4,
        num_experts=8, num_experts_per_tok=4, max_position_embeddings=512, pad_token_id=1, eos_token_id=2,
    )  # fmt: skip
    directory = tmp_path_factory.mktemp("models") / "olmoe-tiny"
    OlmoeForCausalLM(config).save_pretrained(directory, max_shard_size="300KB")
    return directory


@pytest.fixture(scope="session", autouse=True)
def warm_user(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Gates of this process ask one process that has imported transformers already (`warm_user.py`)."""
    import export.gate.as_user

    started: list[subprocess.Popen[str]] = []

    def ask(place: Path, request: dict[str, Any], home: Path, threads: dict[str, str]) -> tuple[int, str, str]:
        if not started:
            modules = tmp_path_factory.mktemp("user") / "modules"
            env = os.environ | {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(modules), "OMP_NUM_THREADS": "1"}
            command = [
                sys.executable,
                "-P",
                str(PROGRAMS / "warm_user.py"),
                str(export.gate.as_user.SCRIPT),
            ]
            started.append(subprocess.Popen(command, env=env, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE))
        user = started[0]
        assert user.stdin is not None
        assert user.stdout is not None
        print(json.dumps([str(place), request]), file=user.stdin, flush=True)
        code, printed, errors = json.loads(user.stdout.readline())
        return code, printed, errors

    patch = pytest.MonkeyPatch()
    patch.setattr(export.gate.as_user, "run_process", ask)
    yield
    patch.undo()
    for user in started:
        user.communicate()


@pytest.fixture
def copy_of(tmp_path: Path) -> Callable[[Path], Path]:
    """Copies of a checkpoint directory, to be damaged."""
    import shutil

    def copy(source: Path) -> Path:
        target = tmp_path / f"copy-{len(list(tmp_path.iterdir()))}"
        target.mkdir()
        for file in source.iterdir():
            if file.name in ("config.json", "generation_config.json") or file.name.startswith("model"):
                shutil.copy(file, target / file.name)
        return target

    return copy
