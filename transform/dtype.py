"""Plan a change of the stored number format; `write.py` converts while it streams.

Only declares: each tensor's target dtype and the config's dtype entry change in one step.
"""

from dataclasses import dataclass, replace

from transform.checkpoint import Checkpoint
from transform.knobs import DTYPES
from transform.passes import Changes, Pass
from transform.write import refuse_packed

_KEYS = ("dtype", "torch_dtype")  # in config.json, today and in older releases


@dataclass(frozen=True)
class Cast(Pass):
    """to: a key of DTYPES."""

    to: str
    name = "cast"

    def requires(self, source: Checkpoint) -> None:
        """Floats: codes have been rounded already."""
        refuse_packed(source)

    def run(self, source: Checkpoint) -> Checkpoint:
        """The same tensors to be written in another dtype, which the config has wherever it has one."""
        tensors = {name: tensor._replace(dtype=DTYPES[self.to]) for name, tensor in source.tensors.items()}
        config = {key: self.to if key in _KEYS else value for key, value in source.config.items()}
        return replace(source, config=config, tensors=tensors)

    def changes(self, source: Checkpoint) -> Changes:
        """The dtype of all tensors, and what the config calls it."""
        return Changes(source.settings.top_k, _KEYS, dtype=DTYPES[self.to])

    def ensures(self, target: Checkpoint) -> str | None:
        """A config that says of the tensors what they are."""
        said = {target.config[key] for key in _KEYS if key in target.config} - {self.to}
        return f"the tensors are {self.to}, the config says {', '.join(map(str, said))}" if said else None


def cast(source: Checkpoint, dtype: str) -> Checkpoint:
    """The checkpoint with every tensor stored as `dtype` (`source` leaves it as it is); a packed one is refused."""
    return source if dtype == "source" else Cast(dtype)(source)


def stored_dtype(checkpoint: Checkpoint) -> str:
    """The 16-bit type that all tensors have, as torch spells it; float32 where they differ or are quantised."""
    kinds = {tensor.stored for tensor in checkpoint.tensors.values()}
    return {"F16": "float16", "BF16": "bfloat16"}.get(kinds.pop(), "float32") if len(kinds) == 1 else "float32"
