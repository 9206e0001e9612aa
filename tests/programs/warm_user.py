"""`export/gate/user_process.py` for many variants: what it imports is imported once, each variant gets a fork of that.

    python -P warm_user.py user_process.py          a request a line: [directory, request]; an answer a line

Starting Python, PyTorch and transformers is nine tenths of the gate's own process; hundreds of tests would pay it each
time. The code that looks at a variant is the same, as is what can be imported.
"""

import importlib.util
import json
import os
import sys
import tempfile
import traceback
from pathlib import Path


def main() -> None:
    spec = importlib.util.spec_from_file_location("user_process", sys.argv[1])
    assert spec is not None
    assert spec.loader is not None
    process = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(process)
    from transformers.models.auto import modeling_auto, processing_auto  # noqa: F401
    from transformers.models.clip import modeling_clip  # noqa: F401
    from transformers.models.olmoe import modeling_olmoe  # noqa: F401

    for line in sys.stdin:
        directory, request = json.loads(line)
        with tempfile.TemporaryDirectory() as home:
            if (child := os.fork()) == 0:
                code = 1
                try:
                    with Path(home, "errors").open("w") as errors:
                        os.dup2(errors.fileno(), 2)
                        Path(home, "report").write_text(json.dumps(process.report_on(directory, request)))
                        code = 0
                except BaseException:
                    traceback.print_exc()
                finally:
                    os._exit(code)
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            report = Path(home, "report").read_text() if code == 0 else ""
            print(json.dumps([code, report, Path(home, "errors").read_text()]), flush=True)


if __name__ == "__main__":
    main()
