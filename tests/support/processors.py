"""Processor files as stock models have them, for tiny checkpoints and for released configurations without weights."""

import json
from collections.abc import Mapping
from pathlib import Path

from transform.architectures import architecture_of
from transform.strict_json import Record, read_json

FILE, NESTED = "preprocessor_config.json", "processor_config.json"


def processor_settings(directory: Path) -> Record:
    """What a release says of pictures, with the numbers of the model in a directory."""
    config = read_json(directory / "config.json")
    pixels = architecture_of(config).pixels
    assert pixels is not None
    return {
        "size": {"longest_edge": 16777216, "shortest_edge": 65536},
        "patch_size": pixels.number(config, "patch"),
        "temporal_patch_size": pixels.number(config, "frames"),
        "merge_size": pixels.number(config, "merge"),
        "image_mean": [0.5, 0.5, 0.5],
        "rescale_factor": 0.00392156862745098,
        "image_std": [0.5, 0.5, 0.5],
        "image_processor_type": f"{pixels.processors[0]}Fast",
    }


def add_processor(directory: Path, video: bool = True, changes: Mapping[str, object] | None = None) -> Path:
    """Write the file of pictures, changed, and the one of videos; returns the directory."""
    (directory / FILE).write_text(json.dumps(processor_settings(directory) | dict(changes or {}), indent=4))
    if video:
        (directory / f"video_{FILE}").write_text(json.dumps({"size": {"longest_edge": 7, "shortest_edge": 3}}))
    return directory
