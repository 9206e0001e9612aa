"""What config.json says of blocks and of the output matrix, against what the headers hold: before any work.

Transformers builds a model by its config alone. Where that and the tensors disagree it drops weights, or makes up
others, with a warning that nobody reads.
"""

from collections.abc import Mapping

from transform.architectures.vocabulary import (
    BEFORE_EXPERTS,
    INTERVAL,
    LAST,
    LETTERS,
    ONLY_DENSE,
    PERIODS,
    ROUTED,
    STEP,
    check_block_lists,
)
from transform.checkpoint import Checkpoint, Tensor
from transform.derived import with_derived_lists
from transform.errors import CheckpointError
from transform.experts import OF_EXPERTS
from transform.regular_file import open_regular

_SAYING = (
    ROUTED, LETTERS, "moe_layers", "moe_layer_freq", ONLY_DENSE, STEP, *BEFORE_EXPERTS, LAST, INTERVAL, PERIODS[1][0],
)  # fmt: skip
_COMPARED = 4096  # bytes at the front of each matrix; training moves all of them


def check_experts(checkpoint: Checkpoint) -> None:
    """Raise CheckpointError where the config gives experts to other blocks than the tensors do, or where a list of
    blocks has another length."""
    family = checkpoint.architecture
    if family.complete:  # its tensors were compared one by one
        return
    check_block_lists(family.text_of(checkpoint.config), checkpoint.settings.layers)
    stored = _stored(checkpoint)
    if stored == _said(checkpoint):
        return
    told = with_derived_lists(checkpoint)  # lists that transformers makes may say it
    wrong = [i for i, (has, said) in enumerate(zip(stored, _said(told), strict=True)) if has != said]
    if wrong:
        text = family.text_of(told.config)
        keys = dict.fromkeys(key for key in (family.routed, *_SAYING) if text.get(key) is not None)
        by = f" by {', '.join(keys)}" if keys else ""
        said, found = ("no experts", "has tensors of some") if stored[wrong[0]] else ("experts", "has no tensor of any")
        more = f", and so it is with {len(wrong) - 1} more" if wrong[1:] else ""
        raise CheckpointError(
            f"config.json must give experts to the blocks that have tensors of them: block {wrong[0]} has {said}{by}, "
            f"and {found}{more}. Restore the original config.json."
        )


def untied_head(checkpoint: Checkpoint) -> str | None:
    """A warning where the config ties the output matrix to the embedding, and both are stored with other values."""
    family, head, table = checkpoint.architecture, checkpoint.find("head"), checkpoint.find("embedding")
    if (
        head is None
        or table is None
        or head.pack
        or table.pack
        or not _tied(checkpoint.config, family.text_of(checkpoint.config))
    ):
        return None
    if head.shape == table.shape and head.stored == table.stored and _front(head) == _front(table):
        return None
    return (
        f"config.json says tie_word_embeddings, yet {head.name} and {table.name} differ: transformers then ties "
        "nothing and uses both, and so does the variant"
    )


def _said(checkpoint: Checkpoint) -> list[bool]:
    """Of each block, whether the config gives it experts."""
    return [experts > 0 for experts in checkpoint.settings.experts_of]


def _stored(checkpoint: Checkpoint) -> list[bool]:
    """Of each block, whether it has tensors of experts."""
    found = [False] * checkpoint.settings.layers
    for name in checkpoint.tensors:
        block, part = checkpoint.block_of(name)
        if block is not None and block < len(found) and not found[block] and OF_EXPERTS.search(part):
            found[block] = True
    return found


def _tied(*configs: Mapping[str, object]) -> bool:
    return any(config.get("tie_word_embeddings") is True for config in configs)


def _front(tensor: Tensor) -> bytes:
    with open_regular(tensor.file) as file:
        file.seek(tensor.start)
        return file.read(min(tensor.nbytes, _COMPARED))
