"""`knobcast ARGS…` in this process, then its peak resident memory on the last line, in MiB."""

import re
import sys
from pathlib import Path

from export.command.main import main

sys.argv[0] = "knobcast"
try:
    main()
except SystemExit as end:
    if end.code:
        raise
peak = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
assert peak
print(int(peak[1]) // 1024)
