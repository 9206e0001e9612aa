"""`knobcast report` and `knobcast tile`: the page, and the plots as files beside it."""

from collections.abc import Sequence
from pathlib import Path

from export.report.content import read_content
from export.report.gallery import Cutting
from export.report.page import gallery_page, report_page
from export.report.sections import sweep_budgets
from export.sweep.pictures import Kept, shrink
from importance.atomic import write_atomically
from transform.errors import WriteError
from transform.strict_json import Record

PAGE, PLOTS = "report.html", "plots"


def write_report(directory: Path, out: Path | None = None, *, plots: bool = True, force: bool = False) -> Record:
    """The report of the sweep in `directory`: one HTML file and, with `plots`, every plot as SVG and PNG in a folder
    `plots` beside it. Returns the paths and counts, for `--json`.

    Raises what `read_content` does, ReportError for a page that gets too large, PlotError for plots without
    matplotlib and WriteError where a file exists, unless `force`.
    """
    content = read_content(directory)
    page = out or directory / PAGE
    cutting = Cutting(sweep_budgets(content))
    text = report_page(content, cutting)
    drawn: list[Path] = []
    if plots:
        from export.report.drawing import PlotError, require_matplotlib
        from export.report.figures import write_figures

        try:
            require_matplotlib()
        except PlotError as error:
            raise PlotError(f"{error} Or leave the plots out: --no-plots.") from error
        folder = page.parent / PLOTS
        if folder.exists() and not force:
            raise WriteError(f"{folder} exists; pass --force to replace the plots in it, or --no-plots.")
        write_atomically(page, text, force)
        folder.mkdir(exist_ok=True)
        drawn = write_figures(content, cutting, folder, force)
    else:
        write_atomically(page, text, force)
    return {
        "report": str(page),
        "bytes": len(text.encode()),
        "settings": len(content.table.points),
        "failed": sum(bool(point.errors) for point in content.table.points),
        "plots": [str(path) for path in drawn],
    }


def write_gallery(images: Sequence[Path], cutting: Cutting, out: Path, *, force: bool = False) -> Record:
    """The tiling gallery of pictures alone, as one HTML file. Returns the numbers, for `--json`.

    Raises ImageError for a picture that can't be read, BudgetError for a budget, ReportError for too many pictures and
    WriteError.
    """
    pictures = tuple(shrink(image.name, image) for image in images)
    text = gallery_page(pictures, cutting)
    write_atomically(out, text, force)
    return {"gallery": str(out), "bytes": len(text.encode()), "pictures": [_numbers(p, cutting) for p in pictures]}


def _numbers(picture: Kept, cutting: Cutting) -> Record:
    found = []
    for budget in cutting.budgets:
        one = cutting.layout(picture, budget)
        found.append(
            {
                "budget": budget,
                "tiling": list(one.tiling),
                "nominal_tokens": one.nominal,
                "image_features": one.features,
                "positions": one.positions,
                "canvas": list(one.canvas),
                "padding": one.padding,
                "overlap": one.overlap,
                "cut": one.cut,
            }
        )
    return {"name": picture.name, "width": picture.width, "height": picture.height, "budgets": found}
