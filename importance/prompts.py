"""Samples as the model was trained to see them: token ids, the embedded prefix of a picture, ids back to text.

Image models: begin token and image stream (the prefix, shared by all questions about a picture), then the prompt in
the family's template. Text-only models take the template alone. The same prompts as `knobcast run`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeAlias

import torch
from torch import Tensor, nn

from importance.samples import Sample, SamplesError
from transform.architectures import Prompt, imported
from transform.checkpoint import Checkpoint
from transform.errors import CheckpointError
from transform.image_settings import max_crops, variant_policy
from transform.molmoe.pictures import ImageInput
from transform.special_tokens import begin_id_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from transform.molmoe import MolmoEProcessor

    Processor: TypeAlias = MolmoEProcessor | PreTrainedTokenizerBase
else:
    Processor = object  # theirs take seconds to import


class Prompts(Protocol):
    """What the engine needs to know about a model's way of asking."""

    def question(self, sample: Sample) -> list[int]:
        """Token ids behind the prefix, at least one."""

    def prefix(self, model: nn.Module, picture: ImageInput | None) -> Tensor:
        """Embeddings [1, P, d] in front of every question about the picture; P may be 0."""

    def length(self, picture: ImageInput | None) -> int:
        """P, without a model; raises ImageError for a picture that can't be brought into its crops."""

    def answer(self, model: nn.Module, sample: Sample, text: str) -> list[int]:
        """Token ids of an answer as it would follow the question, with the end token where the model has one."""

    def end(self, model: nn.Module) -> list[int]:
        """The id that usually ends an answer; none for a model that never does."""

    def ends(self, model: nn.Module) -> frozenset[int]:
        """The ids that end an answer."""

    def text(self, ids: Sequence[int]) -> str:
        """An answer's ids as text."""


class TextPrompts:
    """For models without eyes."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", prompt: Prompt) -> None:
        self.tokenizer, self.prompt = tokenizer, prompt

    def question(self, sample: Sample) -> list[int]:
        """The tokenizer's own ids, special ones included."""
        if sample.images:
            raise SamplesError(
                f"sample {sample.id!r}: this model sees no images, the sample has {len(sample.images)}. Use text-only "
                "samples, or a model with a vision tower."
            )
        ids = list(self.tokenizer(self.prompt.around(sample.prompt))["input_ids"])
        return ids or [begin_id_of(self.tokenizer, self.prompt)]

    def prefix(self, model: nn.Module, picture: ImageInput | None) -> Tensor:
        """Nothing."""
        assert picture is None, "`question` has refused it"
        width = model.get_input_embeddings().weight.shape[1]
        return torch.empty(1, 0, width, dtype=model.dtype, device=model.device)

    def length(self, picture: ImageInput | None) -> int:
        """0."""
        assert picture is None, "`question` has refused it"
        return 0

    def answer(self, model: nn.Module, sample: Sample, text: str) -> list[int]:
        """With the space between it and the question, and the tokenizer's own end of text if that ends answers."""
        space = "" if self.prompt.around(sample.prompt)[-1].isspace() else " "
        ids = list(self.tokenizer(f"{space}{text.strip()}", add_special_tokens=False)["input_ids"])
        return ids + self.end(model)

    def end(self, model: nn.Module) -> list[int]:
        """The id that usually ends an answer, if any does: the tokenizer's end of text, else the first of `ends`."""
        ends = self.ends(model)
        usual = self.tokenizer.eos_token_id
        return [usual] if usual in ends else sorted(ends)[:1]

    def ends(self, model: nn.Module) -> frozenset[int]:
        """What `generate` stops at; the tokenizer's end of text where neither config names one."""
        for config in (model.generation_config, model.config):
            value = getattr(config, "eos_token_id", None)
            if value is not None:
                return frozenset([value] if isinstance(value, int) else value)
        end = self.tokenizer.eos_token_id
        return frozenset(() if end is None else (end,))

    def text(self, ids: Sequence[int]) -> str:
        """Without special tokens, and without the space that answers begin with."""
        return self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False).strip()


class PicturePrompts(TextPrompts):
    """For image models, through their processor."""

    def __init__(self, processor: "MolmoEProcessor", tokens: int | str | None, prompt: Prompt) -> None:
        super().__init__(processor.tokenizer, prompt)
        self.processor, self.tokens = processor, tokens
        begin_id_of(self.tokenizer, prompt)

    def question(self, sample: Sample) -> list[int]:
        """The prompt in its template, without the begin token, which belongs to the prefix."""
        try:
            row = self.processor(text=sample.prompt, return_tensors=None)["input_ids"][0]
        except ValueError as error:  # the image's own tokens
            raise SamplesError(f"sample {sample.id!r}: {error}") from error
        return row.tolist()[1:]

    def prefix(self, model: nn.Module, picture: ImageInput | None) -> Tensor:
        """Begin token and image stream; the begin token alone without a picture."""
        seen = self.processor(text="", images=picture, tokens=self.tokens, raw=True)
        names = ("input_ids", "images", "image_masks", "image_input_idx")
        return model.embed(**{name: seen[name].to(model.device) for name in names if name in seen})

    def length(self, picture: ImageInput | None) -> int:
        """The begin token and the image stream."""
        return 1 if picture is None else 1 + self.processor.image_length(picture, self.tokens)


def prompts_for(processor: Processor, tokens: int | str | None, prompt: Prompt) -> Prompts:
    """By what is given: a processor that cuts images, or a tokenizer. `prompt` is the family's."""
    if hasattr(processor, "image_token_ids"):
        return PicturePrompts(processor, tokens, prompt)
    if tokens is not None:
        raise SamplesError(
            f"a vision budget needs a model that is shown pictures here, got tokens={tokens!r}. Leave it out."
        )
    return TextPrompts(processor, prompt)


def load_processor(checkpoint: Checkpoint) -> Processor:
    """The family's processor with the directory's own image policy (a variant's fixed one, else the released
    model's), or the tokenizer of a text-only model. No code of the directory is executed."""
    directory = checkpoint.path
    tokenizer = _tokenizer(directory)
    images = checkpoint.architecture.images
    if images is None:
        return tokenizer
    policy: dict[str, object] = {"max_crops": max_crops(checkpoint)}
    stored = variant_policy(checkpoint) or {}
    policy |= {key: stored[key] for key in ("vision_tokens", "resize", "rule") if key in stored}
    return imported(images.processor)(tokenizer, vocab_size=checkpoint.settings.vocab, **policy)


def _tokenizer(directory: Path) -> "PreTrainedTokenizerBase":
    from transformers import PreTrainedTokenizerFast

    if not (directory / "tokenizer.json").is_file():
        raise CheckpointError(
            f"{directory}: prompts need tokenizer.json, there is none. Copy the source's tokenizer files here."
        )
    try:
        return PreTrainedTokenizerFast.from_pretrained(directory, local_files_only=True)
    except Exception as error:  # tokenizers raises nothing more precise
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise CheckpointError(f"{directory}: tokenizer.json must be intact: {reason}. Get it again.") from error
