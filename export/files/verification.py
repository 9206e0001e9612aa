"""What a passed gate measured: one record for both gates and for a family's members, `verification` in their files."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import NotRequired, TypedDict

from transform.errors import VerificationError

MODES = ("resident", "blockwise")
SKIPPED = "skipped"  # in the record's place where nothing was verified
Measured = Mapping[str, float]
_COMPARED = ("static_vs_dynamic", "onnx_vs_torch", "static_vs_torch")
_JUDGED_BY = ("relative_tolerance", "largest_value")


class OtherK(TypedDict):
    """Another k per block, and the difference it makes; both None: there is none."""

    k: list[int] | None
    difference: float | None


class Generation(TypedDict):
    """Generation with a cache beside one pass without it: how many tokens, and how far logits differ."""

    tokens: int
    same_tokens: bool
    difference: float
    largest_value: float


class UserReport(TypedDict):
    """What the process without knobcast found, with the first `blocks` blocks; what it couldn't try is absent."""

    transformers: str
    generate: dict[str, Generation]
    tokenizer_round_trip: NotRequired[int]  # ids of texts, the same again
    reload: NotRequired[dict[str, int]]  # tensors missing, unexpected, mismatched
    blocks: int


class Operators(TypedDict):
    """{"operator, what": difference, and limit where there is one}; `not_run`: why the form's experts weren't."""

    onnxruntime: str
    provider: str
    not_run: NotRequired[str]
    checks: dict[str, dict[str, float]]


@dataclass(frozen=True, kw_only=True)
class Verification:
    """Differences are absolute, of float32 values. None or empty: not measured in this mode, for this form, or of
    graphs that there are none."""

    mode: str  # of MODES
    parameters_on_meta: int | None = None  # of the model that config.json describes
    identical_tensors: int | None = None  # that hold the bytes of their origin
    as_user: UserReport | None = None
    reload: Measured = field(default_factory=dict)  # tensors missing, unexpected, mismatched: 0 of each
    probe_seed: int | None = None
    golden_tokens: int | None = None  # whose logits were recorded block by block
    blocks: int | None = None  # of a member that was proven block by block
    static_vs_dynamic: Measured = field(default_factory=dict)  # the variant and its twin at run time: all exactly 0
    pictures: str | None = None  # how a stock model was shown them: by its processor, as noise, not at all
    other_k: OtherK | None = None
    graph_ranges: Mapping[str, int] = field(default_factory=dict)  # graph file -> how many ranges of weights it reads
    onnx_vs_torch: Measured = field(default_factory=dict)
    windows_not_passed: Sequence[int] | None = None  # longer than any sequence that was compared
    float16_rounding: float | None = None  # of the largest logit
    int8_activations: Measured = field(default_factory=dict)  # the graphs as users run them: a part of the logits
    static_vs_torch: Mapping[str, float | None] = field(default_factory=dict)  # None where float32 can't decide
    preprocess: Measured = field(default_factory=dict)  # preprocess.onnx and the Python code: tolerance, pictures
    graphs_computed_by: str | None = None
    operators: Operators | None = None
    sums: Mapping[str, str] = field(default_factory=dict)  # of files that were read whole; SHA256SUMS records them

    def differences(self, group: str) -> dict[str, float]:
        """Of `static_vs_dynamic`, `onnx_vs_torch` or `static_vs_torch`: those that were measured, by their names."""
        found: Mapping[str, float | None] = getattr(self, group)
        return {name: value for name, value in found.items() if name not in _JUDGED_BY and value is not None}

    def as_dict(self) -> dict[str, object]:
        """For JSON: what was measured."""
        values = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "sums"}
        return {name: value for name, value in values.items() if value not in (None, {})}

    @classmethod
    def parse(cls, found: object) -> "Verification | None":
        """The record that a file has, None for SKIPPED; what other versions measured besides is left out.

        Raises VerificationError for anything else.
        """
        if found == SKIPPED:
            return None
        record = found if isinstance(found, dict) else {}
        if record.get("mode") not in MODES:
            raise VerificationError(
                f"verification.mode must be one of {', '.join(MODES)}, it is {str(record.get('mode'))[:80]!r}. "
                "Export the variant again."
            )
        if wrong := [name for name in _COMPARED if not isinstance(record.get(name, {}), dict)]:
            raise VerificationError(f"verification.{wrong[0]} must hold numbers by name. Export the variant again.")
        known = [field.name for field in fields(cls) if field.name != "sums" and field.name in record]
        return cls(**{name: record[name] for name in known})
