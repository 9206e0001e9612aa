"""Which blocks matter: scores, how they are read, and how a number of blocks becomes a choice of blocks.

Nothing here needs torch to be imported; names are resolved on first use, so that a plan answers at once.
"""

from importlib import import_module
from typing import Any

_WHERE = {
    "Sample": "importance.samples",
    "read_samples": "importance.readers.read",
    "Evaluation": "importance.evaluate",
    "prepare": "importance.evaluate",
    "Setting": "importance.score",
    "Scorer": "importance.score",
    "compute_accuracy_drop_importance": "importance.metrics.accuracy",
    "compute_importance": "importance.metrics.accuracy",
    "compute_nll_importance": "importance.metrics.nll",
    "compute_kl_importance": "importance.metrics.kl",
    "compute_activation_importance": "importance.metrics.activation",
    "compute_angular_importance": "importance.metrics.angular",
    "compute_gradient_importance": "importance.metrics.gradient",
    "compute_attention_importance": "importance.metrics.attention",
    "merge_scores": "importance.merge",
    "agreement": "importance.statistics",
    "Scores": "importance.scores",
    "model_digest": "importance.scores",
    "read_scores": "importance.scores",
    "BlockSets": "importance.presets",
    "load_preset": "importance.presets",
    "preset_names": "importance.presets",
    "resolve": "importance.presets",
    "choose_blocks": "importance.choose",
    "find_scores": "importance.choose",
    "keep_top_k": "importance.search.top_k",
    "select_top_k_blocks": "importance.search.top_k",
    "select_by_threshold": "importance.search.threshold",
    "select_sequential_blocks": "importance.search.sequential",
}
__all__ = sorted(_WHERE)


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'importance' has no attribute {name!r}")
    return getattr(import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_WHERE})
