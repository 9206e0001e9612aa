"""How many experts of each block the test questions use: pictures, prompts and given answers, at full knobs."""

from typing import Any

import torch

from artifacts.nano import data
from artifacts.nano.build import TARGET
from importance.evaluate import prepare
from importance.prompts import load_processor
from importance.readers.read import read_samples
from transform.load import load_model
from transform.read import read_checkpoint
from transform.runtime import find_routers


@torch.inference_mode()
def used_experts() -> list[float]:
    """Share of the experts of each block that at least one token selects."""
    model = load_model(TARGET)
    samples = read_samples(data.TARGET / "test.jsonl")
    routers = find_routers(model)
    seen = [torch.zeros(experts, dtype=torch.bool) for _, experts in routers]

    def watch(block: int) -> Any:
        def hook(_: Any, __: Any, output: tuple[Any, ...]) -> None:
            seen[block][output[2].flatten()] = True

        return hook

    handles = [router.register_forward_hook(watch(block)) for block, (router, _) in enumerate(routers)]
    for group, embeddings in prepare(model, load_processor(read_checkpoint(TARGET)), samples, hold=False).prefixes():
        for _, ids in group.questions[:2]:
            text = model.get_input_embeddings()(torch.tensor([ids]))
            model(inputs_embeds=torch.cat((embeddings, text), 1), use_cache=False, logits_to_keep=1)
    for handle in handles:
        handle.remove()
    return [float(block.float().mean()) for block in seen]
