"""`knobcast share`: the best number of experts per block for a mean, as `knobcast export --k` takes it."""

from typing import Annotated

import typer

from export.command.measuring import Measuring
from export.command.once import joined
from export.command.sample_files import SampleFiles
from export.command.score_files import share_experts
from export.command.work import Work
from transform.errors import KnobError


def share(
    how: Measuring,
    files: SampleFiles,
    work: Work,
    mean_k: Annotated[float, typer.Option("--mean-k", help="The mean k of all blocks.")],
    ks: Annotated[
        list[str] | None, typer.Option("--ks", help="The k that are tried in each block; absent: 1,2,4,6.")
    ] = None,
) -> None:
    """Share out experts: the best k per block with a given mean, beside the same k everywhere."""
    said = None if ks is None else _numbers(str(joined(ks)))
    target = work.target(how.checkpoint, "widths.json")
    setting = how.setting(files)
    if setting.chosen.kind != "ablation":
        raise KnobError(
            f"--mean-k asks what fewer experts cost, by accuracy, nll or kl; {setting.chosen.name} says nothing about "
            "that. Choose one of these with --metric."
        )
    from importance.allocation import profile_configs
    from importance.configurations import Cost

    largest = max(setting.full)
    tried = said if said is not None else [n for n in (1, 2, 4, 6) if n < largest]
    if not (tried and min(tried) <= mean_k <= largest):
        raise KnobError(
            f"--mean-k must be from the least of --ks to the model's k: from {min(tried, default=largest)} to "
            f"{largest}, got {mean_k:g}. Choose one between, or smaller --ks."
        )
    cost = Cost.of([setting.full, *profile_configs(setting.full, tried)])
    work.do(setting, target, cost, 2, lambda scorer: share_experts(scorer, mean_k, tried, target, work.force))


def _numbers(text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise KnobError(f"--ks must be whole numbers with commas between them, such as 1,2,4: got {text!r}.")
    return [int(part) for part in parts]
