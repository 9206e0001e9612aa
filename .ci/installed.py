"""Say what is missing of knobcast and its dependencies, all the way down; the exit code is 1 then.

`python .ci/installed.py dev plot`: with these extras. Reads metadata alone, in a tenth of a second.
"""

import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement


def missing(extras: list[str]) -> list[str]:
    """What a requirement names and the environment lacks, or has in a version that isn't admitted."""
    found = [] if Path(sys.executable).with_name("knobcast").exists() else ["the command knobcast"]
    waiting, seen = [Requirement(f"knobcast[{','.join(extras)}]")], set[str]()
    while waiting:
        wanted = waiting.pop()
        if str(wanted) in seen:
            continue
        seen.add(str(wanted))
        try:
            installed = distribution(wanted.name)
        except PackageNotFoundError:
            found.append(str(wanted))
            continue
        if not wanted.specifier.contains(installed.version, prereleases=True):
            found.append(f"{wanted} (there is {installed.version})")
        for text in installed.requires or []:
            needed = Requirement(text)
            if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in ("", *wanted.extras)):
                waiting.append(needed)
    return sorted(found)


if __name__ == "__main__":
    if absent := missing(sys.argv[1:]):
        sys.exit("missing: " + ", ".join(absent))
