"""A decoder's numbers, whatever its config calls them: read once, each within bounds that any model keeps."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeGuard

from transform.architectures.values import lookup, shown
from transform.architectures.vocabulary import SPELLINGS
from transform.architectures.windows import windows_of
from transform.errors import CheckpointError

# Far above any model, far below what would fill memory: configs are read before weights can contradict them.
MOST = {
    "hidden": 1 << 20, "layers": 10_000, "heads": 1 << 16, "kv_heads": 1 << 16, "experts": 100_000, "vocab": 1 << 24,
    "max_positions": 1 << 30,
}  # fmt: skip
MOST_EXPERTS = 200_000
RESOLVED = {"experts_of", "windows"}  # of each block, out of the others
NONE_NEEDED = {"experts"}  # a dense decoder has none
MOST_CLIP = 1e30  # float32 can hold it


@dataclass(frozen=True)
class Settings:
    """A decoder's numbers.

    `top_k` holds one value per block, 0 where it has no experts, as `experts_of` does; `windows` how many tokens a
    block attends to, None: all before. `clip_qkv` is the clamp on q, k and v or None; `norm_top_k` says whether the
    kept router weights are renormalised to a sum of one.
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
    own_head_dim: int | None
    experts_of: tuple[int, ...]
    windows: tuple[int | None, ...]

    @property
    def head_dim(self) -> int:
        """Width of one attention head: its own where the config says one."""
        return self.own_head_dim or self.hidden // self.heads


def read_settings(
    config: Mapping[str, object], model_type: str, keys: Mapping[str, Sequence[str]], defaults: Mapping[str, object],
    sparse: Sequence[bool], window: str | None, switch: str | None, listed: bool,
) -> Settings:  # fmt: skip
    """The settings in a decoder's config, where `keys` are their names: the first that is there counts, else the
    default. `sparse`: which blocks have experts; `window`: the key of one that all blocks have;
    `switch`: the key that must be true for it; `listed`: whether transformers reads a list of kinds instead.

    Raises CheckpointError for a missing, mistyped or impossible one, and for one under another family's name alone.
    """
    _check_spellings(config, model_type, keys)
    found = dict(defaults)
    for name, spellings in keys.items():
        value = next((value for key in spellings if (value := lookup(config, key)) is not None), None)
        if value is not None:
            found[name] = value
    if "layers" not in found and sparse:
        found["layers"] = len(sparse)
    missing = [" or ".join(spellings) for name, spellings in keys.items() if name not in found]
    if missing:
        raise CheckpointError(
            f"config.json of a {model_type!r} model must hold {', '.join(missing)}. Restore the original config.json."
        )

    def refused(name: str, rule: str) -> CheckpointError:
        said = shown(found[name])
        return CheckpointError(
            f"config.json: {' or '.join(keys[name])} must be {rule}, got {said}. Restore the original config.json."
        )

    def whole(name: str) -> int:
        value = found[name]
        least = 0 if name in NONE_NEEDED and defaults.get(name) == 0 else 1
        if type(value) is not int or not least <= value <= MOST[name]:
            raise refused(name, f"a whole number from {least} to {MOST[name]:,}")
        return value

    def number(name: str, highest: float) -> float:
        value = found[name]
        if not _is_number(value) or not 0 < value <= highest:
            raise refused(name, f"a number above 0, at most {highest:g}")
        return value

    sizes = {name: whole(name) for name in MOST}
    layers, experts = sizes["layers"], sizes["experts"]
    if layers * experts > MOST_EXPERTS:  # before anything is listed for each of them
        raise CheckpointError(
            f"config.json: a model has at most {MOST_EXPERTS:,} experts in all its blocks, {layers:,} blocks of "
            f"{experts:,} experts are not plausible. Restore the original config.json."
        )
    hidden, heads, kv_heads = sizes["hidden"], sizes["heads"], sizes["kv_heads"]
    own_head_dim = found["own_head_dim"]
    if own_head_dim is not None and (type(own_head_dim) is not int or not 1 <= own_head_dim <= MOST["hidden"]):
        raise refused("own_head_dim", f"a whole number from 1 to {MOST['hidden']:,}")
    if hidden % heads and own_head_dim is None:
        raise CheckpointError(
            f"config.json: the hidden size must be a multiple of the heads, got {hidden} and {heads}. "
            "Restore the original config.json."
        )
    if heads % kv_heads:
        raise CheckpointError(
            f"config.json: the heads must be a multiple of the key-value heads, got {heads} and {kv_heads}. "
            "Restore the original config.json."
        )
    given: list[object] = found["top_k"] if isinstance(found["top_k"], list) else [found["top_k"]] * layers
    least = 0 if experts == 0 else 1
    ks = [k for k in given if type(k) is int and least <= k <= experts]
    if not len(ks) == len(given) == layers:
        raise refused("top_k", f"one number or {layers} numbers from 1 to {experts} (the experts)")
    clip, renormalised = found["clip_qkv"], found["norm_top_k"]
    if clip is not None and (not _is_number(clip) or not 0 < clip <= MOST_CLIP):
        raise refused("clip_qkv", f"null or a number above 0, at most {MOST_CLIP:g}")
    if type(renormalised) is not bool:
        raise refused("norm_top_k", "true or false")
    routed = sparse if len(sparse) == layers else (True,) * layers
    return Settings(
        **sizes, top_k=tuple(k if has else 0 for k, has in zip(ks, routed, strict=True)),
        experts_of=tuple(experts if has else 0 for has in routed),
        windows=windows_of(config, layers, window, switch, listed),
        own_head_dim=own_head_dim, eps=number("eps", 1.0), rope_theta=number("rope_theta", 1e12),
        norm_top_k=renormalised, clip_qkv=clip,
    )  # fmt: skip


def _check_spellings(config: Mapping[str, object], model_type: str, keys: Mapping[str, Sequence[str]]) -> None:
    """Transformers takes a default where a number stands under a name alone that its class doesn't read, and of two
    names that it reads one."""
    for setting, spellings in SPELLINGS.items():
        own = {key: value for key in keys.get(setting, ()) if (value := lookup(config, key)) is not None}
        others = [key for key in spellings if key not in keys.get(setting, ()) and config.get(key)]
        if others and not own:
            read = f"reads {' or '.join(keys[setting])} instead" if keys.get(setting) else "has no such number"
            raise CheckpointError(
                f"config.json: {others[0]} is a key that no {model_type!r} model of transformers reads, it {read}: "
                f"got {others[0]} {shown(config[others[0]])}. Correct the key, or remove it if nothing is meant by it."
            )
        if any(value != next(iter(own.values())) for value in own.values()):
            said = ", ".join(f"{key} {shown(value)}" for key, value in own.items())
            raise CheckpointError(
                f"config.json: {' and '.join(own)} are names of one number of a {model_type!r} model and must agree, "
                f"got {said}. Restore the original config.json."
            )


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)
