"""`knobcast search`: the best sets of blocks to drop, as `knobcast export --blocks N --scores FILE` takes them."""

from typing import Annotated

import typer

from export.command.measuring import Measuring
from export.command.once import joined
from export.command.sample_files import SampleFiles
from export.command.score_files import search_sets
from export.command.work import Work
from importance.search import STRATEGIES, strategy
from transform.checkpoint import Checkpoint
from transform.depth import pinned_blocks
from transform.errors import KnobError
from transform.knobs import parse_blocks


def search(
    how: Measuring,
    files: SampleFiles,
    work: Work,
    by: Annotated[str, typer.Option("--strategy", help="; ".join(f"{s.name}: {s.effect}" for s in STRATEGIES) + ".")],
    max_drop: Annotated[
        int | None, typer.Option("--max-drop", min=1, help="The most blocks a search drops; absent: 4.")
    ] = None,
    protect: Annotated[
        list[str] | None, typer.Option("--protect", help="Blocks a search keeps: 0,15 (absent: first and last); none.")
    ] = None,
    nested: Annotated[bool, typer.Option("--nested", help="exact: each set part of the next one.")] = False,
    beam_width: Annotated[
        int | None, typer.Option("--beam-width", min=1, help="Sets of each size that beam keeps; absent: 3.")
    ] = None,
) -> None:
    """Search which blocks to drop together, on your own samples: the best set of every size."""
    chosen, protected = strategy(by), protected_blocks(joined(protect), how.checkpoint)
    if beam_width is not None and by != "beam":
        raise KnobError(f"--beam-width is for --strategy beam, the strategy is {by}. Leave it out.")
    target = work.target(how.checkpoint, "sets.json")
    setting = how.setting(files)
    from importance.search.found import Options, Task  # numpy

    free = len(setting.full) - (2 if protected is None else len(protected))
    most = max_drop if max_drop is not None else max(1, min(4, free))
    task = Task.of(setting.full, most, protected, 3 if beam_width is None else beam_width, nested)
    options: Options = {"protected": protected, "nested": nested, "width": task.width}
    work.do(
        setting, target, chosen.cost(task), chosen.passes(task),
        lambda scorer: search_sets(scorer, by, most, options, target, work.force),
    )  # fmt: skip


def protected_blocks(text: str | None, checkpoint: Checkpoint) -> frozenset[int] | None:
    """Those that are named, or None: the usual ones; and whatever the family can't do without."""
    blocks = () if text == "none" else parse_blocks(text, "--protect")
    pinned = frozenset(range(pinned_blocks(checkpoint)))
    if blocks is None and pinned:
        blocks = (0, checkpoint.settings.layers - 1)
    return None if blocks is None else pinned.union(blocks)
