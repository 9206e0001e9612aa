"""Measure the nano model's scores.json: `python -m artifacts.nano.score [DIRECTORY]`.

Score of a block: KL(full || without it) of the next-token distributions, in nats, at the positions that predict the
answer; averaged over the positions of a sample, then over samples. Higher = the model's output depends more on the
block. On random weights that says nothing about any other checkpoint.
"""

import json
import math
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from artifacts.nano.build import TARGET
from artifacts.nano.pictures import Sample, digest, samples
from importance.scores import Scores, model_digest
from transform.checkpoint import read_checkpoint
from transform.load import load_model
from transform.molmoe import MolmoEForConditionalGeneration
from transform.molmoe.preprocessing import preprocess
from transform.runtime import BlockMaskWrapper

COUNT = 24
NOTE = (
    "Measured on seeded random weights that were never trained: the scores order the blocks of this checkpoint, by "
    "how much its output depends on them, and mean nothing beyond it."
)


def embed(model: MolmoEForConditionalGeneration, directory: Path, sample: Sample) -> tuple[Tensor, int]:
    """(embeddings [1, S, d] of begin, image stream, prompt and answer; number of answer tokens)."""
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast.from_pretrained(directory)
    end = tokenizer.eos_token_id
    seen = preprocess(sample.image)
    stream = seen.image_tokens(*tokenizer.convert_tokens_to_ids(["<im_start>", "<im_end>", "<im_patch>", "<im_col>"]))
    prompt = tokenizer.encode(f" User: {sample.prompt} Assistant:")
    answer = [*tokenizer.encode(f" {sample.answer}"), end]
    index = torch.from_numpy(seen.image_input_idx).long()
    embeddings = model.embed(
        torch.tensor([[end, *stream.tolist(), *prompt, *answer]]),
        images=torch.from_numpy(seen.images)[None],
        image_masks=torch.from_numpy(seen.image_masks)[None],
        image_input_idx=torch.where(index >= 0, index + 1, index)[None],  # the begin token comes first
    )
    return embeddings, len(answer)


def divergences(
    model: MolmoEForConditionalGeneration, embeddings: Tensor, answer: int, blocks: Sequence[int]
) -> list[float]:
    """Mean KL(full || without the block) over the positions that predict the answer, for each block."""
    layers = model.config.num_hidden_layers

    def predictions() -> Tensor:  # log-probabilities [answer, vocabulary], float64
        logits = model(inputs_embeds=embeddings, use_cache=False, logits_to_keep=answer + 1).logits
        return logits[0, :-1].double().log_softmax(-1)

    full = predictions()
    found = []
    for block in blocks:
        with BlockMaskWrapper(model, [i != block for i in range(layers)]):
            ablated = predictions()
        found.append(float((full.exp() * (full - ablated)).sum(-1).mean()))
    return found


def measure(directory: Path, count: int = COUNT) -> Scores:
    """Scores of every block over the first `count` samples."""
    checkpoint = read_checkpoint(directory)
    blocks = range(checkpoint.settings.layers)
    model = load_model(directory)
    items = list(samples(count))
    by_sample = []
    with torch.inference_mode():
        for item in items:
            by_sample.append(divergences(model, *embed(model, directory, item), blocks))
    by_block = list(zip(*by_sample, strict=True))
    return Scores(
        values={block: _short(statistics.fmean(by_block[block])) for block in blocks},
        stderr={block: _short(statistics.stdev(by_block[block]) / math.sqrt(count)) for block in blocks},
        metric="kl divergence of single-block ablation",
        unit="nats per answer token",
        baseline=0.0,
        samples=count,
        model_digest=model_digest(checkpoint),
        data_digest=digest(items),
        notes={"note": NOTE},
    )


def _short(value: float) -> float:
    return float(f"{value:.4g}")


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else TARGET
    text = json.dumps(measure(target).to_json(), indent=2)
    (target / "scores.json").write_text(text + "\n")
