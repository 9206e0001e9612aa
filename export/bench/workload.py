"""What every contestant is given: one prompt of exactly P token ids, one picture for image models, N tokens to make.

The ids are those of a text, since a router that sees drawn ids spreads them over experts as no text does.
No torch.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import numpy as np

from export.run.graphs import open_tokenizer
from export.run.io_file import ROLES, Io
from export.run.picture import Picture
from transform.arrays import Array
from transform.errors import KnobError, VerificationError
from transform.molmoe.tiling import TOKENS_PER_CROP
from transform.strict_json import Record

DEFAULT_PROMPT = 512
MOST_IDS = 1 << 24  # of a vocabulary
LEAST_TEXT = 64  # tokens of text behind a picture, where the default would leave fewer
PICTURE = ("images", "image_masks", "image_input_idx", "feature_index")
TEXT = """The lighthouse stands where the river meets the sea. In winter the keeper counted forty-one ships on a clear
day, and seven when fog lay over the bay; he wrote every number into a green book, with the hour and the wind. His
daughter, who later studied glass in another town, remembered the lamp best: a tower of prisms, taller than a man, that
gathered the light of a small flame and threw it twenty miles. "It isn't the flame," she used to say, "it's what you do
with it." When the railway came, fewer ships passed. A company bought the house in 1911, sold it again, and for some
years it was a school where children of fishermen learned arithmetic, maps and a little Latin. Today there is a museum.
You enter through the kitchen: copper pans, a stove, three chairs. Upstairs you find the books, page after page of
ships: names, flags, loads of timber, salt, oranges and coal. A machine reads them now. It has found two wrecks that
nobody had reported, an island that the old charts put four miles too far east, and the day in June when the keeper,
for once, wrote no number at all, only: married. Visitors may climb the stairs between ten and five, except on Mondays;
the ticket costs eight euros, children pay half, and on the first Sunday of a month everyone goes in free. """


class WorkloadFacts(TypedDict):
    """What was asked for, in the record; crops and image tokens are 0 without a picture."""

    batch: int
    prompt_tokens: int
    prompt_from: str
    crops: int
    image_tokens: int
    new_tokens: int
    steps: int


@dataclass(frozen=True)
class Workload:
    """`ids` int64 [1, P] with BOS and image stream; `picture` holds PICTURE's arrays, empty for text-only models:
    images [n, 576, 588], image_masks [n, 576], image_input_idx [1, n, 144] counting BOS, feature_index [t]."""

    ids: Array
    new_tokens: int
    picture: Mapping[str, Array]
    source: str  # "text", or "drawn" where the variant has no tokenizer

    @property
    def image_tokens(self) -> int:
        """How many ids of the prompt hold an image feature."""
        return len(self.picture["feature_index"]) if self.picture else 0

    def save(self, path: Path) -> None:
        """Write what a contestant needs."""
        arrays: Record = {"ids": self.ids, "new_tokens": self.new_tokens, **self.picture}
        np.savez(path, **arrays)

    @classmethod
    def load(cls, path: Path) -> "Workload":
        """What `save` wrote."""
        with np.load(path) as found:
            picture = {name: found[name] for name in PICTURE if name in found}
            return cls(found["ids"], int(found["new_tokens"]), picture, "")

    def as_dict(self) -> WorkloadFacts:
        """For the record."""
        return {
            "batch": 1,
            "prompt_tokens": self.ids.shape[1],
            "prompt_from": self.source,
            "crops": len(self.picture["images"]) if self.picture else 0,
            "image_tokens": self.image_tokens,
            "new_tokens": self.new_tokens,
            "steps": self.new_tokens - 1,
        }


def make_workload(
    directory: Path, io: Io, prompt_tokens: int | None, new_tokens: int, seen: Picture | None = None
) -> Workload:
    """A prompt of `prompt_tokens` (None: 512, more where a picture needs more), behind the picture that is `seen`;
    raises KnobError where it can't be."""
    if new_tokens < 2:
        raise KnobError(
            f"--new-tokens must be at least 2: the first token comes with the prefill, so {new_tokens} make no step to "
            "be timed. Give 2 or more."
        )
    special = io["special_ids"]
    picture = {} if seen is None else _arrays(seen, special["image_patch"])
    opening = [special["bos"]] if "vision" in io else []
    opening += [] if seen is None else seen.ids.tolist()
    default = max(DEFAULT_PROMPT, len(opening) + LEAST_TEXT)
    length = default if prompt_tokens is None else prompt_tokens
    if length <= len(opening):
        least = "the picture with its marks and the first token takes" if opening else "there is"
        raise KnobError(
            f"--prompt-tokens must leave room for text: {least} {len(opening)}, got {length}. Give at least "
            f"{len(opening) + 1}."
        )
    positions = io["max_positions"]
    if length + new_tokens > positions:
        raise KnobError(
            f"prompt and new tokens must fit the model's {positions} positions: {length} and {new_tokens} are "
            f"{length + new_tokens}. Lower --prompt-tokens or --new-tokens."
        )
    count = length - len(opening)
    words, source = text_ids(directory, io, count)
    return Workload(np.array([[*opening, *words]], np.int64), new_tokens, picture, source)


def _arrays(seen: Picture, patch: int) -> dict[str, Array]:
    """PICTURE's arrays: the j-th feature that is kept belongs to the j-th `patch` of the ids."""
    index = np.full(len(seen.images) * TOKENS_PER_CROP, -1, np.int32)
    index[seen.feature_index] = np.flatnonzero(seen.ids == patch) + 1  # behind BOS
    return {
        "images": seen.images,
        "image_masks": seen.image_masks,
        "image_input_idx": index.reshape(1, -1, TOKENS_PER_CROP),
        "feature_index": seen.feature_index.astype(np.int64),
    }


def text_ids(directory: Path, io: Io, count: int) -> tuple[list[int], str]:
    """`count` ids of TEXT, over and over; drawn ones where there is no tokenizer."""
    known = io["special_ids"]
    special = {known["bos"], *known["eos"], *(known[role] for role in ROLES if role in known)}
    if (directory / "tokenizer.json").is_file():
        encoded = open_tokenizer(directory).encode(TEXT, add_special_tokens=False).ids
        ids = [i for i in encoded if i not in special]
        if ids:
            return (ids * (count // len(ids) + 1))[:count], "text"
    graph = io.get("graphs", {}).get("text.onnx")
    outputs = graph["outputs"] if graph else ()
    vocab = next((o["shape"][-1] for o in outputs if o["name"] == "logits" and o["shape"]), None)
    if type(vocab) is not int or not len(special) < vocab <= MOST_IDS:
        raise VerificationError(
            f"io.json: the decoder's logits must have a vocabulary of at most {MOST_IDS:,} ids, got {str(vocab)[:40]}. "
            "Export the variant again."
        )
    ordinary = np.array([i for i in range(vocab) if i not in special])
    return np.random.Generator(np.random.PCG64(0)).choice(ordinary, count).tolist(), "drawn"
