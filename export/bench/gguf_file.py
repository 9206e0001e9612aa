"""An OLMoE variant's weights as the file that llama.cpp reads: the same blocks and k, its matrices in Q4_0 or Q8_0.

Q4_0 holds a block of 32 as our 4-bit codes do, its value of largest magnitude as code 0 under a float16 scale: a
variant of that form is written as it is, any other is quantised. The vocabulary is made up, since prompts are ids.
"""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from export.bench.job import BenchJob
from transform.arrays import Array
from transform.checkpoint import Checkpoint, Tensor
from transform.depth import drop_blocks
from transform.packed import dequantise
from transform.read import read_checkpoint
from transform.top_k import set_top_k
from transform.write import rounded

if TYPE_CHECKING:
    from gguf import GGUFWriter

ARCHITECTURE = "olmoe"
_PIECE = "piece"
GROUP = 32  # values per scale, of Q4_0 and of Q8_0
FLOATS = {
    "norm": "output_norm.weight",
    "attention.norm": "blk.{i}.attn_norm.weight",
    "attention.q_norm": "blk.{i}.attn_q_norm.weight",
    "attention.k_norm": "blk.{i}.attn_k_norm.weight",
    "mlp.norm": "blk.{i}.ffn_norm.weight",
    "router": "blk.{i}.ffn_gate_inp.weight",
}
MATRICES = {
    "embedding": "token_embd.weight",
    "head": "output.weight",
    "attention.q": "blk.{i}.attn_q.weight",
    "attention.k": "blk.{i}.attn_k.weight",
    "attention.v": "blk.{i}.attn_v.weight",
    "attention.out": "blk.{i}.attn_output.weight",
}
EXPERTS = {
    "expert.gate": "blk.{i}.ffn_gate_exps.weight",
    "expert.up": "blk.{i}.ffn_up_exps.weight",
    "expert.down": "blk.{i}.ffn_down_exps.weight",
}


def why_not(checkpoint: Checkpoint, top_k: Sequence[int]) -> str | None:
    """Why llama.cpp can't be given this checkpoint with these k; None where it can."""
    settings, kind = checkpoint.settings, checkpoint.architecture.model_type
    if kind != ARCHITECTURE:
        return f"takes variants of {ARCHITECTURE} models, this is a {kind}: leave it out of --against"
    if len(set(top_k)) > 1:
        return f"has one k for all blocks, this variant has {list(top_k)}: leave it out of --against"
    for word, held in (("norm_topk_prob", settings.norm_top_k), ("clip_qkv", settings.clip_qkv is not None)):
        if held:
            return f"has no {word} for {ARCHITECTURE}, and the config sets it: leave it out of --against"
    inner = checkpoint.tensor("expert.gate").shape[0]
    if settings.hidden % GROUP or inner % GROUP:
        return f"needs widths that are multiples of {GROUP}, these are {settings.hidden} and {inner}: leave it out"
    return None


def write_gguf(checkpoint: Checkpoint, path: Path) -> None:
    """Write the file; the checkpoint is one that `why_not` has nothing against. Holds one matrix of a block's experts
    at a time."""
    from gguf import GGMLQuantizationType as Kind
    from gguf import GGUFWriter, RopeScalingType
    from gguf.quants import quantize

    settings = checkpoint.settings
    packed = Kind.Q8_0 if quantised_bits(checkpoint) == 8 else Kind.Q4_0
    writer = GGUFWriter(path, ARCHITECTURE)
    writer.add_context_length(settings.max_positions)
    writer.add_embedding_length(settings.hidden)
    writer.add_block_count(settings.layers)
    writer.add_feed_forward_length(checkpoint.tensor("expert.gate").shape[0])
    writer.add_head_count(settings.heads)
    writer.add_head_count_kv(settings.kv_heads)
    writer.add_rope_dimension_count(settings.head_dim)
    writer.add_rope_freq_base(settings.rope_theta)
    writer.add_rope_scaling_type(RopeScalingType.NONE)
    writer.add_layer_norm_rms_eps(settings.eps)
    writer.add_expert_count(settings.experts)
    writer.add_expert_used_count(settings.top_k[0])
    _add_vocabulary(writer, checkpoint.tensor("embedding").shape[0])
    places = list(_places(checkpoint))
    for name, tensors, is_matrix in places:
        kind = packed if is_matrix else Kind.F32
        shape = tensors[0].shape if len(tensors) == 1 else (len(tensors), *tensors[0].shape)
        group, size = (GROUP, {Kind.Q4_0: 18, Kind.Q8_0: 34}[packed]) if is_matrix else (1, 4)
        writer.add_tensor_info(name, shape, np.dtype(np.float32), math.prod(shape) // group * size, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for _, tensors, is_matrix in places:
        kind = packed if is_matrix else Kind.F32
        parts = [quantize(_values(tensor), kind) for tensor in tensors]
        writer.write_tensor_data(parts[0] if len(parts) == 1 else np.stack(parts))
    writer.close()


def checkpoint_of(job: BenchJob) -> Checkpoint:
    """The variant of a job; of a family, the member's blocks and k."""
    found = read_checkpoint(Path(job.directory))
    if job.blocks_kept is None or job.top_k is None:
        return found
    return set_top_k(drop_blocks(found, job.blocks_kept), job.top_k)


def token_of(text: str) -> int:
    """The id whose piece `text` is, of the vocabulary that `write_gguf` makes up."""
    return int(text.strip().removeprefix(_PIECE))


def quantised_bits(checkpoint: Checkpoint) -> int | None:
    """Of the experts' codes; None: they are floats."""
    pack = checkpoint.tensor("expert.gate").pack
    return None if pack is None else pack.bits


def _places(checkpoint: Checkpoint) -> Iterator[tuple[str, list[Tensor], bool]]:
    """(llama.cpp's name, the tensors that are one there, whether it is a matrix)."""
    settings = checkpoint.settings
    for table, count, is_matrix in ((FLOATS, 1, False), (MATRICES, 1, True), (EXPERTS, settings.experts, True)):
        for role, name in table.items():
            for i in range(settings.layers if "{i}" in name else 1):
                yield name.format(i=i), [checkpoint.tensor(role, i, e) for e in range(count)], is_matrix


def _values(tensor: Tensor) -> Array:
    if tensor.pack is not None:
        return dequantise(tensor)
    data = np.fromfile(tensor.file, np.uint8, tensor.nbytes, offset=tensor.start).tobytes()
    return rounded(tensor, data).astype(np.float32).reshape(tensor.shape)


def _add_vocabulary(writer: "GGUFWriter", size: int) -> None:
    """A piece per id that says it; none has a role, for those have no text."""
    from gguf import TokenType

    writer.add_tokenizer_model("llama")
    writer.add_token_list([f"{_PIECE}{i}".encode() for i in range(size)])
    writer.add_token_scores([0.0] * size)
    writer.add_token_types([TokenType.NORMAL] * size)
