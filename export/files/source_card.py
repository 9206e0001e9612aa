"""What a source's own card says of its licence and origin: the metadata that the hub's cards begin with.

Only plain values of a few known keys are read, by lines: a card is someone else's file, and a whole YAML reader isn't
needed to find a licence's name.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from transform.regular_file import IrregularError, read_regular

CARD = "README.md"
_MOST_BYTES = 4_000_000
_MOST_LINES = 500  # of metadata
_ENTRY = re.compile(r"(license|license_name|license_link|base_model):[ \t]+(\S.*)")
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9.\-]{0,99}")
_MODEL = re.compile(r"[A-Za-z0-9][\w.\-]{0,95}/[\w.\-]{1,96}")


@dataclass(frozen=True)
class SourceCard:
    """Values of the hub's metadata; None: not stated, or nothing that the hub knows."""

    license: str | None = None  # the hub's name of a licence: apache-2.0, other
    license_name: str | None = None  # of one that is `other`
    license_link: str | None = None
    base_model: str | None = None  # a hub id


def read_source_card(directory: Path) -> SourceCard:
    """What the card beside a checkpoint says; nothing where there is none that can be read."""
    try:
        text = read_regular(directory / CARD, _MOST_BYTES).decode("utf-8")
    except (OSError, IrregularError, UnicodeDecodeError):
        return SourceCard()
    first, *lines = text.splitlines()[:_MOST_LINES] or [""]
    if first.strip() != "---" or "---" not in (ends := [line.strip() for line in lines]):
        return SourceCard()
    found: dict[str, str] = {}
    for line in lines[: ends.index("---")]:
        if entry := _ENTRY.fullmatch(line.rstrip()):
            found.setdefault(entry[1], _plain(entry[2]))
    link = found.get("license_link", "")
    return SourceCard(
        _matching(_WORD, found.get("license")),
        _matching(_WORD, found.get("license_name")),
        link if re.fullmatch(r"https?://[^\s\"'<>`|\\]{1,300}", link) or _WORD.fullmatch(link) else None,
        _matching(_MODEL, found.get("base_model")),
    )


def _plain(value: str) -> str:
    """Without quotes, or a comment behind it."""
    quoted = re.fullmatch(r"""(["'])([^"']*)\1\s*(#.*)?""", value)
    return quoted[2] if quoted else re.sub(r"\s+#.*", "", value)


def _matching(pattern: re.Pattern[str], value: str | None) -> str | None:
    return value if value is not None and pattern.fullmatch(value) else None
