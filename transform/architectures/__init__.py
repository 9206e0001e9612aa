"""What knobcast knows about each model family, as data: one JSON file per `model_type`.

A file says where blocks, router and experts live in the checkpoint (`roles`), which config keys hold the sizes
(`settings`), which keys must have which values because nothing else was verified (`requires`), and which keys
count or list blocks. The code here reads such a file and answers questions; it has no family's name in it.
One more family is one more file, and one more row in `tests/test_checkpoint.py`.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from transform.errors import CheckpointError
from transform.strict_json import Record

_HERE = Path(__file__).parent
# Far above any model, far below what would fill memory: configs are read before weights can contradict them.
MOST = {
    "hidden": 1 << 20, "layers": 10_000, "heads": 1 << 16, "kv_heads": 1 << 16, "experts": 100_000, "vocab": 1 << 24,
    "max_positions": 1 << 30,
}  # fmt: skip
MOST_EXPERTS = 200_000
MOST_CLIP = 1e30  # float32 can hold it


class Role(NamedTuple):
    """One kind of tensor: its spellings (the first is the usual one) and its shape in symbols such as `3*d`."""

    names: tuple[str, ...]
    shape: tuple[str, ...]


@dataclass(frozen=True)
class Settings:
    """A decoder's numbers, whatever the config calls them.

    `top_k` holds one value per block; `clip_qkv` is the clamp on q, k and v or None; `norm_top_k` says whether
    the kept router weights are renormalised to a sum of one.
    """

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    experts: int
    top_k: tuple[int, ...]
    eps: float
    rope_theta: float
    vocab: int
    max_positions: int
    norm_top_k: bool
    clip_qkv: float | None

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden // self.heads


@dataclass(frozen=True)
class Architecture:
    """One family's data file, parsed."""

    model_type: str
    requires: tuple[Mapping[str, Any], ...]
    keys: Mapping[str, tuple[str, ...]]
    constants: Mapping[str, Any]
    depth_key: str
    top_k_key: str
    per_block_top_k: bool
    per_layer_lists: tuple[str, ...]
    multimodal: bool
    block: str
    dims: Mapping[str, str]
    config_dims: Mapping[str, str]
    roles: Mapping[str, Role]
    counts: Mapping[str, str]
    fused: Mapping[str, tuple[str, ...]]  # a tensor of all experts of a block -> the roles it holds for each of them
    dropped: tuple[str, ...]  # ends of names of tensors that transformers computes and doesn't read

    def check(self, config: Mapping[str, Any]) -> None:
        """Refuse a config with a feature that was never verified, naming the key and the reason."""
        for rule in self.requires:
            value = lookup(config, rule["key"], rule.get("default"))
            if "keys" in rule and isinstance(value, Mapping) and value.keys() <= set(rule["keys"]):
                continue  # what stands under these keys has rules of its own
            if value not in rule["values"]:
                allowed = " or ".join(json.dumps(v) for v in rule["values"])
                raise CheckpointError(
                    f"model_type {self.model_type!r} needs {rule['key']} = {allowed}, this config has "
                    f"{shown(value)}: {rule['reason']}. Use a checkpoint with the supported value."
                )

    def settings(self, config: Mapping[str, Any]) -> Settings:
        """Read the decoder's numbers from the config; a missing, mistyped or impossible one is an error."""
        found: Record = dict(self.constants)
        for name, keys in self.keys.items():
            for key in keys:
                value = lookup(config, key)
                if value is not None:
                    found[name] = value
                    break
        missing = [name for name in (*self.keys, *self.constants) if name not in found]
        if missing:
            keys_wanted = ", ".join(" or ".join(self.keys[name]) for name in missing)
            raise CheckpointError(
                f"config.json of a {self.model_type!r} model must hold {keys_wanted}. Restore the original config.json."
            )
        for name, most in MOST.items():
            value = found[name]
            if type(value) is not int or not 1 <= value <= most:
                raise CheckpointError(
                    f"config.json: {' or '.join(self.keys[name])} must be a whole number from 1 to {most:,}, got "
                    f"{shown(value)}. Restore the original config.json."
                )
        layers, experts = found["layers"], found["experts"]
        if layers * experts > MOST_EXPERTS:  # before anything is listed for each of them
            raise CheckpointError(
                f"config.json: a model has at most {MOST_EXPERTS:,} experts in all its blocks, {layers:,} blocks of "
                f"{experts:,} experts are not plausible. Restore the original config.json."
            )
        if found["hidden"] % found["heads"]:
            raise CheckpointError(
                f"config.json: the hidden size must be a multiple of the heads, got {found['hidden']} and "
                f"{found['heads']}. Restore the original config.json."
            )
        top_k = found["top_k"] if isinstance(found["top_k"], list) else [found["top_k"]] * layers
        if len(top_k) != layers or any(type(k) is not int or not 1 <= k <= experts for k in top_k):
            raise CheckpointError(
                f"config.json: {self.top_k_key} must be one number or {layers} numbers from 1 to {experts} (the "
                f"experts), got {shown(found['top_k'])}. Restore the original config.json."
            )
        for name, highest in (("eps", 1.0), ("rope_theta", 1e12)):
            value = found[name]
            if not _is_number(value) or not 0 < value <= highest:
                raise CheckpointError(
                    f"config.json: {' or '.join(self.keys[name])} must be a number above 0, at most {highest:g}, got "
                    f"{shown(value)}. Restore the original config.json."
                )
        clip, renormalised = found["clip_qkv"], found["norm_top_k"]
        if clip is not None and (not _is_number(clip) or not 0 < clip <= MOST_CLIP):
            raise CheckpointError(
                f"config.json: {' or '.join(self.keys['clip_qkv'])} must be null or a number above 0, at most "
                f"{MOST_CLIP:g}, got {shown(clip)}. Restore the original config.json."
            )
        if type(renormalised) is not bool:
            raise CheckpointError(
                f"config.json: {' or '.join(self.keys['norm_top_k'])} must be true or false, got "
                f"{shown(renormalised)}. Restore the original config.json."
            )
        if found["heads"] % found["kv_heads"]:
            raise CheckpointError(
                f"config.json: the heads must be a multiple of the key-value heads, got {found['heads']} and "
                f"{found['kv_heads']}. Restore the original config.json."
            )
        return Settings(**{**found, "top_k": tuple(top_k)})


