"""Train the embedded default model from nothing: `python -m artifacts.nano.make`; a stopped run goes on.

pictures and questions -> stage 1 (vision, from pixels) -> what it sees on each picture -> stage 2 (decoder) ->
checkpoint. Progress is in artifacts/nano-training/, which is not tracked and may be deleted afterwards.
"""

from pathlib import Path

import torch

from artifacts.nano import data, features, language, tokenizer, vision
from artifacts.nano.build import CONFIG, TARGET, build
from artifacts.nano.job import SEED
from importance.readers.read import read_samples
from transform.molmoe import MolmoEConfig, MolmoEForConditionalGeneration

STATE = Path(__file__).parents[1] / "nano-training"
VISION_CYCLES = ((1400, 2e-3), (700, 2e-3))  # (steps, peak learning rate)
LANGUAGE_CYCLES = ((2300, 1.5e-3), (3000, 1.2e-3))
IDS = language.Ids(tokenizer.VOCAB - 1, *(tokenizer.VOCAB + n for n in range(4)))


def main() -> None:
    """Do what is left to do."""
    from transformers import PreTrainedTokenizerFast

    data.main()
    vision.train(CONFIG, STATE, VISION_CYCLES)
    torch.manual_seed(SEED)
    model = MolmoEForConditionalGeneration(MolmoEConfig(**CONFIG))
    language.initialise(model, SEED)
    vision.finished(STATE, model.model.vision_backbone)
    samples = read_samples(data.TARGET / "train.jsonl")
    pictures = features.seen(STATE, model.model.vision_backbone, samples, "train")
    questions = language.prepare(samples, PreTrainedTokenizerFast.from_pretrained(TARGET))
    language.train(model, STATE, pictures, questions, IDS, LANGUAGE_CYCLES)
    build(TARGET, model)


if __name__ == "__main__":
    main()
