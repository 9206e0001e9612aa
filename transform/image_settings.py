"""What a source says about cutting images outside config.json: read, or refused where it isn't what we compute.

A stock model's image processor goes by preprocessor_config.json (in transformers 5 also by `image_processor` inside
processor_config.json), a variant's by its own processor_config.json.
"""

from collections.abc import Iterator, Mapping

from transform.architectures import shown
from transform.checkpoint import Checkpoint
from transform.errors import CheckpointError
from transform.strict_json import Record, read_json

PROCESSOR, PREPROCESSOR = "processor_config.json", "preprocessor_config.json"
STOCK_CROPS = 12
MOST_CROPS = 100  # trained with 12, evaluated with 36
# Those of `molmoe/preprocessing.py`, whose arrays a plan would have to import numpy for.
RESIZES = ("pad", "fill")
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
# The only values that preprocessing computes with; what isn't there is so by default.
_FIXED: Mapping[str, tuple[object, ...]] = {
    "do_normalize": (True,),
    "do_rescale": (True,),
    "do_resize": (True,),
    "do_convert_rgb": (True,),
    "rescale_factor": (1 / 255,),
    "base_image_input_size": ([336, 336], 336),
    "image_token_length_h": (12,),
    "image_token_length_w": (12,),
    "image_patch_size": (14,),
    "image_padding_mask": (True,),
    "overlap_margins": ([4, 4],),
}


def variant_policy(source: Checkpoint) -> Record | None:
    """The processor_config.json of a variant; None for any other model."""
    images = source.architecture.images
    if images is None or PROCESSOR not in source.side_files:
        return None
    stored = read_json(source.path / PROCESSOR)
    return stored if stored.get("processor_class") == images.processor.rpartition(".")[2] else None


def max_crops(source: Checkpoint) -> int:
    """The most tiles of an image: as the variant, the image processor or config.json says, or else 12.

    Raises CheckpointError for any setting of the image processor that preprocessing doesn't have.
    """
    stored = variant_policy(source)
    places: list[tuple[str, Mapping[str, object]]] = (
        [(PROCESSOR, stored)] if stored is not None else list(_stock_settings(source))
    )
    if stored is None:
        for file, settings in places:
            _check_fixed(file, settings)
    for file, settings in (*places, ("config.json", source.config)):
        if settings.get("max_crops") is not None:
            most = settings["max_crops"]
            if type(most) is not int or not 1 <= most <= MOST_CROPS:
                raise CheckpointError(
                    f"{file}: max_crops must be a whole number from 1 to {MOST_CROPS}, got {shown(most)}. "
                    f"Restore the original {file}."
                )
            return most
    return STOCK_CROPS


def _stock_settings(source: Checkpoint) -> Iterator[tuple[str, Mapping[str, object]]]:
    for file in (PREPROCESSOR, PROCESSOR):
        if file in source.side_files:
            stored = read_json(source.path / file)
            yield file, stored
            if isinstance(stored.get("image_processor"), Mapping):
                yield file, stored["image_processor"]


def _check_fixed(file: str, settings: Mapping[str, object]) -> None:
    for key, allowed in _FIXED.items():
        value = settings.get(key)
        if value is not None and not any(
            value == a and isinstance(value, bool) == isinstance(a, bool) for a in allowed
        ):
            raise _refused(file, key, allowed[0], value)
    for key, wanted in (("image_mean", MEAN), ("image_std", STD)):
        value = settings.get(key)
        if value is not None and not _close(value, wanted):
            raise _refused(file, key, wanted, value)


def _close(value: object, wanted: tuple[float, ...]) -> bool:
    """Whether the values are the same in float32."""
    if not isinstance(value, list) or len(value) != len(wanted):
        return False
    return all(type(v) in (int, float) and abs(v - w) < 1e-7 for v, w in zip(value, wanted, strict=True))


def _refused(file: str, key: str, wanted: object, value: object) -> CheckpointError:
    return CheckpointError(
        f"{file}: {key} must be {shown(wanted)}, which is what pictures are prepared with here, got {shown(value)}. "
        "Use a checkpoint with the supported value."
    )
