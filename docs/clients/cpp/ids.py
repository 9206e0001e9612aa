"""Ids of a prompt's text for answer.cpp, and the text of its answer: `ids.py DIR TEXT`, `ids.py DIR < ANSWER`."""

import json
import sys
from pathlib import Path

from tokenizers import Tokenizer

directory = Path(sys.argv[1])
tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
if len(sys.argv) > 2:
    prompt = json.loads((directory / "io.json").read_text("utf-8"))["prompt"]
    text = prompt["before"] + sys.argv[2] + prompt["after"]
    print(*tokenizer.encode(text, add_special_tokens=prompt["add_special_tokens"]).ids)
else:
    print(tokenizer.decode([int(word) for word in sys.stdin.read().split()]).strip())
