"""How far each block attends, and what a config must say of it before graphs can be sure to attend as far.

The gate's prompts are shorter than most models' windows, so that a window which is there for transformers alone, or for
the graph alone, would show in long texts only.
"""

from collections.abc import Mapping

from transform.architectures.values import shown
from transform.errors import CheckpointError

KINDS = "layer_types"
WINDOW = "sliding_window"
WINDOWED = {"sliding_attention": WINDOW, "chunked_attention": "attention_chunk_size"}
MOST = 1 << 62  # tokens: int64 holds the sum of a position and a window
LAST_FULL = "max_window_layers"  # how many first blocks see all, in families without a switch


def windows_of(
    config: Mapping[str, object], layers: int, window: str | None, switch: str | None, listed: bool
) -> tuple[int | None, ...]:
    """How many tokens each block attends to, its own among them; None: all before it.

    `window`: the key of one that all blocks have where no list says which; `switch`: the key that must be true for it;
    `listed`: transformers reads a list of kinds. Raises CheckpointError for more tokens than graphs can count.
    """
    kinds = config.get(KINDS) if listed else None
    if isinstance(kinds, list) and len(kinds) >= layers:
        keys = [WINDOWED.get(str(kind)) for kind in kinds[:layers]]
    else:
        keys = [window if switch is None or config.get(switch) else None] * layers
    sizes = [config.get(key) if key else None for key in keys]
    for key, size in zip(keys, sizes, strict=True):
        if type(size) is int and size > MOST:
            raise CheckpointError(
                f"config.json: {key} must be at most {MOST:,} tokens, got {shown(size)}. Restore the original "
                "config.json."
            )
    return tuple(size if type(size) is int and size > 0 else None for size in sizes)


def unsaid_windows(
    config: Mapping[str, object], layers: int, window: str | None, switch: str | None, listed: bool
) -> str | None:
    """What a decoder's config leaves open or contradicts, where that changes how far blocks attend.

    `listed`: transformers reads a list of kinds, and makes it where there is none.
    """
    on = None if switch is None else config.get(switch, False)
    if on is not None and type(on) is not bool:
        return f"{switch} must be true or false, it is {shown(on)}"
    kinds, size = config.get(KINDS), config.get(WINDOW)
    slides = isinstance(kinds, list) and "sliding_attention" in map(str, kinds[:layers])
    if slides and not listed:
        return f"{KINDS} has sliding_attention, and transformers reads no such list in this family"
    if isinstance(kinds, list) and listed:
        if not slides:
            return None
        if on is False:
            return f"{switch} must be true where {KINDS} has sliding_attention, it is false or absent"
    elif listed:
        before = config.get(LAST_FULL)
        all_full = on is False or (on is None and type(before) is int and before >= layers)
        open_ = not all_full and not (WINDOW in config and size is None)
        return f"{KINDS} must say which blocks slide, the config leaves it to transformers" if open_ else None
    elif window is None or on is False or size is None:
        return None
    if type(size) is not int or size < 1:
        return f"{WINDOW} must be a whole number above 0 where blocks slide, it is {shown(size)}"
    return None
