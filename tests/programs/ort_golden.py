"""A variant's golden outputs by any onnxruntime, as one would check them elsewhere: nothing of knobcast is imported.

usage: ort_golden.py DIRECTORY [PICTURE.safetensors] -> JSON on stdout: {"onnxruntime", "numpy", "io.json", "plain"}.
The last two are with the session settings of io.json and with none: {output: difference}, as a part of the largest
value, which counts as at least 1; `image.first_choice` is 1 where the picture prompt's best token is another one.
PICTURE holds the golden picture, cut: images [n, 576, 588], image_masks [n, 576], feature_index [t].
"""

import json
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

Array = Any  # of numpy before 2 as well
DTYPES = {"F32": np.float32, "I64": np.int64, "I32": np.int32, "U8": np.uint8}


def read_safetensors(path: Path) -> dict[str, Array]:
    """Every tensor of a file."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    found = {}
    for name, entry in json.loads(data[8 : 8 + length]).items():
        if name != "__metadata__":
            start, stop = (8 + length + offset for offset in entry["data_offsets"])
            found[name] = np.frombuffer(data[start:stop], DTYPES[entry["dtype"]]).reshape(entry["shape"])
    return found


class Variant:
    """The graphs of a directory; `settings`: as io.json says, else onnxruntime's own."""

    def __init__(self, directory: Path, settings: bool) -> None:
        self.directory, self.settings = directory, settings
        self.io = json.loads((directory / "io.json").read_text("utf-8"))
        self.text = self.open("text.onnx", "session_options")

    def open(self, name: str, key: str) -> Any:
        """A session."""
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = 1
        if self.settings:
            for entry, value in self.io[key].items():
                options.add_session_config_entry(entry, value)
            for attribute, value in self.io["session_attributes"]["cpu"].items():
                setattr(options, attribute, value)
        path = str(self.directory / name)
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def logits(self, given: Array) -> Array:
        """[1, s] ids or [1, s, d] embeddings -> [1, s, V] by prefill."""
        feed = {"attention_mask": np.ones(given.shape[:2], np.int64)}
        for value in self.text.get_inputs():
            if value.name.startswith("past_key_values."):
                feed[value.name] = np.zeros((1, value.shape[1], 0, value.shape[3]), np.float32)
            elif value.name != "attention_mask":
                feed[value.name] = given
        return self.text.run(["logits"], feed)[0]

    def embed(self, ids: Array, picture: dict[str, Array] | None) -> Array:
        """[1, s] ids and a picture -> [1, s, d]."""
        embedding = self.open("embedding.onnx", "session_options")
        features = np.zeros((0, embedding.get_outputs()[0].shape[-1]), np.float32)
        if picture is not None:
            (features,) = self.open("vision.onnx", "vision_session_options").run(["image_features"], picture)
        return embedding.run(["inputs_embeds"], {"input_ids": ids, "image_features": features})[0]


def distance(ours: Array, theirs: Array) -> float:
    """The largest difference, as a part of the largest value."""
    return float(np.abs(ours - theirs).max() / max(1.0, np.abs(theirs).max()))


def differences(variant: Variant, golden: dict[str, Array], picture: dict[str, Array] | None) -> dict[str, float]:
    """Every golden output against what the graphs give."""
    ids = golden["ids"]
    sees = (variant.directory / "vision.onnx").is_file()
    found = {"logits": distance(variant.logits(variant.embed(ids, None) if sees else ids), golden["logits"])}
    if "preprocess.image" in golden:
        session = variant.open("preprocess.onnx", "vision_session_options")
        images, *exact = session.run(None, {"image": golden["preprocess.image"]})
        rows = images.reshape(-1, images.shape[-1])[golden["preprocess.rows"]]
        found["preprocess.images"] = distance(rows, golden["preprocess.images"])
        theirs = [golden[f"preprocess.{name}"] for name in ("image_masks", "feature_index", "image_ids")]
        found["preprocess.others"] = float(not all(map(np.array_equal, exact, theirs)))
    if picture is not None:
        embedded = variant.embed(golden["image.input_ids"], picture)
        found["image.embeddings"] = distance(embedded[0][golden["image.rows"]], golden["image.embeddings"])
        last, theirs = variant.logits(embedded)[:, -1], golden["image.logits"]
        found["image.logits"] = distance(last, theirs)
        found["image.first_choice"] = float(last.argmax() != theirs.argmax())
    return found


def main(directory: Path, picture: Path | None) -> None:
    """Print the differences."""
    golden = read_safetensors(directory / "golden.safetensors")
    cut = None if picture is None else read_safetensors(picture)
    found: dict[str, Any] = {"onnxruntime": onnxruntime.__version__, "numpy": np.__version__}
    for name, settings in (("io.json", True), ("plain", False)):
        found[name] = differences(Variant(directory, settings), golden, cut)
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else None)
