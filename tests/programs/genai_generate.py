"""Greedy generation with onnxruntime-genai, run by the Python of `.venv-genai`: this file imports nothing of knobcast.

usage: genai_generate.py DIRECTORY INPUTS.safetensors COUNT [OVERLAY.json] -> one JSON list of new ids on stdout.
INPUTS holds input_ids [1, s] and, with an image, images, image_masks and feature_index.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime_genai as og  # type: ignore[import-not-found]
from safetensors.numpy import load_file


def generate(directory: str, inputs: dict[str, Any], count: int, overlay: str | None = None) -> list[int]:
    """New ids, at most `count`, fewer if the model ends the text itself."""
    ids = inputs.pop("input_ids").astype(np.int32)
    config = og.Config(directory)
    if overlay is not None:
        config.overlay(Path(overlay).read_text("utf-8"))
    model = og.Model(config)
    params = og.GeneratorParams(model)
    params.set_search_options(max_length=ids.shape[1] + count, do_sample=False)
    generator = og.Generator(model, params)
    if inputs:
        named = og.NamedTensors()
        named["input_ids"] = og.Tensor(ids)
        for name, value in inputs.items():
            named[name] = og.Tensor(np.ascontiguousarray(value))
        named["num_image_tokens"] = og.Tensor(np.array([len(inputs["feature_index"])], np.int64))
        generator.set_inputs(named)
    else:
        generator.append_tokens(ids)
    while not generator.is_done():
        generator.generate_next_token()
    return [int(token) for token in generator.get_sequence(0)[ids.shape[1] :]]


if __name__ == "__main__":
    print(json.dumps(generate(sys.argv[1], load_file(sys.argv[2]), int(sys.argv[3]), *sys.argv[4:])))
