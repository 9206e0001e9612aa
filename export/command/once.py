"""What holds for the options of every command: none is given twice unavailingly, and which ones were given is known.

Of an option that is given twice the last one used to count, in silence. Where several make a list, all are taken
(`joined`); elsewhere two of them contradict each other.
"""

from collections import Counter
from typing import Any

import typer
from typer.core import TyperCommand

from transform.errors import KnobError


class OnceCommand(TyperCommand):
    """A command that refuses an option given twice, unless several make a list or it is a switch without opposite."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Count the options, then parse them as ever."""
        if not ctx.resilient_parsing:
            _, _, order = self.make_parser(ctx).parse_args(list(args))
            for parameter, count in Counter(order).items():
                if count > 1 and not _repeatable(parameter):
                    flags = "/".join((*parameter.opts, *parameter.secondary_opts))
                    raise KnobError(f"{flags} takes one value, it is given {count} times. Leave all but one out.")
        return super().parse_args(ctx, args)


def _repeatable(parameter: Any) -> bool:
    if parameter.param_type_name == "argument":
        return True
    return bool(parameter.multiple or (parameter.is_flag and not parameter.secondary_opts))


def joined(values: list[str] | None) -> str | None:
    """The values of an option that may be given several times, as one list: `2`, `5,6` -> `2,5,6`."""
    return ",".join(values) if values else None


def given_options(ctx: typer.Context) -> set[str]:
    """The options that stand on the command line, whatever their values: `--k`."""
    named = {p.name: p.opts[0] for p in ctx.command.params if p.param_type_name == "option"}
    return {
        option
        for name, option in named.items()
        if name is not None and (source := ctx.get_parameter_source(name)) is not None and source.name == "COMMANDLINE"
    }
