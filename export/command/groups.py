"""Options in groups: a frozen dataclass declares them once, a command takes it whole, typer sees each of them.

@dataclass(frozen=True)
class Target:
    out: Annotated[Path | None, typer.Option("--out")] = None
    force: Annotated[bool, typer.Option("--force")] = False

def export(model: Model, target: Target) -> None: ...      # knobcast export MODEL --out DIR --force --quiet
"""

from collections.abc import Callable
from dataclasses import fields, is_dataclass
from functools import wraps
from inspect import Parameter, signature
from typing import TYPE_CHECKING, Annotated, get_args

import typer
from typer.models import OptionInfo

from export.command.output import be_quiet

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Command = Callable[..., None]
Quiet = Annotated[
    bool,
    typer.Option("--quiet", help="No progress and no remarks on stderr."),
]


def flat(command: Command) -> Command:
    """`command` with the options of its groups instead of the groups, all by name, and --quiet."""
    taken = signature(command).parameters
    groups: dict[str, type[DataclassInstance]] = {
        name: each.annotation
        for name, each in taken.items()
        if isinstance(each.annotation, type) and is_dataclass(each.annotation)
    }
    options: list[Parameter] = []
    for name, each in taken.items():
        options += signature(groups[name]).parameters.values() if name in groups else [each]
    options.append(Parameter("quiet", Parameter.KEYWORD_ONLY, default=False, annotation=Quiet))

    @wraps(command)
    def run(**given: object) -> None:
        be_quiet(bool(given.pop("quiet")))
        for name, group in groups.items():
            given[name] = group(**{field.name: given.pop(field.name) for field in fields(group)})
        command(**given)

    by_name = [each.replace(kind=Parameter.KEYWORD_ONLY) for each in options]
    run.__signature__ = signature(command).replace(parameters=by_name)  # type: ignore[attr-defined]
    run.__annotations__ = {each.name: each.annotation for each in by_name}
    return run


def said(group: "DataclassInstance") -> list[str]:
    """The options of a group that were said, named as its fields (`--keep-blocks`): those with another value than the
    default."""
    given = [each for each in fields(group) if getattr(group, each.name) != each.default]
    return [f"--{each.name.replace('_', '-')}" for each in given if isinstance(get_args(each.type)[1], OptionInfo)]
