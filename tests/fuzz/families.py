"""Checkpoints of every family: a config or a table of tensors changed, then read and planned, or made a graph of."""

from pathlib import Path

from export.graph.decoder import text_graph
from tests.fuzz.mutate import in_header, in_json
from tests.fuzz.target import Target, of_rows, put
from tests.support.models import save_source
from tests.support.variants import write_variant
from tests.support.zoo import ZOO, make
from transform.errors import KnobcastError
from transform.knobs import Knobs
from transform.plan import make_plan
from transform.read import read_checkpoint

CONFIG = "config.json"


def family_targets(folder: Path) -> tuple[Target, ...]:
    """One checkpoint per row of the zoo."""
    folder.mkdir()
    places = {name: make(name, folder / name) for name in ZOO}
    knobs = {name: _knobs(place) for name, place in places.items()}
    shards = {name: sorted(place.glob("*.safetensors"))[0] for name, place in places.items()}
    whole = {name: shard.read_bytes() for name, shard in shards.items()}
    configs = {name: (place / CONFIG).read_bytes() for name, place in places.items()}

    def configured(name: str, data: bytes) -> object:
        put(shards[name], whole[name])
        return _planned(put(places[name] / CONFIG, data).parent, knobs[name])

    def tabled(name: str, data: bytes) -> object:
        put(places[name] / CONFIG, configs[name])
        return _planned(put(shards[name], data).parent, knobs[name])

    def drawn(name: str, data: bytes) -> object:
        put(shards[name], whole[name])
        plan = make_plan(read_checkpoint(put(places[name] / CONFIG, data).parent), knobs[name])
        return plan.no_graphs or text_graph(plan.target, plan.form)

    emitted = {name: config for name, config in configs.items() if not isinstance(drawn(name, config), str)}
    return (
        of_rows("graph of a family", emitted, lambda _: in_json, drawn),
        of_rows("config of a family", configs, lambda _: in_json, configured),
        of_rows("tensors of a family", whole, lambda _: in_header, tabled),
    )


def quantised_targets(folder: Path) -> tuple[Target, ...]:
    """What configs and tables of the quantised forms say."""
    source = save_source(folder / "source", hidden_size=64, intermediate_size=32)
    forms = {form: write_variant(source, folder / form, form=form) for form in ("int4", "int8")}

    def planned(row: str, data: bytes) -> object:
        form, file = row.split("/")
        before = (forms[form] / file).read_bytes()
        put(forms[form] / file, data)
        try:
            return _planned(forms[form], Knobs(k=1))
        finally:
            put(forms[form] / file, before)

    weights = {form: next(place.glob("*.safetensors")).name for form, place in forms.items()}
    names = [f"{form}/{name}" for form in forms for name in (CONFIG, weights[form])]
    rows = {name: (folder / name).read_bytes() for name in names}
    return (of_rows("quantised", rows, lambda row: in_json if row.endswith(CONFIG) else in_header, planned),)


def _knobs(place: Path) -> Knobs:
    """A k of one and the last block gone, as far as a family allows that."""
    checkpoint = read_checkpoint(place)
    fewer = tuple(range(checkpoint.settings.layers - 1))
    for knobs in (Knobs(k=1, keep=fewer), Knobs(k=1), Knobs(keep=fewer)):
        try:
            make_plan(checkpoint, knobs)
        except KnobcastError:
            continue
        return knobs
    return Knobs()


def _planned(place: Path, knobs: Knobs) -> object:
    return make_plan(read_checkpoint(place), knobs).as_dict()
