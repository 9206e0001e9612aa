"""A call that is repeated while what stopped it may pass, for clients that don't repeat it themselves."""

import time
from collections.abc import Callable
from typing import TypeVar

PATIENCE = (1.0, 2.0, 4.0)  # seconds between tries
_Result = TypeVar("_Result")
_Error = TypeVar("_Error", bound=Exception)


def patiently(call: Callable[[], _Result], kind: type[_Error], passes: Callable[[_Error], bool]) -> _Result:
    """`call`, again after a while where it raises an error of a kind that passes; the last one is raised."""
    for wait in (*PATIENCE, None):
        try:
            return call()
        except kind as error:
            if wait is None or not passes(error):
                raise
            time.sleep(wait)
    raise AssertionError("the last try returns or raises")
