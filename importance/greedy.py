"""Greedy answers of a finished state. Where the model would say what a candidate answer says, nothing is computed.

The chunk already ran over the candidates, so their logits tell how far greedy decoding agrees with one of them. Only
answers that leave all candidates are decoded, all of a chunk together, one token a step, behind the keys and values
that the state remembers. Equal to decoding from the start, up to float32 rounding.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from importance.blocks import Blocks
from importance.chunks import Candidate
from importance.engine import State, extend


@dataclass
class _Open:
    """An answer that goes on: the sample, its tokens so far, the chunk's position that its last token stands behind."""

    sample: int
    made: list[int]
    place: int


def greedy_answers(
    blocks: Blocks, state: State, logits: Tensor, model: nn.Module, ends: frozenset[int], max_new_tokens: int
) -> dict[int, list[int]]:
    """{sample: new ids without the end token}, for a chunk of one row whose keys and values were remembered."""
    assert len(state.hidden) == 1, "packed chunks have one row"
    best = logits.argmax(-1).tolist()
    done: dict[int, list[int]] = {}
    going: dict[int, _Open] = {}
    for candidate in state.chunk.candidates:
        made, place, finished = _follow(candidate, best, ends)
        made = made[:max_new_tokens]
        if finished or len(made) == max_new_tokens:
            done[candidate.sample] = made
        elif candidate.sample not in going or len(made) > len(going[candidate.sample].made):
            going[candidate.sample] = _Open(candidate.sample, made, int(state.chunk.where[place]))
    # every candidate of a sample sees the same greedy answer; one that is finished has the whole of it
    open_answers = [answer for sample, answer in going.items() if sample not in done]
    _decode(blocks, state, model, open_answers, ends, max_new_tokens)
    return {**done, **{answer.sample: answer.made for answer in open_answers}}


def _follow(candidate: Candidate, best: Sequence[int], ends: frozenset[int]) -> tuple[list[int], int, bool]:
    """(greedy tokens known from this candidate, where the last of them was predicted, whether the answer ended)."""
    made: list[int] = []
    for n, at in enumerate(candidate.at):
        if best[at] in ends:
            return made, at, True
        made.append(best[at])
        if n >= len(candidate.ids) or best[at] != candidate.ids[n]:
            return made, at, False
    return made, candidate.at[-1], False


@torch.no_grad()
def _decode(
    blocks: Blocks,
    state: State,
    model: nn.Module,
    answers: list[_Open],
    ends: frozenset[int],
    max_new_tokens: int,
) -> None:
    chunk, past, device = state.chunk, state.past, state.hidden.device
    going = list(answers)
    keys = chunk.positions[:1]
    owners = torch.empty(0, dtype=torch.long, device=device)  # of each appended token: its sample
    lengths = {answer.sample: 0 for answer in answers}  # tokens appended so far
    while going:
        samples = torch.tensor([answer.sample for answer in going], device=device)
        places = torch.tensor([answer.place for answer in going], device=device)
        steps = torch.tensor([lengths[answer.sample] for answer in going], device=device)
        owners = torch.cat((owners, samples))
        allowed = torch.cat((chunk.allowed[0, places], samples[:, None] == owners), 1)
        ids = torch.tensor([[answer.made[-1] for answer in going]], device=device)
        hidden = model.get_input_embeddings()(ids).to(state.hidden)
        positions = (chunk.positions[0, places] + 1 + steps)[None]
        keys = torch.cat((keys, positions), 1)
        logits, past = extend(blocks, past, hidden, positions, allowed[None], keys)
        following = []
        for answer, token in zip(going, logits.argmax(-1).tolist(), strict=True):
            lengths[answer.sample] += 1
            if token in ends:
                continue
            answer.made.append(token)
            if len(answer.made) < max_new_tokens:
                following.append(answer)
        going = following
