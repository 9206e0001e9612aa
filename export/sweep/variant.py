"""A sweep's setting and the plan of its variant, in both directions: what was measured goes along."""

from export.files.measured import Measured
from export.sweep.table import Point, Table
from importance.scores import model_digest
from transform.checkpoint import Checkpoint
from transform.errors import KnobError
from transform.knobs import Knobs, merged_k
from transform.plan import Plan, make_plan
from transform.read import read_checkpoint
from transform.source import resolve


def swept_source(table: Table, model: str | None = None) -> Checkpoint:
    """The model that was swept (`model`, None: as the sweep found it); raises KnobError for another one."""
    source = read_checkpoint(resolve(model or table.source.path))
    _insist_on(table, model_digest(source))
    return source


def plan_on(source: Checkpoint, point: Point) -> Plan:
    """The setting's plan over the model that was swept."""
    knobs = Knobs(
        k=merged_k(point.top_k), keep=point.keep_blocks, tokens=point.tokens, dtype=point.dtype, form=point.form
    )
    return make_plan(source, knobs)


def measured_of(table: Table, plan: Plan) -> Measured:
    """What the sweep measured of exactly this plan; raises KnobError where it was of another model or setting."""
    _insist_on(table, model_digest(plan.source))
    for point in table.points:
        if _is(point, plan):
            return table.measured(point)
    raise KnobError(
        f"the sweep has no setting with these knobs ({plan.name}). Leave --measured out, or choose one of "
        f"{', '.join(point.name for point in table.points[:10])}{', …' if len(table.points) > 10 else ''}."
    )


def _is(point: Point, plan: Plan) -> bool:
    tokens = plan.vision.tokens if plan.vision else None
    return (point.top_k, point.keep_blocks, point.tokens, point.form, point.dtype) == (
        plan.target.settings.top_k, plan.keep_blocks, tokens, plan.form.name, plan.knobs.dtype,
    )  # fmt: skip


def _insist_on(table: Table, digest: str) -> None:
    if digest != table.source.digest:
        raise KnobError(
            f"a sweep's settings are of one model: {table.source.name} ({table.source.digest[:12]}…), this "
            f"is another model ({digest[:12]}…). Give the same model, or run the sweep on this one."
        )
