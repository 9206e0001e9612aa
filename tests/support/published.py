"""Variants to be published: small ones whose sums are recorded, without the gate."""

from pathlib import Path

from export.publish.content import Content
from export.publish.publisher import Publisher, Receipt, publish
from tests.support.variants import record_sums, write_variant


def variant(source: Path, out: Path, k: int = 2, keep: list[int] | None = None) -> Path:
    """A variant that passes `verify --level files`."""
    write_variant(source, out, keep, k)
    record_sums(out)
    return out


def push(publisher: Publisher, content: Content, alias: str | None = None) -> tuple[int, Receipt]:
    """(bytes that moved, the receipt) of a whole publication."""
    moved = 0

    def tick(count: int) -> None:
        nonlocal moved
        moved += count

    receipt = publish(publisher, publisher.plan(content, alias), lambda _: None, tick)
    return moved, receipt


def names(directory: Path) -> dict[str, bytes]:
    """All files below a directory."""
    return {p.relative_to(directory).as_posix(): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}
