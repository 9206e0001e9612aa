"""What `score`, `search`, `share` and `merge` write and show: scores, block sets, experts per block, a chart."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, cast

from rich.markup import escape

from export.command.output import Console
from transform.errors import ScoresError

if TYPE_CHECKING:
    from importance.results import Allocations
    from importance.score import Scorer, Setting
    from importance.scores import Scores
    from importance.search.found import Options


class Agreed(TypedDict):
    """How far other samples rank the blocks alike; `spearman` None: there is no ranking to compare."""

    data: str
    samples: int | None
    band: str
    spearman: float | None


def score_blocks(
    scorer: "Scorer", other: "Setting | None", target: Path, force: bool, plot: Path | None
) -> dict[str, object]:
    """Score blocks, with `other` samples as a check of the ranking."""
    from importance.score import Scorer
    from importance.scores import write_scores
    from importance.statistics import agreement

    found = scorer.scores()
    if other is not None:
        theirs = Scorer(other, scorer.store, scorer.executor, scorer.progress).scores()
        blocks = sorted(found.values)
        data = ", ".join(file.name for file in other.files)
        agreed: Agreed = {"data": data, "samples": theirs.samples, "band": "", "spearman": None}
        try:
            rho, agreed["band"] = agreement([found.values[b] for b in blocks], [theirs.values[b] for b in blocks])
            agreed["spearman"] = round(rho, 6)
        except ScoresError as error:  # all blocks alike: there is no ranking to compare
            agreed["band"] = f"undefined: {error}"
        found = replace(found, notes={**found.notes, "validation": agreed})
    write_scores(found, target, force)
    if plot is not None:
        write_plot(found, plot, len(scorer.setting.full))
    return found.to_json()


def search_sets(
    scorer: "Scorer", name: str, max_drop: int, options: "Options", target: Path, force: bool
) -> dict[str, object]:
    """Search sets of blocks and write them as `--scores` reads them."""
    from importance.results import found_sets
    from importance.search import strategy
    from importance.sets import write_sets

    full = scorer.setting.full
    found = strategy(name).search(scorer.measure, full, max_drop, **options)
    drop, notes = found_sets(found, scorer)
    noise = f"{len(scorer.setting.samples)} samples; the best of {found.cost.sets} sets looks better than it is"
    sets = write_sets(
        target, len(full), drop, model_digest=scorer.model_digest, notes=notes, force=force, noise=noise,
        provenance=f"knobcast search --strategy {name}, {scorer.setting.chosen.name}",
    )  # fmt: skip
    return sets.to_json()


def share_experts(scorer: "Scorer", mean_k: float, ks: list[int], target: Path, force: bool) -> "Allocations":
    """Allocate experts to blocks."""
    from importance.results import allocated
    from importance.scores import write_object

    found = allocated(scorer, mean_k, ks)
    write_object(found, target, lambda _: None, force)
    return found


def show_result(result: Mapping[str, object], target: Path, layers: int) -> None:
    """The table of whatever was written."""
    from export.command.show_scores import show_scores
    from export.command.show_sets import SetsFile, show_sets, show_widths
    from importance.scores import parse_scores

    console = Console(highlight=False)
    if "sets" in result:
        show_sets(cast("SetsFile", result), console)
    elif "allocation" in result:
        show_widths(cast("Allocations", result), console)
    else:
        show_scores(parse_scores(result, target.name, layers), console, layers)
        if "validation" in result:
            agreed = cast("Agreed", result["validation"])
            rho = "–" if agreed["spearman"] is None else f"{agreed['spearman']:.3f}"
            console.print(escape(f"Spearman {rho} with {agreed['data']}: {agreed['band']}"), soft_wrap=True)
    console.print(f"[green]written[/green] {escape(str(target))}", soft_wrap=True)


def write_plot(found: "Scores", path: Path, layers: int) -> None:
    """The bar chart."""
    from export.report.importance import plot_scores

    plot_scores(found, path, layers=layers, force=True)