def shown(value: object) -> str:
    """A value of a JSON file as messages quote it, cut to a line."""
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def lookup(config: Mapping[str, Any], dotted: str, default: object = None) -> Any:
    """The value at `a.b.c` in a nested mapping, or the default where a level is absent or no mapping."""
    value: Any = config
    for part in dotted.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return default
        value = value[part]
    return value


def known_model_types() -> tuple[str, ...]:
    """Every `model_type` that has a data file."""
    return tuple(sorted(path.stem for path in _HERE.glob("*.json")))


@cache
def _load(model_type: str) -> Architecture:
    raw = json.loads((_HERE / f"{model_type}.json").read_text())
    return Architecture(
        model_type=raw["model_type"],
        requires=tuple(raw["requires"]),
        keys={name: tuple(keys) for name, keys in raw["settings"].items()},
        constants=raw["constants"],
        depth_key=raw["depth_key"],
        top_k_key=raw["top_k_key"],
        per_block_top_k=raw["per_block_top_k"],
        per_layer_lists=tuple(raw["per_layer_lists"]),
        multimodal=raw["multimodal"],
        block=raw["block"],
        dims=raw["dims"],
        config_dims=raw["config_dims"],
        roles={name: Role(tuple(r["names"]), tuple(r["shape"])) for name, r in raw["roles"].items()},
        counts=raw["counts"],
        fused={name: tuple(roles) for name, roles in raw["fused"].items()},
        dropped=tuple(raw["dropped"]),
    )


def architecture_of(config: Mapping[str, Any]) -> Architecture:
    """The family of a config, checked to be one that every step supports."""
    model_type = config.get("model_type")
    if model_type not in known_model_types():
        raise CheckpointError(
            f"model_type must be one of {', '.join(known_model_types())}, got {model_type!r}. "
            "Another family needs a data file in transform/architectures/."
        )
    found = _load(str(model_type))
    found.check(config)
    return found
