"""Which blocks matter: scores, how they are read, and how a number of blocks becomes a choice of blocks.

Nothing here needs torch to be imported; names are resolved on first use, so that a plan answers at once.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from importance.choose import choose_blocks, find_scores
    from importance.evaluate import Evaluation, prepare
    from importance.merge import merge_scores
    from importance.metrics.accuracy import compute_accuracy_drop_importance, compute_importance
    from importance.metrics.activation import compute_activation_importance
    from importance.metrics.angular import compute_angular_importance
    from importance.metrics.attention import compute_attention_importance
    from importance.metrics.gradient import compute_gradient_importance
    from importance.metrics.kl import compute_kl_importance
    from importance.metrics.nll import compute_nll_importance
    from importance.presets import BlockSets, load_preset, preset_names, resolve
    from importance.readers.read import read_samples
    from importance.samples import Sample
    from importance.score import Scorer, Setting
    from importance.scores import Scores, model_digest, read_scores
    from importance.search.sequential import select_sequential_blocks
    from importance.search.threshold import select_by_threshold
    from importance.search.top_k import keep_top_k, select_top_k_blocks
    from importance.statistics import agreement

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
__all__ = [
    "BlockSets",
    "Evaluation",
    "Sample",
    "Scorer",
    "Scores",
    "Setting",
    "agreement",
    "choose_blocks",
    "compute_accuracy_drop_importance",
    "compute_activation_importance",
    "compute_angular_importance",
    "compute_attention_importance",
    "compute_gradient_importance",
    "compute_importance",
    "compute_kl_importance",
    "compute_nll_importance",
    "find_scores",
    "keep_top_k",
    "load_preset",
    "merge_scores",
    "model_digest",
    "prepare",
    "preset_names",
    "read_samples",
    "read_scores",
    "resolve",
    "select_by_threshold",
    "select_sequential_blocks",
    "select_top_k_blocks",
]


def __getattr__(name: str) -> object:
    if name not in _WHERE:
        raise AttributeError(f"module 'importance' has no attribute {name!r}")
    return getattr(import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_WHERE})
