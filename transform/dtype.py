"""Plan a change of the stored number format; `write.py` converts while it streams.

Only declares: each tensor's target dtype and the config's dtype entry change in one step.
"""

from dataclasses import replace

from transform.checkpoint import Checkpoint
from transform.knobs import DTYPES
from transform.write import refuse_packed


def cast(source: Checkpoint, dtype: str) -> Checkpoint:
    """The checkpoint with every tensor stored as `dtype` (`source` leaves it as it is); a packed one is refused."""
    if dtype == "source":
        return source
    refuse_packed(source)
    tensors = {name: tensor._replace(dtype=DTYPES[dtype]) for name, tensor in source.tensors.items()}
    config = dict(source.config)
    for key in ("dtype", "torch_dtype"):
        if key in config:
            config[key] = dtype
    return replace(source, config=config, tensors=tensors)
