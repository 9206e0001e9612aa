"""What holds for the options of every command: none counts that is given twice, numbers are finite.

Of an option that is given twice the last one used to count, in silence. Where several make a list, all are taken
(`joined`); elsewhere two of them contradict each other.
"""

import math
from collections import Counter
from typing import TYPE_CHECKING

from typer.core import TyperCommand, TyperOption

from transform.errors import KnobError

if TYPE_CHECKING:
    from typer._click.core import Context, Parameter


class CommandLineError(KnobError):
    """A command line that can't be read: exit code 2, as for unknown options."""


class OnceCommand(TyperCommand):
    """A command that refuses an option given twice, unless several make a list or it is a switch without opposite."""

    def parse_args(self, ctx: "Context", args: list[str]) -> list[str]:
        """Count the options, parse them as ever, and refuse what is no number: bounds let nan and inf pass."""
        if not ctx.resilient_parsing:
            _, _, order = self.make_parser(ctx).parse_args(list(args))
            for parameter, count in Counter(order).items():
                if count > 1 and not _repeatable(parameter):
                    flags = "/".join((*parameter.opts, *parameter.secondary_opts))
                    raise CommandLineError(
                        f"{flags} takes one value, it is given {count} times. Leave all but one out."
                    )
        left = super().parse_args(ctx, args)
        for option in self.params:
            value = ctx.params.get(option.name or "")
            if isinstance(value, float) and not math.isfinite(value):
                raise CommandLineError(f"{option.opts[0]} must be a finite number, got {value}. Give one.")
        return left


def _repeatable(parameter: "Parameter") -> bool:
    if not isinstance(parameter, TyperOption):
        return True
    return parameter.multiple or (parameter.is_flag and not parameter.secondary_opts)


def joined(values: list[str] | None) -> str | None:
    """The values of an option that may be given several times, as one list: `2`, `5,6` -> `2,5,6`."""
    return ",".join(values) if values else None
