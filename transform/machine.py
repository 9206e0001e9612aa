"""What this machine affords: free memory, whether a model fits, and how many threads it is worth."""

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from transform.checkpoint import Checkpoint
from transform.depth import view_blocks
from transform.sizes import parameters

FLOAT32 = 4
LARGE = 1 << 20  # bytes
_MMAP_THRESHOLD = -3  # M_MMAP_THRESHOLD of malloc.h
SMALL = 50_000_000  # parameters; below, PyTorch's threads wait for each other longer than they share work


def free_memory() -> int:
    """Bytes that can be taken without swapping; where the system doesn't say, half of the memory."""
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def return_at_once() -> None:
    """From now on glibc gives memory of a megabyte and more back to the system when it is freed. Left alone it learns
    to keep up to 32 MB, and puts a block's gigabyte of weights into the holes, where what was freed stays."""
    if sys.platform == "linux" and (set_option := getattr(ctypes.CDLL(None), "mallopt", None)):
        set_option(_MMAP_THRESHOLD, LARGE)


def release_memory() -> None:
    """Give what was freed back to the system, with glibc: else up to 1.2 GB of a MolmoE-1B block's weights, which were
    freed piece by piece, stay with the process beside the next block's."""
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
        trim(0)


def fits(checkpoint: Checkpoint) -> bool:
    """Whether the model in float32 takes at most a third of the free memory, so that two are held at once."""
    return parameters(checkpoint) * FLOAT32 <= free_memory() / 3


def fitting_blocks(checkpoint: Checkpoint) -> int:
    """How many of the first blocks make a model that `fits`; at least 1."""
    room = free_memory() / 3
    for blocks in range(checkpoint.settings.layers, 1, -1):
        if parameters(view_blocks(checkpoint, range(blocks))) * FLOAT32 <= room:
            return blocks
    return 1


@contextmanager
def fitting_threads(checkpoint: Checkpoint) -> Iterator[None]:
    """Inside, PyTorch computes small models with one thread."""
    import torch

    before = torch.get_num_threads()
    if parameters(checkpoint) < SMALL:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
