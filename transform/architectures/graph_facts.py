"""What a decoder computes beside its matrices: a family's "graph" section and a config -> `DecoderGraph`.

The section (`GraphWords`) says what a family is in enumerations and names the config keys that hold numbers; which
norms, biases, sinks, shared experts and dense blocks there are the tensors themselves say. A value that no emitter
computes is refused here, with the reason: of graphs alone, a checkpoint needs none of this.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from transform.architectures.settings import Settings
from transform.architectures.values import lookup, shown
from transform.errors import CheckpointError

ROPE_KEYS = (
    "rope_type", "type", "rope_theta", "partial_rotary_factor", "factor", "attention_factor", "mscale",
    "mscale_all_dim", "beta_fast", "beta_slow", "original_max_position_embeddings", "truncate", "low_freq_factor",
    "high_freq_factor",
)  # fmt: skip
_ZERO_IS_NONE = ("beta_fast", "beta_slow", "mscale", "mscale_all_dim")  # the default counts instead
MOST = 1e30  # of any number: float32 can hold it
LEAST = 1e-30


class Scores(StrEnum):
    """What a router makes of its logits: a softmax over all, a sigmoid of each, a softmax over those it chose."""

    SOFTMAX = "softmax"
    SIGMOID = "sigmoid"
    CHOSEN = "chosen"


class Turn(StrEnum):
    """Which two numbers of a head are turned together: one of each half, or neighbours."""

    HALVES = "halves"
    PAIRS = "pairs"


class Scaling(StrEnum):
    """How rotary frequencies are stretched for longer texts."""

    DEFAULT = "default"
    LINEAR = "linear"
    LLAMA3 = "llama3"
    YARN = "yarn"


class Activation(StrEnum):
    """silu(gate) * up, or both clamped and (up + 1) * gate * sigmoid(alpha * gate)."""

    SILU = "silu"
    CLAMPED = "clamped"


class GateUp(StrEnum):
    """How gate and up lie where one array holds both: all columns of one behind all of the other, or in turns."""

    STACKED = "stacked"
    ALTERNATING = "alternating"


@dataclass(frozen=True)
class Multipliers:
    """Config keys: what embeddings and each branch are multiplied with, logits divided by, scores scaled with."""

    embedding: str | None = None
    residual: str | None = None
    logits: str | None = None
    attention: str | None = None


@dataclass(frozen=True)
class GraphWords:
    """A family's "graph" section. Texts are config keys."""

    scores: Scores = Scores.SOFTMAX
    groups: tuple[str, ...] = ()  # how many groups experts are in, how many of these a token may choose from
    scale: str | None = None  # what the kept weights are multiplied with
    add: float = 0.0  # to the sum of the kept weights, before they are divided by it
    least: str | None = None  # of that sum
    rotary: Turn = Turn.HALVES
    partial: float | None = None  # of a head's width, where the config doesn't say; None: whole heads are turned
    rope: Mapping[str, object] = field(default_factory=dict)  # rotary parameters, where the config has none
    multipliers: Multipliers = field(default_factory=Multipliers)
    activation: Activation = Activation.SILU
    alpha: str | None = None  # of the clamped activation
    limit: str | None = None
    gate_up: GateUp = GateUp.STACKED
    defaults: Mapping[str, object] = field(default_factory=dict)  # of any of these keys
    fixed: Mapping[str, object] = field(default_factory=dict)  # key -> the one value of it that is computed
    harmless: tuple[str, ...] = ()  # keys of this family that change no number


@dataclass(frozen=True)
class Routing:
    """From a router's logits to the weights of the experts that it keeps."""

    scores: Scores = Scores.SOFTMAX
    groups: tuple[int, int] | None = None  # all groups, those a token may choose from; None: all experts are one
    renormalise: bool = False
    add: float = 0.0
    least: float = 0.0
    scale: float = 1.0


@dataclass(frozen=True)
class Rope:
    """Rotary positions of `width` numbers of each head; `parameters` are those that `scaling` has."""

    width: int
    theta: float
    turn: Turn = Turn.HALVES
    scaling: Scaling = Scaling.DEFAULT
    parameters: Mapping[str, float] = field(default_factory=dict)
    truncate: bool = True


@dataclass(frozen=True)
class DecoderGraph:
    """What the emitters need besides `Settings` and tensors. Multipliers of 1 aren't there."""

    routing: Routing
    rope: Rope
    embedding: float = 1.0
    residual: float = 1.0
    logits: float = 1.0
    attention: float | None = None  # scale of the scores; None: 1 / sqrt(head width)
    activation: Activation = Activation.SILU
    alpha: float = 1.0
    limit: float = math.inf
    gate_up: GateUp = GateUp.STACKED


