"""Blocks read from the checkpoint one at a time, so that a model larger than memory can be scored.

Each block is read once per pass into one module that is used again for the next block: peak memory is one block in
float32, the output head and the activations. Reads are counted; nothing is mapped.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedConfig

from importance.around import around
from importance.calling import ScoringError
from importance.suited import insist_on_suited
from transform.architectures.vocabulary import PER_BLOCK
from transform.checkpoint import Checkpoint
from transform.depth import view_blocks, without_blocks
from transform.errors import KnobError
from transform.load import TORCH_DTYPES, building, load_view, model_class, plain_config
from transform.packed import dequantise
from transform.runtime import find_decoder, find_routers


class StreamedBlocks:
    """A checkpoint's decoder, float32. `model` has no blocks: it embeds prompts and pictures, and has norm and head."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self.layers = checkpoint.settings.layers
        try:
            self.model, self.bytes_read = _without_blocks(checkpoint)
        except KnobError as error:
            raise ScoringError(
                f"scoring block by block needs blocks that can be read by themselves: {error}"
            ) from error
        self._config = _whole_config(checkpoint)
        insist_on_suited(self.model, self._config)
        self.around = around(self._config, self.layers)
        self.agreed: set[str] = set()
        self._block = _empty_block(checkpoint)
        self._held: int | None = None

    @contextmanager
    def block(self, index: int) -> Iterator[nn.Module]:
        """The one module, holding this block's weights until another is asked for."""
        if index != self._held:
            (self._fill if self.checkpoint.architecture.complete else self._load)(index)
            self._held = index
        yield self._block

    def head(self) -> AbstractContextManager[Callable[[Tensor], Tensor]]:
        """Norm and head stay in memory."""
        decoder, own = find_decoder(self.model), self.model.get_output_embeddings()
        return nullcontext(lambda hidden: self.around.leaving(own(decoder.norm(hidden))))

    def rotary(self, hidden: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """The decoder's own."""
        cos, sin = find_decoder(self.model).rotary_emb(hidden, positions)
        return cos, sin

    def plain(self, hidden: Tensor) -> tuple[Tensor, int]:
        """The model with its first block only, which the run needs next anyway."""
        decoder = find_decoder(self.model)
        layers, config = decoder.layers, decoder.config
        said = {"num_hidden_layers": config.num_hidden_layers}
        said |= {key: value for key in PER_BLOCK if isinstance(value := getattr(config, key, None), list)}
        with self.block(0) as block:
            try:
                decoder.layers = nn.ModuleList([block])
                for key in said:
                    setattr(config, key, 1 if key == "num_hidden_layers" else getattr(self._config, key)[:1])
                return self.model(inputs_embeds=hidden, use_cache=False).logits, 1
            finally:
                decoder.layers = layers
                for key, value in said.items():
                    setattr(config, key, value)

    def forget_inputs(self) -> None:
        """Release the vision tower and the embedding tables, once everything is embedded."""
        if images := self.checkpoint.architecture.images:
            setattr(self.model.model, images.module, None)
        find_decoder(self.model).embed_tokens = None

    def _load(self, index: int) -> None:
        """A block of a family that names no parameters in memory: the model of this block alone, as it is loaded."""
        view = view_blocks(self.checkpoint, (index,))
        model, _ = load_view(view)
        self._block = find_decoder(model).layers[0]
        self.bytes_read += sum(t.nbytes for t in view.tensors.values() if view.block_of(t.name)[0] is not None)

    @torch.no_grad()
    def _fill(self, index: int) -> None:
        named, architecture = dict(self._block.named_parameters()), self.checkpoint.architecture
        parameters = {role: named[name] for role, name in architecture.modules.items()}
        for role, parameter in parameters.items():
            if role in architecture.roles and not role.startswith("expert."):
                self._read(role, parameter, index)
        if "attention.qkv" in architecture.roles:
            q, k, v = (parameters[f"attention.{part}"] for part in "qkv")
            fused = torch.empty(len(q) + len(k) + len(v), q.shape[1])
            self._read("attention.qkv", fused, index)
            for target, source in zip((q, k, v), fused.split([len(q), len(k), len(v)]), strict=True):
                target.copy_(source)
        gate_up, down = parameters["expert.gate_up"], parameters["expert.down"]
        width = gate_up.shape[1] // 2
        for expert in range(self.checkpoint.settings.experts):
            self._read("expert.gate", gate_up[expert, :width], index, expert)
            self._read("expert.up", gate_up[expert, width:], index, expert)
            self._read("expert.down", down[expert], index, expert)
        for router, _ in find_routers(self._block):
            router.top_k = self.checkpoint.settings.top_k[index]

    def _read(self, role: str, target: Tensor, i: int, e: int = 0) -> None:
        tensor = self.checkpoint.tensor(role, i, e)
        if tensor.pack is not None:
            target.copy_(torch.from_numpy(dequantise(tensor)))
            self.bytes_read += tensor.nbytes
            return
        raw = bytearray(tensor.nbytes)
        view, at = memoryview(raw), 0
        with tensor.file.open("rb", buffering=0) as file:
            file.seek(tensor.start)
            while at < tensor.nbytes:
                count = file.readinto(view[at:])
                if not count:
                    raise OSError(f"{tensor.file}: ended inside {tensor.name}")
                at += count
        self.bytes_read += tensor.nbytes
        target.copy_(torch.frombuffer(raw, dtype=TORCH_DTYPES[tensor.stored]).view(tensor.shape))


def _without_blocks(checkpoint: Checkpoint) -> tuple[nn.Module, int]:
    """(the model of a checkpoint with 0 blocks, bytes of its tensors)."""
    model, _ = load_view(checkpoint, blocks=False)
    if (checkpoint.path / "generation_config.json").is_file():  # which says what ends an answer
        model.generation_config = GenerationConfig.from_pretrained(checkpoint.path, local_files_only=True)
    return model, sum(tensor.nbytes for tensor in without_blocks(checkpoint).tensors.values())


def _whole_config(checkpoint: Checkpoint) -> PreTrainedConfig:
    """The decoder's config with all its blocks, as transformers completes it."""
    kind = model_class(checkpoint.config)
    with building(str(checkpoint.path)):
        whole = kind.config_class.from_dict(plain_config(checkpoint.config))
    found: PreTrainedConfig = whole.get_text_config(decoder=True)
    return found


def _empty_block(checkpoint: Checkpoint) -> nn.Module:
    """One decoder block with room for weights, in float32."""
    config = view_blocks(checkpoint, (0,)).config
    kind = model_class(config)
    with building(str(checkpoint.path)), torch.device("meta"):
        model = kind(kind.config_class.from_dict(plain_config(config)))
    block = find_decoder(model).layers[0]
    return block.to_empty(device="cpu").float().eval()
