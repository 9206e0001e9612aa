"""Which releases of transformers the modelling code was tried with. This file travels with each variant."""

TESTED_TRANSFORMERS = ("5.23", "5.24")
"""The oldest and the newest whose outputs were compared with the reference; pyproject.toml admits the same."""


def tested_range() -> str:
    """For messages."""
    return f"transformers {TESTED_TRANSFORMERS[0]} to {TESTED_TRANSFORMERS[1]}"
