"""What callers of transformers' processors usually pass -> what this one takes, or one sentence that says why not.

Harnesses written for many models give `padding=True` and pictures in lists of lists to all of them. Nothing given is
ignored unless it is what happens anyway. This file travels with each variant.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from .pictures import ImageError, ImageInput, decode_image

GROUPS = ("text_kwargs", "images_kwargs", "common_kwargs")
ABSENT = ("videos", "audio", "audios", "videos_kwargs", "audio_kwargs")  # taken as long as they are empty
SEVERAL = "Several images in one prompt were never trained."


@dataclass(frozen=True)
class Usual:
    """The arguments of one call. padding: True or "longest", False, "max_length"; max_length: the most tokens of a row,
    which is never cut; max_crops: the most tiles of an image; tokens: its budget."""

    padding: bool | str | None = None
    truncation: bool | str | None = None
    max_length: int | None = None
    max_crops: int | None = None
    tokens: int | str | None = None
    return_tensors: str | None = "pt"
    padding_side: str = "right"

    @classmethod
    def of(cls, given: Mapping[str, Any], **named: Any) -> "Usual":
        """From single arguments and the groups of them that transformers knows; raises TypeError for any other."""
        flat = dict(named)
        for name, value in given.items():
            if name in GROUPS:
                flat.update(value or {})
            elif name not in ABSENT or value:
                flat[name] = value
        unknown = sorted(flat.keys() - cls.__dataclass_fields__.keys())
        if unknown:
            raise TypeError(
                f"the processor takes text, images, raw, {', '.join(cls.__dataclass_fields__)}, alone or in "
                f"{', '.join(GROUPS)}; it doesn't know {', '.join(unknown)}. Leave it out."
            )
        return cls(**{name: getattr(value, "value", value) for name, value in flat.items()})

    def length(self, rows: Sequence[Sequence[int]]) -> int:
        """How long the rows of a batch become; raises ValueError where that isn't possible without cutting one."""
        lengths = [len(row) for row in rows]
        longest = max(lengths)
        cutting = self.truncation not in (False, "do_not_truncate")
        if self.max_length is not None and cutting and longest > self.max_length:
            raise ValueError(
                f"a row must fit max_length, for cutting would take its image or its end: {longest} tokens for "
                f"{self.max_length}. Shorten the prompt, use fewer vision tokens, or raise max_length."
            )
        if self.padding == "max_length":
            if self.max_length is None:
                raise ValueError('padding="max_length" needs max_length, in tokens. Give it, or use padding=True.')
            return max(longest, self.max_length)
        if self.padding not in (None, True, False, "longest", "do_not_pad"):
            raise ValueError(f"padding must be True, False, longest or max_length, got {self.padding!r}.")
        if self.padding in (False, "do_not_pad") and longest > min(lengths):
            raise ValueError(
                f"rows of a batch without padding must be equally long, they have {min(lengths)} to {longest} tokens. "
                "Use padding=True, or one prompt at a time."
            )
        return longest

    def check_crops(self, crops: int) -> None:
        """Refuse an image of more tiles than asked for: a fixed budget decides their number."""
        if self.max_crops is not None and crops > self.max_crops:
            raise ValueError(
                f"max_crops must be at least the tiles of the vision budget, {crops}: got {self.max_crops}. Give a "
                "smaller budget as tokens, or leave max_crops out."
            )


def texts_and_images(text: Any, images: Any) -> tuple[list[str], list[ImageInput | None]]:
    """The prompts, and one image or None for each; text and images may have changed places."""
    if _is_text(images) and text is not None and not _is_text(text):
        text, images = images, text
    if text is None:
        raise ValueError('a prompt must be given with text=; text="Describe this image." will do for an image.')
    if not _is_text(text):
        raise TypeError(f"text must be a string or a list of strings, got {_kind(text)}. Name the arguments.")
    texts = [text] if isinstance(text, str) else list(text)
    return texts, _one_each(images, len(texts))


def _is_text(value: Any) -> bool:
    return isinstance(value, str) or (
        isinstance(value, list | tuple) and bool(value) and all(isinstance(one, str) for one in value)
    )


def _kind(value: Any) -> str:
    return (
        f"a {type(value).__name__} of {_kind(value[0])}"
        if isinstance(value, list) and value
        else f"{type(value).__name__}"
    )


def _one_each(images: Any, prompts: int) -> list[ImageInput | None]:
    if images is None or (isinstance(images, list | tuple) and not images):
        return [None] * prompts
    batched = getattr(images, "ndim", 3) == 4
    batch = list(images) if batched or isinstance(images, list | tuple) else [images]
    nested = [list(one) if isinstance(one, list | tuple) else [one] for one in batch]
    if any(len(one) > 1 for one in nested):
        most = max(len(one) for one in nested)
        raise ValueError(f"each prompt takes one image, or None: got a list of {most} for one prompt. {SEVERAL}")
    if len(batch) != prompts:
        raise ValueError(
            f"each prompt takes one image, or None: got {prompts} prompts and {len(batch)} images. {SEVERAL}"
        )
    return [_image(one[0]) if one else None for one in nested]


def _image(value: Any) -> ImageInput | None:
    """A tensor as an array; an array [3, h, w] with its channels last; bytes decoded."""
    if value is None or isinstance(value, str | os.PathLike | Image.Image):
        return value
    if isinstance(value, bytes):
        return decode_image(value)
    if not hasattr(value, "__array__"):
        raise ImageError(
            f"An image must be a path, a PIL image, an array, a tensor or the bytes of a file, got {_kind(value)}. "
            "Convert it to one of these."
        )
    try:
        array = np.asarray(value.detach().cpu() if hasattr(value, "detach") else value)
    except TypeError as error:  # such as bfloat16
        raise ImageError(f"An image tensor must be uint8: {error}. Convert it.") from error
    return array.transpose(1, 2, 0) if array.ndim == 3 and array.shape[0] == 3 and array.shape[2] != 3 else array
