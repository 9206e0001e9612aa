"""Checkpoints of every family: a config or a table of tensors changed, then read and planned."""

from pathlib import Path

from tests.fuzz.mutate import in_header, in_json
from tests.fuzz.target import Target, of_rows, put
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

    return (
        of_rows("config of a family", configs, lambda _: in_json, configured),
        of_rows("tensors of a family", whole, lambda _: in_header, tabled),
    )


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
