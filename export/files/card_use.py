"""The part of a card that says how to run a variant: a program or command for every runtime that can."""

from pathlib import Path

from transform.architectures.records import Published
from transform.modality import Modality
from transform.molmoe.versions import tested_range
from transform.plan import Plan

_GENAI = """import onnxruntime_genai as og
from tokenizers import Tokenizer

tokenizer = Tokenizer.from_file("tokenizer.json")
model = og.Model(".")
params = og.GeneratorParams(model)
params.set_search_options(max_length=128, do_sample=False)
generator = og.Generator(model, params)
generator.append_tokens(tokenizer.encode("What is this?").ids)
while not generator.is_done():
    generator.generate_next_token()
print(tokenizer.decode(generator.get_sequence(0)))"""
_JAVASCRIPT = """import { AutoModelForCausalLM, AutoTokenizer, env } from '@huggingface/transformers';
env.localModelPath = '/parent/of/OUT';
env.allowRemoteModels = false;
const tokenizer = await AutoTokenizer.from_pretrained('OUT');
const model = await AutoModelForCausalLM.from_pretrained('OUT');
const output = await model.generate({ ...tokenizer('What is this?'), max_new_tokens: 64 });
console.log(tokenizer.batch_decode(output, { skip_special_tokens: true })[0]);"""


def use_lines(plan: Plan, directory: Path, onnx: bool) -> list[str]:
    """transformers, onnxruntime, onnxruntime-genai and JavaScript, those that run it; `directory` holds the variant."""
    family, image, words = plan.target.architecture, plan.vision is not None, (directory / "tokenizer.json").is_file()
    if plan.packing:
        lines = ["The weights are for the graphs, on a CPU; transformers can't load them, and says so."]
    else:
        lines = ["```python", *_program(family.modality, plan, words), "```", "", f"Tested with {tested_range()}."]
        if family.published:
            lines += _published(family.published)
    if not (onnx and words):
        return lines
    flags = " --image photo.jpg" if image else ""
    provider = "" if plan.form.runs_on_cpu else f" --provider {plan.form.usual_provider}"
    asked = f'{flags} --prompt "What is this?"'
    lines += ["", "With onnxruntime:", "", "```", f'knobcast run .{flags}{provider} --prompt "What is this?"', "```"]
    if not plan.form.runs_on_cpu:
        return lines
    lines += ["", "With onnxruntime-genai" + (", by knobcast's client:" if image else ":"), ""]
    lines += ["```", f"python docs/clients/genai/answer.py .{asked}", "```"] if image else ["```python", _GENAI, "```"]
    if image:
        lines += ["", "With onnxruntime-node, by knobcast's client:", ""]
        return [*lines, "```", f"node docs/clients/node/answer.mjs .{asked}", "```"]
    if family.runtimes.transformers_js is None:
        return lines
    lines += ["", "With transformers.js, after `knobcast layout . --for transformers.js --out OUT`:", ""]
    return [*lines, "```js", _JAVASCRIPT, "```"]


def _published(published: Published) -> list[str]:
    """What programs written for the published model find here."""
    return [
        "",
        f"Programs for the published {published.name} run as they are; what they call is here under two names:",
        "",
        "| published | the same here |",
        "|---|---|",
        *(f"| {theirs} | {ours} |" for theirs, ours in published.calls.items()),
        "",
        published.note,
    ]


def _program(modality: Modality, plan: Plan, words: bool) -> list[str]:
    """A question answered by transformers; without a tokenizer the model alone."""
    image = modality.sees_images
    named, stock = plan.target.config.get("architectures"), plan.target.architecture.model_class is None
    auto = str(named[0]) if stock and isinstance(named, list) and named else modality.auto_class
    side, name = ("AutoProcessor", "processor") if image else ("AutoTokenizer", "tokenizer")
    trust = ", trust_remote_code=True" if image else ""
    lines = [
        f"from transformers import {auto}" + (f", {side}" if words else ""),
        "",
        'directory = "."  # where this file lies, or its name on the hub',
        f"model = {auto}.from_pretrained(directory{trust})",
    ]
    if not words:
        return lines
    given = 'text="What is this?", images=Image.open("photo.jpg")' if image else '"What is this?", return_tensors="pt"'
    return [
        *(["from PIL import Image"] if image else []),
        *lines,
        f"{name} = {side}.from_pretrained(directory{trust})",
        f"inputs = {name}({given})",
        "output = model.generate(**inputs, max_new_tokens=64)",
        f'print({name}.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))',
    ]
