"""Text-only variants generate in transformers.js, under node, what they generate in PyTorch."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import OlmoeForCausalLM

from export.layout.write import plan_layout, write_layout
from export.run.bound import Bound
from export.run.graphs import Graphs
from tests.support.models import BLOCKWISE, random_ids, save_source
from tests.support.paths import ROOT
from tests.support.variants import add_member, write_variant

ENVIRONMENT = ROOT / ".venv-js"
NODE = shutil.which("node")
COUNT, END = 24, 95
pytestmark = [
    pytest.mark.extra,
    pytest.mark.skipif(NODE is None, reason="no node on the PATH: transformers.js can't run"),
    pytest.mark.skipif(not (ENVIRONMENT / "node_modules").is_dir(), reason="no .venv-js: `make js-env` creates it"),
]


def generate(directory: Path, ids: list[int], **given: Any) -> list[int]:
    """New ids up to the end token: runtimes differ in whether they return it."""
    script = str(ROOT / "tests" / "transformersjs" / "generate.mjs")
    wanted = json.dumps({"ids": ids, "count": COUNT, **given})
    command = [str(NODE), script, str(ENVIRONMENT), str(directory), wanted]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    found: list[int] = json.loads(done.stdout)["ids"]
    return found[: found.index(END)] if END in found else found


def in_torch(directory: Path, ids: list[int]) -> list[int]:
    """What transformers generates, the stored weights in float32."""
    model = OlmoeForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    given = torch.tensor([ids])
    with torch.no_grad():
        made = model.generate(
            given, attention_mask=torch.ones_like(given), max_new_tokens=COUNT, do_sample=False, eos_token_id=None
        )
    found: list[int] = made[0, len(ids) :].tolist()
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["float32", "bf16", "fp16"])
def test_a_layout_loads_with_defaults(dtype: torch.dtype, tmp_path: Path) -> None:
    save_source(tmp_path / "source", dtype, num_key_value_heads=2, norm_topk_prob=True)
    loaded = OlmoeForCausalLM.from_pretrained(tmp_path / "source", dtype=dtype)
    loaded.save_pretrained(tmp_path / "sharded", max_shard_size="60KB")
    variant = write_variant(tmp_path / "sharded", tmp_path / "variant", keep=[0, 2], k=2)
    assert len(list(variant.glob("model-*.safetensors"))) > 1
    ids = random_ids(1, 12)[0].tolist()
    write_layout(plan_layout(variant, "transformers.js"), tmp_path / "js")
    ours, theirs = generate(tmp_path / "js", ids), in_torch(variant, ids)
    assert len(ours) == COUNT  # else the prompt tests less than it seems
    assert ours == theirs
    other = write_variant(tmp_path / "sharded", tmp_path / "other", keep=[0, 2], k=3)
    assert in_torch(other, ids) != ours  # another k would be seen


def test_a_variant_in_its_own_place(tmp_path: Path) -> None:
    save_source(tmp_path / "source")
    variant = write_variant(tmp_path / "source", tmp_path / "variant", k=2)
    ids = random_ids(1, 9)[0].tolist()
    options = {"subfolder": "", "model_file_name": "text"}
    ours = generate(variant, ids, options=options, model_type="olmo")
    assert len(ours) == COUNT
    assert ours == in_torch(variant, ids)
    with pytest.raises(AssertionError, match="Unsupported model type: olmoe"):
        generate(variant, ids, options=options)


@pytest.mark.parametrize("form", ["int4", "int8"])
def test_quantised_forms(form: str, tmp_path: Path) -> None:
    save_source(tmp_path / "source", **BLOCKWISE, num_key_value_heads=2)
    variant = write_variant(tmp_path / "source", tmp_path / form, k=2, form=form)
    write_layout(plan_layout(variant, "transformers.js"), tmp_path / "js")
    ids = random_ids(1, 12)[0].tolist()
    bound = Bound(Graphs(variant, threads=1))
    theirs = [int(bound.prefill(np.array([ids])).argmax())]
    while len(theirs) < COUNT:
        theirs.append(int(bound.decode(theirs[-1]).argmax()))
    assert generate(tmp_path / "js", ids) == theirs


def test_a_member_of_a_family(tmp_path: Path) -> None:
    save_source(tmp_path / "source", num_key_value_heads=2)
    family = write_variant(tmp_path / "source", tmp_path / "family")
    add_member(family, "k3-b2", (0, 2))
    write_layout(plan_layout(family, "transformers.js", member="k3-b2"), tmp_path / "js")
    alone = write_variant(tmp_path / "source", tmp_path / "alone", keep=[0, 2])
    ids = random_ids(1, 10)[0].tolist()
    ours = generate(tmp_path / "js", ids)
    assert len(ours) == COUNT
    assert ours == in_torch(alone, ids)
