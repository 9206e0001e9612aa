"""What a stage holds besides weights and cache at its peak: the largest values that are alive together.

The runtime's own memory isn't counted: its code, arenas and copies of weights in another layout.
"""

import math

from export.cost.stored import Stored
from transform.experts import inner_width
from transform.vision_tower import read_tower

FLOAT = 4
ALIVE = 3  # values of one size around an operator: two that it reads, one that it writes


def decoder_bytes(stored: Stored, new: int, total: int) -> int:
    """Of one call with `new` tokens, `total` positions behind it: the residual stream, and the largest of attention's
    scores, the experts' rows and the logits."""
    settings, value = stored.checkpoint.settings, stored.value
    experts_in = [i for i, count in enumerate(settings.experts_of) if count]
    inner = max((inner_width(stored.checkpoint, i) for i in experts_in), default=0)
    scores = ALIVE * settings.heads * new * total
    experts = new * max(settings.top_k) * (2 * settings.hidden + ALIVE * inner)
    head = stored.shape(stored.head)
    logits = new * head[0] * (FLOAT + value) // value
    widened = math.prod(head) * stored.casts(stored.head)
    return value * (ALIVE * new * settings.hidden + max(scores, experts, logits + widened))


def vision_bytes(stored: Stored, crops: int, features: int) -> int:
    """Of one picture: its crops, the tapped outputs, and the largest of attention's scores and the two wide layers."""
    tower = read_tower(stored.checkpoint)
    patches = tower.grid**2
    rows = crops * (patches + 1)
    width, middle = stored.shape("vision.class")[0], stored.shape("vision.fc1.weight")[0]
    pixels = FLOAT * crops * patches * tower.patch_values
    scores = ALIVE * crops * tower.heads * (patches + 1) ** 2
    window = tower.pool[0] * tower.pool[1]
    pooled = ALIVE * features * window * width * len(tower.taps)
    return pixels + stored.value * (len(tower.taps) * rows * width + max(scores, ALIVE * rows * middle, pooled))
