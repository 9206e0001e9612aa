"""Scores and searches of every family with graphs, from samples to numbers, are those of the plain model."""

import json
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast

from importance.evaluate import evaluate, prepare
from importance.prompts import load_processor
from importance.readers.read import read_samples
from importance.score import Scorer, Setting
from tests.support.decoders import BLOCKS, DECODERS, DENSE, VOCABULARY, K, write_decoder
from tests.support.stock_models import one_thread as one_thread
from transform.load import load_model
from transform.read import read_checkpoint
from transform.runtime import BlockMaskWrapper, moe_top_k

PROMPTS = tuple(
    " ".join(f"t{(start + 7 * i) % 200 + 5}" for i in range(length)) for start, length in ((0, 9), (3, 14), (50, 11))
)
NEW = 4


def words() -> PreTrainedTokenizerFast:
    """A word for every id, so that answers are seen whole."""
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2, **{f"t{i}": i for i in range(3, VOCABULARY)}}
    model = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    model.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=model, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def samples(folder: Path, accepted: Sequence[Sequence[str]]) -> Path:
    """Longer than any window, with these answers."""
    rows = [
        {"id": str(i), "image": None, "prompt": prompt, "answers": list(answers)}
        for i, (prompt, answers) in enumerate(zip(PROMPTS, accepted, strict=True))
    ]
    file = folder / "samples.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    return file


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == "gpt_oss" else pytest.mark.extra) for name in DECODERS]
)
def test_scores_and_sets_are_those_of_the_plain_model(name: str, tmp_path: Path) -> None:
    source = write_decoder(name, tmp_path / "source")
    words().save_pretrained(source)
    checkpoint, model = read_checkpoint(source), load_model(source)

    file = samples(tmp_path, [["unasked"]] * len(PROMPTS))

    def answered() -> list[str]:
        asked = prepare(model, load_processor(checkpoint), read_samples(file))
        return list(evaluate(model, asked, max_new_tokens=NEW).answers)

    plain = [answered()]
    tokenizer = words()
    for sample, answer in zip(read_samples(file), plain[0], strict=True):  # each by itself, as anyone would ask it
        ids = torch.tensor([tokenizer(sample.prompt)["input_ids"]])
        made = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW, do_sample=False)
        assert answer == tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True).strip()
    kept = [c for most in (1, 2) for c in combinations(range(BLOCKS), BLOCKS - most)]
    for keep in kept:
        with BlockMaskWrapper(model, [i in keep for i in range(BLOCKS)]):
            plain.append(answered())
    if name not in DENSE:
        with moe_top_k(model, K // 2):
            plain.append(answered())
    assert len({tuple(answers) for answers in plain}) > 3  # else they tell nothing
    accepted = [{plain[0][i], plain[2][i]} - {""} or {"nothing"} for i in range(len(PROMPTS))]
    file = samples(tmp_path, [sorted(answers) for answers in accepted])
    scorer = Scorer(Setting(checkpoint, file, max_new_tokens=NEW), tmp_path / "store")
    full, sparse = scorer.setting.full, checkpoint.settings.experts_of
    configs = [tuple(full[i] if i in keep else 0 for i in range(BLOCKS)) for keep in kept]
    configs += [] if name in DENSE else [tuple(K // 2 if experts else 1 for experts in sparse)]
    wrong = [[float(answers[i] not in accepted[i]) for i in range(len(PROMPTS))] for answers in plain]
    assert 0 < np.mean(wrong) < 1
    np.testing.assert_array_equal(np.asarray(scorer.measure([full, *configs])), wrong)
    streamed, resident = (
        Scorer(Setting(checkpoint, file, metric="nll", streamed=streams, tokens_per_call=0), tmp_path / str(streams))
        for streams in (True, False)
    )
    assert streamed.scores().values == pytest.approx(resident.scores().values, abs=1e-6)
