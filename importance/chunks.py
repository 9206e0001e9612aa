"""Chunks: what the engine computes at once. Embedded tokens, who sees whom, and where answers are read.

A packed chunk is one sequence: begin token and picture once, behind them every question about it, hidden from each
other, and behind each question its candidate answers as branches. Positions restart at each branching, so a token
sees exactly what it would see alone.  Legend: B rows, S positions, d width, U positions whose logits are read.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from importance.evaluate import Prepared
from importance.samples import SamplesError

PADDING, VISION, TEXT = 0, 1, 2
MAX_PACKED = 1024  # positions behind the prefix: attention grows with their square
IGNORED = -100  # labels that aren't scored, as in transformers
Batch = Mapping[str, Tensor]  # the model's inputs by name, and `labels`: see `from_batch`


@dataclass(frozen=True)
class Candidate:
    """One possible answer of a sample: `ids` with the end token; logits `at[i]` (into `Chunk.where`) predict ids[i].

    `at` has one entry more than `ids` where nothing is known about the answer: its first token is only observed.
    """

    sample: int
    at: tuple[int, ...]
    ids: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Chunk:
    """hidden [B, S, d]; positions [B, S]; allowed [B, S, S], True where a query (row) sees a key (column); modality
    [B, S]: PADDING, VISION or TEXT; where [U]: flat positions (row * S + column), ascending."""

    hidden: Tensor
    positions: Tensor
    allowed: Tensor
    modality: Tensor
    where: Tensor
    candidates: tuple[Candidate, ...]

    @property
    def tokens(self) -> int:
        """B * S."""
        return self.positions.numel()

    @property
    def samples(self) -> list[int]:
        """The samples asked here, ascending."""
        return sorted({candidate.sample for candidate in self.candidates})


def pack_chunks(
    model: nn.Module,
    prepared: Prepared,
    references: Sequence[Sequence[Sequence[int]]],
    *,
    new_tokens: int = 1,
    apart: bool = False,
) -> Iterator[Chunk]:
    """Chunks of one row for all samples, in order of their pictures. `references[i]`: the candidate answers of sample
    i as token ids with the end token; none: only the first token is read.

    new_tokens: how many may be decoded, for which there must be room. apart: a chunk is one item, a picture with all
    its questions or one question without a picture; else questions without pictures share chunks.
    """
    for group, prefix in prepared.prefixes():
        length = prefix.shape[1]
        questions = []
        for index, ids in group.questions:
            answers = [tuple(answer) for answer in references[index]]
            if not all(answers):
                raise SamplesError(
                    f"sample {prepared.samples[index].id!r}: an answer must have at least one token. Remove it."
                )
            prepared.check_sample(index, length, len(ids), max([new_tokens, *map(len, answers)]))
            questions.append((index, ids, answers))
        if apart:
            parts = [questions] if group.picture is not None else [[question] for question in questions]
        else:
            parts = list(_parts(questions))
        for part in parts:
            yield _packed(model, prefix, group.picture is not None, part)


Question = tuple[int, tuple[int, ...], list[tuple[int, ...]]]


def _parts(questions: Sequence[Question]) -> Iterator[list[Question]]:
    part: list[Question] = []
    total = 0
    for question in questions:
        size = len(question[1]) + sum(len(answer) - 1 for answer in question[2])
        if part and total + size > MAX_PACKED:
            yield part
            part, total = [], 0
        part.append(question)
        total += size
    yield part


@torch.no_grad()
def _packed(model: nn.Module, prefix: Tensor, pictured: bool, questions: Sequence[Question]) -> Chunk:
    start = prefix.shape[1]
    size = start + sum(len(ids) + sum(len(answer) - 1 for answer in answers) for _, ids, answers in questions)
    allowed = torch.zeros(size, size, dtype=torch.bool)
    allowed[:, :start] = True
    _causal(allowed, 0, start)
    positions = torch.arange(size)
    text: list[int] = []
    read: list[tuple[int, list[int], tuple[int, ...]]] = []
    at = start
    for sample, ids, answers in questions:
        first, last = at, at + len(ids) - 1
        text += ids
        at += len(ids)
        _causal(allowed, first, at)
        positions[first:at] = torch.arange(start, start + len(ids))
        for answer in answers or [()]:
            branch = answer[:-1]
            text += branch
            allowed[at : at + len(branch), first : last + 1] = True
            _causal(allowed, at, at + len(branch))
            positions[at : at + len(branch)] = start + len(ids) + torch.arange(len(branch))
            read.append((sample, [last, *range(at, at + len(branch))], answer))
            at += len(branch)
    where = sorted({place for _, places, _ in read for place in places})
    order = {place: n for n, place in enumerate(where)}
    device = prefix.device
    embedded = model.get_input_embeddings()(torch.tensor([text], device=device)).to(prefix)
    modality = torch.full((1, size), TEXT, dtype=torch.int8)
    if pictured:
        modality[:, 1:start] = VISION  # behind the begin token; marks of columns, start and end belong to the picture
    return Chunk(
        torch.cat((prefix, embedded), 1),
        positions[None].to(device),
        allowed[None].to(device),
        modality.to(device),
        torch.tensor(where, device=device),
        tuple(Candidate(sample, tuple(order[place] for place in places), ids) for sample, places, ids in read),
    )


def _causal(allowed: Tensor, start: int, stop: int) -> None:
    size = stop - start
    allowed[start:stop, start:stop] = torch.ones(size, size, dtype=torch.bool).tril()


@torch.no_grad()
def from_batch(model: nn.Module, batch: Batch, first_sample: int = 0) -> Chunk:
    """A chunk from a batch as dataloaders give them: the model's inputs (`input_ids` [B, S], `attention_mask`, MolmoE's
    `images`, ...) and `labels` [B, S], -100 where nothing is scored, aligned with the ids as in transformers.

    Row r is sample `first_sample + r`. Without labels each row's last token is read.
    """
    if batch.get("input_ids") is None:
        raise SamplesError(
            f"a batch needs input_ids [B, S], this one has {sorted(batch)}. Give what the processor or tokenizer "
            "returns, with return_tensors='pt'."
        )
    ids = batch["input_ids"].to(model.device)
    given = batch.get("attention_mask")
    real = (ids >= 0) if given is None else given.to(model.device).bool()
    names = ("images", "image_masks", "image_input_idx")
    pictures = {name: batch[name].to(model.device) for name in names if batch.get(name) is not None}
    hidden = model.embed(ids, **pictures) if pictures else model.get_input_embeddings()(ids.clamp(min=0))
    rows, size = ids.shape
    allowed = torch.ones(size, size, dtype=torch.bool, device=ids.device).tril() & real[:, None]
    allowed |= torch.eye(size, dtype=torch.bool, device=ids.device)  # padding sees itself: no row may be empty
    modality = real.to(torch.int8) * TEXT
    if "image_input_idx" in pictures:
        index = pictures["image_input_idx"].flatten(1)
        for row in range(rows):
            patches = index[row][index[row] >= 0]
            if len(patches):  # the marks of columns, start and end belong to the picture
                modality[row, int(patches.min()) - 1 : int(patches.max()) + 3] = VISION
    positions = (real.long().cumsum(-1) - 1).clamp(min=0)
    where, candidates = _labelled(batch.get("labels"), real, first_sample)
    return Chunk(hidden, positions, allowed, modality, torch.tensor(where, device=ids.device), tuple(candidates))


def _labelled(labels: Tensor | None, real: Tensor, first_sample: int) -> tuple[list[int], list[Candidate]]:
    where: list[int] = []
    candidates = []
    rows, size = real.shape
    for row in range(rows):
        if labels is None:
            places, ids = [int(real[row].nonzero().max())], []
        else:
            scored = [i for i in (labels[row] != IGNORED).nonzero().flatten().tolist() if i > 0]
            places, ids = [i - 1 for i in scored], labels[row, scored].tolist()
        if not places:
            raise SamplesError(
                f"row {row} of a batch has no label to score: all are {IGNORED}. Remove it, or label its answer."
            )
        at = tuple(range(len(where), len(where) + len(places)))
        where += [row * size + place for place in places]
        candidates.append(Candidate(first_sample + row, at, tuple(ids)))
    return where, candidates
