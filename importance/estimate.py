"""How long scoring will take on this machine, from a small job that is run and timed: a picture and its questions.

    seconds = t * max(P / p, S / s) * C / c,   t: seconds of the job

p, s: pictures and samples of the job, P, S: of all (a text is a picture of its own); c, C: block evaluations of all
single-block ablations, which the job measures, and of what is asked for. The second picture is timed, for the first one
warms up; loading the model isn't counted. With blocks read from disk it is an upper bound: real jobs share each
reading among more pictures.
"""

from dataclasses import dataclass, replace
from time import perf_counter

from importance.ablation import single_ablations
from importance.configurations import Cost
from importance.score import Scorer, Setting
from transform.scratch import scratch


@dataclass(frozen=True)
class Estimate:
    """`seconds` of the whole, one job after another; what was timed: `timed_seconds` for `timed_samples`."""

    seconds: float
    timed_seconds: float
    timed_samples: int

    def as_dict(self) -> dict[str, float]:
        """For `--json`."""
        return {
            "seconds": round(self.seconds, 1),
            "timed_seconds": round(self.timed_seconds, 3),
            "timed_samples": self.timed_samples,
        }

    def words(self) -> str:
        """One line for people."""
        whole = f"{self.seconds:.0f} seconds" if self.seconds < 90 else f"{self.seconds / 60:.0f} minutes"
        return (
            f"about {whole} on this machine, one job after another: a small one of {self.timed_samples} samples took "
            f"{self.timed_seconds:.2g} s, loading the model not counted"
        )


def estimate(setting: Setting, cost: Cost) -> Estimate:
    """Run the small job of `setting` and scale it to `cost`, of one pass over all samples or several."""
    groups: list[int] = setting.groups.tolist()  # numbered as they appear
    few = replace(setting, limit=groups.index(2) if 2 in groups else len(groups))
    singles, ends = single_ablations(setting.full), [perf_counter()]
    with scratch("estimate") as folder:
        Scorer(few, folder, progress=lambda _: ends.append(perf_counter())).measure(singles)
    timed, members = ends[-1] - ends[-2], few.shards()[-1]
    share = max(len(set(groups)) / len({groups[member] for member in members}), len(groups) / len(members))
    if setting.chosen.kind == "ablation":
        share *= cost.block_evaluations / Cost.of(singles).block_evaluations
    return Estimate(timed * share, timed, len(members))
