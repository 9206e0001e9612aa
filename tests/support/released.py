"""Configurations as models were released, without weights: files of holes whose headers follow from the config.

`tests/fixtures/configs/NAME.json` holds the config.json of one release per family by its hub id; `whole` says whether
it has every key of the file, or those of its sizes and lists alone. Tensors are what the family's roles name, with one
array per block for the experts; of families without roles, as many tensors per block as tell dense from sparse ones.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from tests.support.full_size import write_sparse
from tests.support.paths import ROOT
from transform.architectures import architecture_of
from transform.architectures.records import Architecture
from transform.architectures.settings import Settings

CONFIGS = ROOT / "tests" / "fixtures" / "configs"
NONE_AT_HAND = (
    "aria", "aria_text", "axk1", "axk2", "bailing_hybrid", "cohere2_moe", "deepseek_v32", "ernie4_5_vl_moe",
    "exaone_moe", "flex_olmo", "flint", "gemma4_text", "granitemoe_swa", "granitemoeshared", "hunyuan_v1_moe",
    "hy_v3", "kimi_k25", "kimi_linear", "kolibri1", "laguna", "lara_mini", "llama4_text", "mellum",
    "minimax", "mistral4", "molmo", "molmo2", "qwen3_5_moe_text",
)  # fmt: skip
ALWAYS = ("attention.norm", "attention.q", "attention.k", "attention.v", "attention.out", "mlp.norm")
SPARSE = ("router", "expert.gate_up", "expert.down_slab")
DENSE = ("dense.gate", "dense.up", "dense.down")


class Release(NamedTuple):
    """A config as it was released."""

    hub: str
    whole: bool
    config: dict[str, object]

    @property
    def plain(self) -> dict[str, object]:
        """The config of the same weights as plain floating point numbers."""
        return {key: value for key, value in self.config.items() if key != "quantization_config"}


def release(name: str) -> Release:
    """The release of a family."""
    return Release(**json.loads((CONFIGS / f"{name}.json").read_text()))


def released() -> tuple[str, ...]:
    """The families that have one."""
    return tuple(sorted(path.stem for path in CONFIGS.glob("*.json")))


def write_release(directory: Path, config: Mapping[str, object]) -> Path:
    """A checkpoint of holes in bfloat16."""
    family = architecture_of(config)
    return write_sparse(directory, config, dict(_tensors(family, config)), "BF16")


def _tensors(family: Architecture, config: Mapping[str, object]) -> Iterator[tuple[str, tuple[int, ...]]]:
    settings = family.settings(config)
    text = family.text_of(config)
    width = text.get("moe_intermediate_size", text.get("intermediate_size"))
    shapes = _shapes(settings, width if isinstance(width, int) else 3072)
    if family.complete:
        for role, tensor in family.roles.items():
            for i in range(settings.layers if tensor.of_blocks else 1):
                for e in range(settings.experts if "{e}" in tensor.names[0] else 1):
                    yield tensor.names[0].format(i=i, e=e), shapes[role]
        return
    tied = config.get("tie_word_embeddings") is True
    for role in ("embedding", "norm", *(() if tied else ("head",))):
        yield family.roles[role].names[0] if role in family.roles else f"{role}.weight", shapes[role]
    for i, experts in enumerate(settings.experts_of):
        for role in (*ALWAYS, *(SPARSE if experts else DENSE)):
            if role in family.roles:
                yield family.roles[role].names[0].format(i=i), shapes[role]
            elif not family.roles:
                tail = {"expert.gate_up": "mlp.experts.gate_up_proj", "expert.down_slab": "mlp.experts.down_proj"}
                yield f"{family.block.format(i=i)}{tail.get(role, f'{role}.weight')}", shapes[role]
    predicted = text.get("num_nextn_predict_layers")
    for i in range(predicted if isinstance(predicted, int) else 0):
        yield f"{family.block.format(i=settings.layers + i)}eh_proj.weight", (settings.hidden, 2 * settings.hidden)


def _shapes(settings: Settings, width: int) -> dict[str, tuple[int, ...]]:
    """Of each role; `width`: of an expert."""
    hidden, experts = settings.hidden, settings.experts
    q, kv = settings.heads * settings.head_dim, settings.kv_heads * settings.head_dim
    matrix, back = (width, hidden), (hidden, width)
    return {
        "embedding": (settings.vocab, hidden), "head": (settings.vocab, hidden), "norm": (hidden,),
        "attention.norm": (hidden,), "mlp.norm": (hidden,), "attention.q": (q, hidden), "attention.k": (kv, hidden),
        "attention.v": (kv, hidden), "attention.out": (hidden, q), "attention.q_norm": (q,), "attention.k_norm": (kv,),
        "router": (experts, hidden), "expert.gate": matrix, "expert.up": matrix, "expert.down": back,
        "expert.gate_up": (experts, 2 * width, hidden), "expert.down_slab": (experts, hidden, width),
        "dense.gate": matrix, "dense.up": matrix, "dense.down": back,
    }  # fmt: skip
