"""The acceptance set: graphs of decoders that no other test has, in every form, beside transformers.

`python -m tests.drawn` draws configurations of every family (`support/drawn.py`) and prints, by family and form, the
largest difference as a part of the largest logit: prefill, cached steps, both paddings, three values of k. It ends
with 1 where one is above the tolerance, or where a form refuses what it should take.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers

from export.gate.checking import checking_graphs
from export.graph.decoder import text_graph
from tests.support.compared import TOLERANCE, differences, in_place, loaded
from tests.support.drawn import FAMILIES, Drawn, drawn
from tests.support.graphs import session
from tests.support.variants import write_variant
from transform.forms import form_named
from transform.graphs import why_no_graphs
from transform.load import quiet_transformers
from transform.read import read_checkpoint
from transform.runtime import moe_top_k
from transform.top_k import set_top_k

FORMS = ("cpu", "int4", "int8")
EACH = 14  # of a family: 210 in all


@dataclass(frozen=True)
class Found:
    """What came of a configuration in a form: how far it is off, by k and way of calling; or why it was refused."""

    what: Drawn
    form: str
    by_way: dict[str, float]
    refused: str = ""

    @property
    def largest(self) -> float:
        return max(self.by_way.values(), default=0.0)

    @property
    def right(self) -> bool:
        """Within the tolerance; or refused, for a width that the form can't quantise."""
        if self.refused:
            return form_named(self.form).bits is not None and not self.what.packs and "--form cpu" in self.refused
        return self.largest <= TOLERANCE


def compare(what: Drawn, form: str, source: Path, folder: Path) -> Found:
    """A variant of the written `source` with some of its blocks, its graphs at each k beside transformers."""
    try:
        variant = write_variant(source, folder, what.keep, form=form)
        if not (variant / "text.onnx").exists():
            return Found(what, form, {}, str(why_no_graphs(read_checkpoint(variant))))
        return Found(what, form, _by_way(what, form, variant))
    except Exception as error:  # whatever it is, the others are drawn as well
        return Found(what, form, {}, f"{type(error).__name__}: {error}"[:300])


def _by_way(what: Drawn, form: str, variant: Path) -> dict[str, float]:
    checkpoint, theirs = read_checkpoint(variant), loaded(variant, form)
    found: dict[str, float] = {}
    routed = any(checkpoint.settings.experts_of)  # dense blocks may be all that was kept
    for k in what.ks if routed else (None,):
        changed = checkpoint if k is None else set_top_k(checkpoint, k)
        text_graph(changed, form_named(form)).write(variant / "other.onnx")
        with nullcontext() if k is None else moe_top_k(theirs, k):
            routing = changed.graph.routing
            by_way = dict(differences(session(variant, "other.onnx"), theirs, routing, what.vocabulary))
            graphs = checking_graphs(variant, text="other.onnx")
            if graphs.shares_cache:
                by_way["in place"] = in_place(graphs, theirs, routing, what.vocabulary)
        found |= {f"k={k} {way}": value for way, value in by_way.items()}
    return found


def compare_all(families: Sequence[str], seeds: Sequence[int], forms: Sequence[str]) -> Iterator[Found]:
    """Every family, seed and form in turn; nothing is left on the disk."""
    for family in families:
        for seed in seeds:
            what = drawn(family, seed)
            with tempfile.TemporaryDirectory() as folder:
                source = what.write(Path(folder) / "source")
                for form in forms:
                    yield compare(what, form, source, Path(folder) / form)


def table(found: Sequence[Found], forms: Sequence[str]) -> str:
    """Rows of a page: a family's largest differences, and how many of its configurations were refused."""
    lines = [f"| family | configurations | {' | '.join(forms)} |", f"|---|---|{'---|' * len(forms)}"]
    for family in dict.fromkeys(one.what.family for one in found):
        own = [one for one in found if one.what.family == family]
        cells = []
        for form in forms:
            of_form = [one for one in own if one.form == form]
            refused = sum(bool(one.refused) for one in of_form)
            largest = f"{max(one.largest for one in of_form):.1e}"
            cells.append(f"{largest} ({refused} refused)" if refused else largest)
        lines.append(f"| `{family}` | {len({one.what.seed for one in own})} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> int:
    """0 where all is right."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--families", default=",".join(FAMILIES))
    parser.add_argument("--first", type=int, default=1000, help="the first seed")
    parser.add_argument("--each", type=int, default=EACH, help="configurations of a family")
    parser.add_argument("--forms", default=",".join(FORMS))
    given = parser.parse_args()
    forms = given.forms.split(",")
    torch.set_num_threads(1)
    quiet_transformers()
    transformers.logging.set_verbosity_error()  # a factor that isn't the ratio of two lengths is meant
    found = []
    for one in compare_all(given.families.split(","), range(given.first, given.first + given.each), forms):
        found.append(one)
        if not one.right:
            worst = one.refused or max(one.by_way, key=lambda way: one.by_way[way])
            print(f"{one.what.family} {one.what.seed} {one.form}: {one.largest:.2e}, {worst}", flush=True)
    print(table(found, forms))
    wrong = [one for one in found if not one.right]
    print(f"{len(found)} comparisons, {len(wrong)} wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