def decoder_graph(words: GraphWords | None, config: Mapping[str, object], settings: Settings) -> DecoderGraph:
    """The record of a family's words and a decoder's config; raises CheckpointError for what no emitter computes."""
    if words is None:
        raise CheckpointError("nothing computes what such a decoder does")

    def number(key: str | None, otherwise: float) -> float:
        if key is None:
            return otherwise
        value = lookup(config, key)
        value = words.defaults.get(key) if value is None else value
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= MOST:
            raise CheckpointError(
                f"config.json: {key} must be a finite number, got {shown(value)}. Restore the original config.json."
            )
        return float(value)

    groups = None
    if words.groups:
        count, taken = (number(key, 1) for key in words.groups)
        if not (1 <= taken <= count and count == int(count) and taken == int(taken) and settings.experts % count == 0):
            raise CheckpointError(
                f"config.json: {words.groups[1]} of {words.groups[0]} groups of experts must be whole numbers, the "
                f"second dividing the {settings.experts} experts, got {taken:g} of {count:g}. Restore the original."
            )
        groups = None if taken == count else (int(count), int(taken))
    if groups is not None:
        size = settings.experts // groups[0]
        if size < 2 or max(settings.top_k) > groups[1] * size:
            raise CheckpointError(
                f"config.json: a token's {max(settings.top_k)} experts must fit in the {groups[1]} groups that it may "
                f"choose from, of at least 2 experts each; {groups[0]} groups have {size} each. Restore the original."
            )
    by = words.multipliers
    limit = number(words.limit, math.inf)
    if limit <= 0:
        raise CheckpointError(f"config.json: {words.limit} must be above 0, got {limit:g}. Restore the original.")
    return DecoderGraph(
        Routing(
            words.scores, groups, settings.norm_top_k, words.add, number(words.least, 0.0), number(words.scale, 1.0)
        ),
        read_rope(words, config, settings),
        number(by.embedding, 1.0),
        number(by.residual, 1.0),
        number(by.logits, 1.0),
        None if by.attention is None else number(by.attention, 1.0),
        words.activation,
        number(words.alpha, 1.0),
        limit,
        words.gate_up,
    )


def read_rope(words: GraphWords, config: Mapping[str, object], settings: Settings) -> Rope:
    """Rotary parameters under either of their names, as transformers reads them."""
    older, newer = config.get("rope_scaling"), config.get("rope_parameters")
    found = older or newer or words.rope
    if not isinstance(found, Mapping) or any(isinstance(value, Mapping) for value in found.values()):
        raise CheckpointError(f"rotary positions must have one set of parameters, got {shown(found)}")
    if unread := sorted(found.keys() - set(ROPE_KEYS)):
        raise CheckpointError(f"nothing reads {', '.join(unread)} of the rotary parameters")
    kind = found.get("rope_type", found.get("type", "default"))
    if kind not in list(Scaling):
        raise CheckpointError(f"rotary positions must be {', '.join(Scaling)}, got {shown(kind)}")
    if older and isinstance(newer, Mapping) and newer.get("rope_theta") != found.get("rope_theta"):
        raise CheckpointError("rope_theta must stand in rope_scaling, which counts; rope_parameters has another one")
    part = found.get(
        "partial_rotary_factor", config.get("partial_rotary_factor", 1.0 if words.partial is None else words.partial)
    )
    if words.partial is None and part != 1:
        raise CheckpointError(
            f"partial_rotary_factor must be 1, transformers turns whole heads here: got {shown(part)}"
        )
    width = int(settings.head_dim * _float("partial_rotary_factor", part))
    if width < 2 or width % 2 or width > settings.head_dim:
        raise CheckpointError(f"an even part of a head's {settings.head_dim} numbers must be turned, got {width}")
    scaling = Scaling(str(kind))
    original = config.get("original_max_position_embeddings", found.get("original_max_position_embeddings"))
    parameters = {
        key: _float(key, value)
        for key, value in found.items()
        if value is not None and key not in ("rope_type", "type", "rope_theta", "partial_rotary_factor", "truncate")
    }
    if scaling in (Scaling.LLAMA3, Scaling.YARN):
        original = settings.max_positions if original is None else original
        parameters["original_max_position_embeddings"] = _float("original_max_position_embeddings", original)
    needed = {
        Scaling.LINEAR: ("factor",),
        Scaling.LLAMA3: ("factor", "low_freq_factor", "high_freq_factor"),
    }.get(scaling, ())
    if missing := [key for key in needed if key not in parameters]:
        raise CheckpointError(f"{scaling} rotary positions need {', '.join(missing)}")
    original = parameters.get("original_max_position_embeddings", 0.0)
    if scaling is Scaling.YARN and original > 0:  # as DeepSeek's configs leave it out
        parameters.setdefault("factor", settings.max_positions / original)
    for key, value in parameters.items():
        if value < LEAST and (value or key not in _ZERO_IS_NONE):
            raise CheckpointError(f"{key} of rotary positions must be above 0, got {value:g}")
    if scaling is Scaling.LLAMA3 and parameters["high_freq_factor"] <= parameters["low_freq_factor"]:
        raise CheckpointError("high_freq_factor of rotary positions must be above low_freq_factor")
    if scaling is Scaling.YARN and settings.rope_theta <= 1:
        raise CheckpointError(f"rope_theta must be above 1 for yarn, got {settings.rope_theta:g}")
    truncate = found.get("truncate", True)
    if type(truncate) is not bool:
        raise CheckpointError(f"truncate of rotary positions must be true or false, got {shown(truncate)}")
    return Rope(width, settings.rope_theta, words.rotary, scaling, parameters, truncate)


def _float(key: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= MOST:
        raise CheckpointError(f"{key} must be a finite number, got {shown(value)}")
    return float(value)
