"""A version as an OCI artifact: ModelPack's manifest and configuration, media types and paths.

Same content, same bytes: no clock, so that a version pushed twice has one digest.
https://github.com/modelpack/model-spec
"""

import json
from pathlib import PurePosixPath

from export.publish.content import Content
from transform.strict_json import Record

MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
ARTIFACT = "application/vnd.cncf.model.manifest.v1+json"
CONFIG = "application/vnd.cncf.model.config.v1+json"
_WEIGHT = "application/vnd.cncf.model.weight.v1.raw"
_WEIGHT_CONFIG = "application/vnd.cncf.model.weight.config.v1.raw"
_DOC = "application/vnd.cncf.model.doc.v1.raw"
_CODE = "application/vnd.cncf.model.code.v1.raw"
_BY_SUFFIX = {".safetensors": _WEIGHT, ".onnx": _WEIGHT, ".py": _CODE, ".md": _DOC, "": _DOC}
_FILEPATH = "org.cncf.model.filepath"
_TITLE = "org.opencontainers.image.title"  # what oras writes a layer to
SOURCE = "knobcast.source"  # the annotation that says whose an alias is


def config_of(content: Content) -> bytes:
    """The configuration blob."""
    tags = content.tags
    value = {
        "descriptor": {"name": content.name, "version": content.version, "family": tags["model_type"]}
        | ({"revision": tags["source_revision"]} if "source_revision" in tags else {}),
        "config": {
            "architecture": "transformer",
            "format": "safetensors",
            "paramSize": tags["parameters"],
            "precision": tags["dtype"],
        },
        "modelfs": {"type": "layers", "diffIds": [f"sha256:{item.sha256}" for item in content.items]},
    }
    return json.dumps(value, indent=2, sort_keys=True).encode()


def manifest_of(content: Content, config_digest: str, config_size: int) -> bytes:
    """The manifest: a layer per file, in the content's order, its path in the annotations that tools look for."""
    value = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "artifactType": ARTIFACT,
        "config": {"mediaType": CONFIG, "digest": config_digest, "size": config_size},
        "layers": [
            {
                "mediaType": _BY_SUFFIX.get(PurePosixPath(item.path).suffix, _WEIGHT_CONFIG),
                "digest": f"sha256:{item.sha256}",
                "size": item.size,
                "annotations": {_FILEPATH: item.path, _TITLE: item.path},
            }
            for item in content.items
        ],
        "annotations": {
            _TITLE: content.name,
            "org.opencontainers.image.version": content.version,
            **{f"knobcast.{name}": text for name, text in content.tags.items()},
        },
    }
    return json.dumps(value, indent=2, sort_keys=True).encode()


def path_in(layer: Record) -> str | None:
    """A layer's path, as this or another tool wrote it."""
    annotations = layer.get("annotations")
    if not isinstance(annotations, dict):
        return None
    path = annotations.get(_FILEPATH, annotations.get(_TITLE))
    return path if isinstance(path, str) else None


def source_in(manifest: Record) -> str | None:
    """The model that a manifest's version is of; "" where it says none, so that it is nobody's."""
    annotations = manifest.get("annotations")
    return str(annotations.get(SOURCE, "")) if isinstance(annotations, dict) else ""
