"""The command line in this process: starting Python and importing torch takes longer than most commands."""

import io
import sys
from contextlib import redirect_stderr, redirect_stdout
from typing import NamedTuple

import pytest

from export.command.main import main


class Done(NamedTuple):
    """How a command ended and what it printed."""

    code: int
    out: str
    err: str

    @property
    def said(self) -> str:
        """stderr with single spaces: where lines break is the terminal's business."""
        return " ".join(self.err.split())


def knobcast(*words: object) -> Done:
    """Run `knobcast WORDS…` through the entry point of the console script."""
    code: object = 0
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", ["knobcast", *map(str, words)])
        try:
            main()
        except SystemExit as end:
            code = end.code or 0
    assert isinstance(code, int), code
    return Done(code, out.getvalue(), err.getvalue())
