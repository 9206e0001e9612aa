"""What a block's importance can mean. One file per metric; this is the list of them, in the order of the help.

Three kinds. `ablation`: the block is dropped and the model asked again (exact, and the reference for the others).
`observation`: read off the full model's residual stream in one pass. `gradient`: one pass forward and one back.
Nothing here needs torch to be imported.
"""

from dataclasses import dataclass
from importlib import import_module
from types import ModuleType

from importance.scores import LESS, MORE
from transform.errors import KnobError


@dataclass(frozen=True)
class Metric:
    """name: also its file's. higher_means: which way it runs. labels: whether samples must have answers.
    vision_weighted: whether it is a mean over tokens, in which those of pictures may weigh more or less."""

    name: str
    kind: str
    unit: str
    title: str
    reference: str
    higher_means: str = MORE
    labels: bool = False
    vision_weighted: bool = False

    @property
    def module(self) -> ModuleType:
        """The metric's file."""
        return import_module(f"importance.metrics.{self.name}")


METRICS = (
    Metric(
        "accuracy", "ablation", "accuracy, 0..1", "accuracy drop of single-block ablation", "the definition",
        labels=True,
    ),
    Metric("nll", "ablation", "nats per answer token", "rise of the answers' log-loss", "the definition"),
    Metric("kl", "ablation", "nats per answer token", "KL divergence from the full model", "the definition"),
    Metric(
        "block_influence", "observation", "1 - cosine, 0..2", "Block Influence", "arXiv:2403.03853",
        vision_weighted=True,
    ),
    Metric("angular", "observation", "half-turns, 0..1", "angular distance", "arXiv:2403.17887"),
    Metric(
        "activation", "observation", "ratio, 0 and up", "relative size of the update", "residual networks",
        vision_weighted=True,
    ),
    Metric("gradient", "gradient", "nats per answer token", "first-order Taylor estimate", "arXiv:1906.10771"),
    Metric(
        "attention", "observation", "share of the highest entropy, 0..1", "attention entropy", "Shannon entropy",
        vision_weighted=True,
    ),
    Metric(
        "router_mass", "observation", "share of the router's probability, 0..1", "router mass kept at k",
        "arXiv:2409.02060", LESS, vision_weighted=True,
    ),
)  # fmt: skip


def metric(name: str) -> Metric:
    """By name; KnobError names them all."""
    for found in METRICS:
        if found.name == name:
            return found
    raise KnobError(f"the metric must be one of {', '.join(m.name for m in METRICS)}; got {name!r}. Choose one.")
