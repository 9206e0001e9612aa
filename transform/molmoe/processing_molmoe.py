"""Prompts and images -> what MolmoE's `forward` and `generate` take.

One image per prompt, in front of the text, as the model was trained. Cutting images is `preprocessing.py`'s business.
This file travels with each variant; its settings are in processor_config.json.
"""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from transformers import BatchFeature, PreTrainedConfig, ProcessorMixin

from .arguments import Usual, texts_and_images
from .pictures import ImageInput
from .preprocessing import Preprocessed, fitting_tiling, preprocess
from .tiling import image_tokens

IMAGE_TOKENS = ("<im_start>", "<im_end>", "<im_patch>", "<im_col>")
UNUSED = -1  # crops, masks and indices which only fill up a batch


class MolmoEProcessor(ProcessorMixin):
    """A tokenizer, and how images are cut.

    `vision_tokens` fixes the budget (a multiple of 144, or low, medium, high); None is the released model's
    behaviour with at most `max_crops` tiles. `vocab_size` is the model's, whose next four ids stand for the image
    where the tokenizer doesn't know them.
    """

    def __init__(
        self,
        tokenizer: Any,
        vision_tokens: int | str | None = None,
        resize: str = "pad",
        rule: str = "canvas",
        max_crops: int = 12,
        vocab_size: int | None = None,
    ) -> None:
        self.vision_tokens = vision_tokens
        self.resize = resize
        self.rule = rule
        self.max_crops = max_crops
        self.vocab_size = vocab_size
        super().__init__(tokenizer)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str], *args: Any, **kwargs: Any) -> Any:
        """transformers' own; `vocab_size` is looked up in config.json if processor_config.json doesn't have it."""
        processor = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        if processor.vocab_size is None:
            where = {k: kwargs[k] for k in ("revision", "subfolder", "token", "cache_dir") if k in kwargs}
            try:
                config, _ = PreTrainedConfig.get_config_dict(pretrained_model_name_or_path, **where)
            except OSError:  # a directory with nothing but a tokenizer, which knows the ids
                config = {}
            processor.vocab_size = config.get("vocab_size")
        return processor

    @property
    def model_input_names(self) -> list[str]:
        """What a call returns."""
        return ["input_ids", "attention_mask", "images", "image_masks", "image_input_idx"]

    @property
    def bos_id(self) -> int:
        """What a sequence starts with: the end-of-text token, for the tokenizer has no token of its own for it."""
        bos = self.tokenizer.bos_token_id
        return int(self.tokenizer.eos_token_id if bos is None else bos)

    @property
    def image_token_ids(self) -> tuple[int, int, int, int]:
        """The ids of start, end, patch and column."""
        vocabulary = self.tokenizer.get_vocab()
        if all(token in vocabulary for token in IMAGE_TOKENS):
            start, end, patch, column = (int(vocabulary[token]) for token in IMAGE_TOKENS)
            return start, end, patch, column
        if self.vocab_size is None:
            raise ValueError(
                f"the image's token ids must be known: the tokenizer lacks {', '.join(IMAGE_TOKENS)} and there is no "
                "vocab_size to count on from. Pass vocab_size, the model's."
            )
        return self.vocab_size, self.vocab_size + 1, self.vocab_size + 2, self.vocab_size + 3

    def __call__(
        self,
        text: str | Sequence[str] | None = None,
        images: ImageInput | Sequence[Any] | None = None,
        tokens: int | str | None = None,
        *,
        return_tensors: str | None = "pt",
        padding_side: str = "right",
        raw: bool = False,
        **usual: Any,
    ) -> BatchFeature:
        """Prepare one prompt or a batch; `images` holds one image (or None) per prompt, `tokens` overrules the budget.

        Returns input_ids, attention_mask [B, S] and, if there is an image, images [B, N, 576, 588],
        image_masks [B, N, 576], image_input_idx [B, N, 144] (BOS counted). `raw` takes the texts as they are,
        without " User: " and " Assistant:". `usual`: padding, truncation, max_length, max_crops, also as text_kwargs
        and images_kwargs; see `arguments.py`.
        """
        asked = Usual.of(usual, tokens=tokens, return_tensors=return_tensors, padding_side=padding_side)
        texts, pictures = texts_and_images(text, images)
        cut = [self._cut(picture, asked) for picture in pictures]
        rows = [self._row(prompt, image, raw) for prompt, image in zip(texts, cut, strict=True)]
        length = asked.length(rows)
        if asked.padding_side not in ("left", "right"):
            raise ValueError(f"padding_side must be left or right, got {asked.padding_side!r}.")
        before = [length - len(row) if asked.padding_side == "left" else 0 for row in rows]
        pad = self.tokenizer.pad_token_id
        ids = np.full((len(rows), length), self.bos_id if pad is None else pad, np.int64)
        mask = np.zeros_like(ids)
        for b, row in enumerate(rows):
            ids[b, before[b] : before[b] + len(row)] = row
            mask[b, before[b] : before[b] + len(row)] = 1
        data = {"input_ids": ids, "attention_mask": mask, **_batch(cut, before)}
        return BatchFeature(data, tensor_type=asked.return_tensors)

    def process(self, text: str | None = None, images: Any = None, **usual: Any) -> dict[str, Any]:
        """The published Molmo's name for one prompt: a call's tensors without the batch's dimension and the mask."""
        batch = self(text, images, **usual)
        if len(batch["input_ids"]) != 1:
            raise ValueError(f"process takes one prompt, got {len(batch['input_ids'])}. Call the processor itself.")
        return {name: value[0] for name, value in batch.items() if name != "attention_mask"}

    def _cut(self, picture: ImageInput | None, asked: Usual) -> Preprocessed | None:
        if picture is None:
            return None
        budget = self.vision_tokens if asked.tokens is None else asked.tokens
        most = self.max_crops if asked.max_crops is None else asked.max_crops
        made = preprocess(picture, budget, max_crops=most, resize=self.resize, rule=self.rule)
        asked.check_crops(len(made.images) - 1)
        return made

    def image_length(self, picture: ImageInput, tokens: int | str | None = None) -> int:
        """Tokens of an image's stream, without computing a pixel; raises what a call with this image would."""
        budget = self.vision_tokens if tokens is None else tokens
        tiling = fitting_tiling(picture, budget, max_crops=self.max_crops, resize=self.resize, rule=self.rule)
        return image_tokens(*tiling)

    def _row(self, prompt: str, image: Preprocessed | None, raw: bool) -> list[int]:
        text = prompt if raw else f" User: {prompt} Assistant:"
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        if any(token in text for token in IMAGE_TOKENS) and not raw and set(self.image_token_ids) & set(ids):
            raise ValueError("a prompt must not contain the image's own tokens, such as <im_patch>. Leave them out.")
        stream = [] if image is None else image.image_tokens(*self.image_token_ids).tolist()
        return [self.bos_id, *stream, *ids]


def _batch(cut: list[Preprocessed | None], before: list[int]) -> dict[str, np.ndarray]:
    """Crops, masks and index maps of a batch, filled up with `UNUSED`; nothing if there is no image at all."""
    given = [image for image in cut if image is not None]
    if not given:
        return {}
    crops = max(len(image.images) for image in given)
    shapes = {name: getattr(given[0], name).shape[1:] for name in ("images", "image_masks", "image_input_idx")}
    dtypes = {"images": np.float32, "image_masks": np.float32, "image_input_idx": np.int32}
    batch = {name: np.full((len(cut), crops, *shape), UNUSED, dtypes[name]) for name, shape in shapes.items()}
    for b, image in enumerate(cut):
        if image is not None:
            n, index = len(image.images), image.image_input_idx
            batch["images"][b, :n] = image.images
            batch["image_masks"][b, :n] = image.image_masks
            # 1 for BOS; features without a place stay negative
            batch["image_input_idx"][b, :n] = np.where(index < 0, index, index + 1 + before[b])
    return batch
