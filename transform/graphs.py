"""Whether a checkpoint's family has graphs, or why not: what a plan, a card and a manifest say in their place."""

import re

from transform.architectures import lookup
from transform.architectures.graph_keys import unfit, unread_keys
from transform.architectures.windows import unsaid_windows
from transform.checkpoint import Checkpoint
from transform.errors import CheckpointError
from transform.experts import PARTS, in_slabs

_SINGLE = tuple(f"expert.{part}" for part in PARTS)
_EXPERT = re.compile(r"(?<=experts\.)[0-9]+(?=\.)")

NONE_YET = "no graphs for this family yet"
NONE_FOR_IT = "no graphs for this checkpoint"


def why_no_graphs(checkpoint: Checkpoint) -> str | None:
    """The reason in one line; None where graphs can be emitted."""
    family = checkpoint.architecture
    if family.complete:
        return None
    if method := quantised_by(checkpoint):
        return f"{NONE_YET}: nothing reads weights quantised by {method}"
    unread = unread_tensors(checkpoint) if family.roles else []
    if unread:
        return f"{NONE_YET}: nothing reads {unread[0]}{f' and {len(unread) - 1} more' if unread[1:] else ''}"
    if family.graph is None:
        return f"{NONE_YET}: nothing says how a {family.model_type!r} decoder computes"
    config = family.text_of(checkpoint.config)
    of_settings = {key.partition(".")[0] for names in family.keys.values() for key in names}
    if keys := unread_keys(family.graph, of_settings, config):
        return f"{NONE_FOR_IT}: nothing reads {', '.join(keys)} of config.json"
    if not checkpoint.has("embedding"):
        return f"{NONE_FOR_IT}: there is no {checkpoint.name('embedding')}"
    layers, listed = checkpoint.settings.layers, family.reads_kinds
    if reason := unfit(family.graph, config) or unsaid_windows(config, layers, family.window, family.switch, listed):
        return f"{NONE_FOR_IT}: {reason}"
    if reason := unfit_shapes(checkpoint):
        return f"{NONE_FOR_IT}: {reason}"
    try:
        _ = checkpoint.graph
    except CheckpointError as error:
        return f"{NONE_FOR_IT}: {error}"
    return None


def unfit_shapes(checkpoint: Checkpoint) -> str | None:
    """The first tensor whose shape isn't the one that the config's numbers give it, of a decoder with tensors."""
    settings = checkpoint.settings
    d, q, kv = settings.hidden, settings.heads * settings.head_dim, settings.kv_heads * settings.head_dim
    around = {"embedding": (settings.vocab, d), "head": (settings.vocab, d), "norm": (d,)}
    inside = {
        "attention.q": (q, d), "attention.k": (kv, d), "attention.v": (kv, d), "attention.out": (d, q),
        "attention.norm": (d,), "mlp.norm": (d,),
    }  # fmt: skip
    wanted = [(role, 0, shape) for role, shape in around.items()]
    for i, experts in enumerate(settings.experts_of):
        wanted += [(role, i, shape) for role, shape in inside.items()]
        wanted += [("router", i, (experts, d))] if experts else []
    for role, i, shape in wanted:
        tensor = checkpoint.find(role, i)
        if tensor is not None and tensor.shape != shape:
            return f"{tensor.name} must have the shape {list(shape)} by config.json, it has {list(tensor.shape)}"
    return None


def quantised_by(checkpoint: Checkpoint) -> str | None:
    """The method by which another tool has quantised weights that pass as they are; None: they are plain."""
    method = lookup(checkpoint.config, "quantization_config.quant_method")
    return str(method) if method in checkpoint.architecture.quantised else None


def unread_tensors(checkpoint: Checkpoint) -> list[str]:
    """Tensors of the decoder that no role reads, by their names with {i} for the block and {e} for experts; those of
    its blocks first. One spelling of a role is read, and of experts their slabs where a block has both."""
    family, layers = checkpoint.architecture, range(checkpoint.settings.layers)
    known = {re.sub(r"\{[ie]\}", "#", checkpoint.spelling(role)) for role in family.roles}
    single = {re.sub(r"\{[ie]\}", "#", checkpoint.spelling(role)) for role in family.roles if role in _SINGLE}
    slabs = {i for i in layers if in_slabs(checkpoint, i)} if "expert.gate_up" in family.roles else set()
    found: dict[str, None] = {}
    around: dict[str, None] = {}
    for name in checkpoint.tensors:
        block, part = checkpoint.block_of(name)
        if checkpoint.is_beyond(name):
            continue
        if block is None:
            around |= {} if name in known else {name: None}
            continue
        plain = f"{checkpoint.block_prefix}#.{_EXPERT.sub('#', part)}"
        if plain not in known or (plain in single and block in slabs):
            found[plain.replace("#", "{i}", 1).replace("#", "{e}")] = None
    return [*found, *around]
