"""A picture's crops -> the parts of the vision side: what `export/graph/vision.py` would emit.

c crops with the global view, T tokens of a crop with its class token, v tower width, t windows that are kept.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from export.cost.part import Part, Stage, merged
from export.cost.stored import Stored
from transform.vision_tower import Tower, read_tower

TOWER_OPERATORS = 14  # before the blocks: patches, class token, positions
POOL_OPERATORS = 45  # windows, masks and their pad embedding, pooling, projector


def vision_parts(stored: Stored, crops: int, features: int) -> Stage:
    """Tower, pooling and projector for `crops` crops, of whose windows `features` are kept."""
    tower = read_tower(stored.checkpoint)
    parts = [_patches(stored, tower, crops)]
    for j in range(max(tower.taps) + 1):
        parts += _block(stored, tower, j, crops)
    return merged([*parts, *_pooled(stored, tower, crops, features)])


@dataclass(frozen=True)
class _Linear:
    """Matrix products with one weight each."""

    stored: Stored

    def part(self, name: str, rows: Mapping[str, int], j: int = 0) -> Part:
        """role -> rows of its input."""
        stored, flops, moved = self.stored, 0, 0
        for role, count in rows.items():
            outputs, inputs = stored.shape(role, j=j)
            flops += 2 * count * inputs * outputs
            moved += stored.value * count * (inputs + outputs)
        casts = sum(stored.casts(role, j=j) for role in rows)
        return Part(name, flops, sum(stored.read(role, j=j) for role in rows), moved, len(rows) + casts)


def _patches(stored: Stored, tower: Tower, crops: int) -> Part:
    patches, width = tower.grid**2, stored.shape("vision.class")[0]
    part = _Linear(stored).part("tower", {"vision.patch": crops * patches})
    moved = stored.value * crops * (6 * (patches + 1) * width + 2 * patches * tower.patch_values)
    return Part(part.name, part.flops, part.weights, part.activations + moved, TOWER_OPERATORS)


def _block(stored: Stored, tower: Tower, j: int, crops: int) -> list[Part]:
    tokens = tower.grid**2 + 1
    rows = crops * tokens
    inner, width = stored.shape("vision.q.weight", j=j)
    middle = stored.shape("vision.fc1.weight", j=j)[0]
    weights = [f"vision.{part}.weight" for part in ("q", "k", "v", "out", "fc1", "fc2")]
    scores = crops * tower.heads * tokens * tokens
    fused = stored.form.fused
    small = 16  # vectors that may be cast as well: norms and biases
    gelu = 2 if fused else 6
    return [
        _Linear(stored).part("tower", dict.fromkeys(weights, rows), j),
        Part("tower attention", 4 * rows * tokens * inner, 0, stored.value * (4 * scores + 3 * rows * inner), 3),
        Part(
            "tower sums",
            activations=stored.value * rows * (2 * 2 * width + 2 * 3 * width + 8 * inner + gelu * middle),
            operators=(13 if fused else 17) + (small - 6) * stored.casts("vision.norm1.weight", j=j),
        ),
    ]


def _pooled(stored: Stored, tower: Tower, crops: int, features: int) -> list[Part]:
    window = tower.pool[0] * tower.pool[1]
    inner, outer = stored.shape("pool.q.weight")
    linear = _Linear(stored)
    pool = {
        "pool.q.weight": features,
        "pool.k.weight": features * window,
        "pool.v.weight": features * window,
        "pool.out.weight": features,
    }
    projected = dict.fromkeys(("projector.gate", "projector.up", "projector.down"), features)
    moved = features * window * outer * 11 + 2 * crops * tower.grid**2 * outer
    return [
        linear.part("pooling and projector", pool),
        linear.part("pooling and projector", projected),
        Part("pooling and projector", 4 * features * window * inner, 0, stored.value * moved, POOL_OPERATORS),
    ]
