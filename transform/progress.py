"""How long work tells where it is: what it does now, and how much of it is done."""

from collections.abc import Callable

Say = Callable[[str], None]  # is told each step, in a few words
Progress = Callable[[int], None]  # is told amounts done, in bytes unless its user says otherwise
