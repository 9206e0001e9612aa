"""Everything that travels with a MolmoE variant: flat files that import each other and nothing else of knobcast.

Names that need torch or transformers are resolved when first asked for, so that planning and tiling stay light.
This file stays behind: in a variant the files lie beside config.json.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transform.molmoe.configuration_molmoe import MolmoEConfig
    from transform.molmoe.modeling_molmoe import MolmoEForConditionalGeneration
    from transform.molmoe.processing_molmoe import MolmoEProcessor

__all__ = [
    "AUTO_MAP",
    "TRAVELLING_FILES",
    "MolmoEConfig",
    "MolmoEForConditionalGeneration",
    "MolmoEProcessor",
    "processor_config",
]

_HOMES = {
    "MolmoEConfig": "configuration_molmoe",
    "MolmoEForConditionalGeneration": "modeling_molmoe",
    "MolmoEProcessor": "processing_molmoe",
}
# What config.json says, so that the Auto classes find the files beside it (`trust_remote_code=True`).
AUTO_MAP = {
    "AutoConfig": "configuration_molmoe.MolmoEConfig",
    "AutoModelForCausalLM": "modeling_molmoe.MolmoEForConditionalGeneration",  # as the published Molmo is loaded
    "AutoModelForImageTextToText": "modeling_molmoe.MolmoEForConditionalGeneration",
    "AutoProcessor": "processing_molmoe.MolmoEProcessor",
}
TRAVELLING_FILES = (
    "arguments.py",
    "compatibility.py",
    "configuration_molmoe.py",
    "modeling_molmoe.py",
    "pictures.py",
    "png_texts.py",
    "preprocessing.py",
    "processing_molmoe.py",
    "resampling.py",
    "tiling.py",
    "versions.py",
)


def processor_config(
    vision_tokens: int | str | None, resize: str, rule: str, max_crops: int, vocab_size: int | None = None
) -> dict[str, Any]:
    """What a variant's processor_config.json holds: how its images are cut, and who cuts them.

    `vocab_size` is needed only where neither the tokenizer has the image tokens nor a config.json lies beside.
    """
    settings = {"vision_tokens": vision_tokens, "resize": resize, "rule": rule, "max_crops": max_crops}
    auto_map = {"AutoProcessor": AUTO_MAP["AutoProcessor"]}
    known = {} if vocab_size is None else {"vocab_size": vocab_size}
    return {"auto_map": auto_map, "processor_class": "MolmoEProcessor", **settings, **known}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
