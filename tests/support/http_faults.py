"""What registries do when they misbehave; `hub_stand_in.py` and `faulty_proxy.py` do it when they are told."""

import re
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass
class Fault:
    """What goes wrong at requests whose "METHOD path" matches `at`, the next `times` times, after `spare` good ones.

    kind: "status" answers `status`; "cut" closes the connection amid an upload; "truncate" sends half of a download and
    ends; "damage" changes a byte of an upload. Of the stand-in Hub alone: "oid" lists a file under another digest;
    "lose" takes an upload and keeps nothing; "mute" makes a commit and closes the connection instead of an answer;
    "moved" makes another commit first.
    """

    at: str
    kind: str = "status"
    status: int = 500
    times: int = 1_000_000
    spare: int = 0

    def strikes(self, request: str) -> bool:
        if not re.search(self.at, request) or self.times <= 0:
            return False
        if self.spare > 0:
            self.spare -= 1
            return False
        self.times -= 1
        return True


def strike(faults: Iterable[Fault], request: str, kind: str) -> Fault | None:
    """The fault of a kind that is due at a request."""
    return next((fault for fault in faults if fault.kind == kind and fault.strikes(request)), None)
