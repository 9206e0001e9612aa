"""Which lines of a command's stderr are warnings of the libraries below it: none of them is for a user."""

import re

# `[transformers] …` is how transformers' logger writes, `[W:onnxruntime:…` onnxruntime's; Python names the category
FOREIGN = re.compile(r"\b\w*Warning\b|\bdeprecated\b|^\[transformers\]|\[[WEF]:onnxruntime|^WARNING\b", re.MULTILINE)


def foreign_warnings(stderr: str) -> list[str]:
    """The lines that a library wrote; knobcast's own begin with `warning:` or an ellipsis."""
    return [line for line in re.split(r"[\r\n]+", stderr) if FOREIGN.search(line)]
