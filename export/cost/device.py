"""A device in a few numbers: what `devices/*.toml` and the files of `knobcast calibrate` say, read strictly.

name, provider, memory_gb (10^9 bytes), bandwidth_gb_s, operator_us (what calling one operator costs), [tflops] by the
type that products are computed in, dense; optional: runtime_mb, cut_gb_s, [sources] with a text per number.
"""

import json
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

from transform.errors import KnobError
from transform.forms import NAMES, Form, form_named
from transform.regular_file import IrregularError, read_regular

HOME = "export.cost.devices"
RATES = ("float32", "float16", *(f"int{bits}" for bits in (8, 4)))  # types of numbers, whatever forms are called
PROVIDERS = tuple(dict.fromkeys(word for name in NAMES for word in form_named(name).providers))
NUMBERS = ("memory_gb", "bandwidth_gb_s", "operator_us")
OPTIONAL = ("runtime_mb", "cut_gb_s")
_KEYS = ("name", "provider", *NUMBERS, *OPTIONAL, "tflops", "sources")
_LARGEST = 1e9
_MOST_BYTES = 100_000


@dataclass(frozen=True)
class Device:
    """`memory`: bytes; `bandwidth`: bytes a second; `operator`: seconds; `rates`: FLOP a second by type. `runtime`:
    bytes that a process takes beside the model, None: unknown. `cut`: bytes a second at which a processor beside the
    device cuts pictures, None: unknown, or the device is one itself. `sources`: of each number, by its key."""

    name: str
    provider: str
    memory: float
    bandwidth: float
    operator: float
    rates: Mapping[str, float]
    runtime: float | None = None
    cut: float | None = None
    sources: Mapping[str, str] = field(default_factory=dict)

    def rate(self, form: Form) -> float:
        """FLOP a second for a form: of its codes' type where the device names it, else of what it computes in.

        Raises KnobError for a form that doesn't run here, and for a type whose number is missing.
        """
        if self.provider not in form.providers:
            raise KnobError(
                f"the {form.name} form runs on {', '.join(form.providers)}, and {self.name} is for {self.provider}. "
                "Choose another --form or --device."
            )
        coded = f"int{form.bits}"
        known = self.rates.get(coded, self.rates.get(form.compute))
        if known is None:
            raise KnobError(
                f"{self.name} must say how fast it multiplies {form.compute} for the {form.name} form, it has "
                f"tflops of {', '.join(self.rates)}. Add tflops.{form.compute}, or choose another --form."
            )
        return known

    def text(self) -> str:
        """As a TOML file."""
        lines = [f"name = {json.dumps(self.name)}", f"provider = {json.dumps(self.provider)}"]
        numbers = {
            "memory_gb": self.memory / 1e9,
            "bandwidth_gb_s": self.bandwidth / 1e9,
            "operator_us": self.operator * 1e6,
            "runtime_mb": None if self.runtime is None else self.runtime / 1e6,
            "cut_gb_s": None if self.cut is None else self.cut / 1e9,
        }
        lines += [f"{key} = {_plain(value)}" for key, value in numbers.items() if value is not None]
        lines += ["", "[tflops]", *(f"{kind} = {_plain(rate / 1e12)}" for kind, rate in self.rates.items())]
        lines += ["", "[sources]"]
        lines += [f"{json.dumps(key)} = {json.dumps(text)}" for key, text in self.sources.items()]
        return "\n".join(lines) + "\n"


def known_devices() -> tuple[str, ...]:
    """Names of the devices that come with knobcast."""
    files = resources.files(HOME).iterdir()
    return tuple(sorted(file.name.removesuffix(".toml") for file in files if file.name.endswith(".toml")))


def find_device(said: str) -> Device:
    """A device by its name or by a file's; raises KnobError."""
    if said in known_devices():
        text = resources.files(HOME).joinpath(f"{said}.toml").read_bytes()
        return parse_device(text, said)
    if said.endswith(".toml"):
        return read_device(Path(said))
    raise KnobError(
        f"a device is a file NAME.toml or one of {', '.join(known_devices())}, got {said[:60]!r}. Choose one of them, "
        "or make a file by `knobcast calibrate`."
    )


def read_device(path: Path) -> Device:
    """The device in a file; raises KnobError."""
    try:
        return parse_device(read_regular(path, _MOST_BYTES), str(path))
    except OSError as error:
        raise KnobError(f"{path} must be a device file that can be read: {error.strerror}. Give another.") from error
    except IrregularError as error:
        raise KnobError(f"{path}: a device file is a small TOML file: {error}. Give another.") from error


def parse_device(data: bytes, where: str) -> Device:
    """A device file's content; raises KnobError that names `where`, and every number that is missing."""
    try:
        raw = tomllib.loads(data.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise KnobError(f"{where}: a device file must be TOML: {error}. Correct it.") from error
    unknown = [key for key in raw if key not in _KEYS]
    if unknown:
        raise KnobError(
            f"{where}: a device file has the keys {', '.join(_KEYS)}, got {unknown[0][:40]!r}. Leave it out."
        )
    rates = _table(raw, "tflops", where)
    missing = [key for key in NUMBERS if key not in raw] + ([] if rates else [f"tflops.{RATES[0]}"])
    if missing:
        raise KnobError(f"{where}: a device file needs all of its numbers, {', '.join(missing)} missing. Add them.")
    for key in ("name", "provider"):
        if not isinstance(raw.get(key), str) or not 0 < len(raw[key]) <= 200:
            got = repr(raw[key])[:40] if key in raw else "none"
            raise KnobError(f"{where}: {key} must be a short text, got {got}. Correct it.")
    if raw["provider"] not in PROVIDERS:
        raise KnobError(
            f"{where}: provider must be one of {', '.join(PROVIDERS)}, got {raw['provider'][:40]!r}. Choose one."
        )
    wrong = [kind for kind in rates if kind not in RATES]
    if wrong:
        raise KnobError(f"{where}: tflops has the keys {', '.join(RATES)}, got {wrong[0][:40]!r}. Leave it out.")
    sources = _table(raw, "sources", where)
    texts = {key: text for key, text in sources.items() if isinstance(text, str)}
    if len(texts) < len(sources):
        raise KnobError(f"{where}: sources holds a text per number, {next(iter(sources.keys() - texts))!r} has none.")
    optional = {key: _number(raw[key], key, where) if key in raw else None for key in OPTIONAL}
    return Device(
        raw["name"],
        raw["provider"],
        _number(raw["memory_gb"], "memory_gb", where) * 1e9,
        _number(raw["bandwidth_gb_s"], "bandwidth_gb_s", where) * 1e9,
        _number(raw["operator_us"], "operator_us", where, least=0.0) / 1e6,
        {kind: _number(rate, f"tflops.{kind}", where) * 1e12 for kind, rate in rates.items()},
        None if optional["runtime_mb"] is None else optional["runtime_mb"] * 1e6,
        None if optional["cut_gb_s"] is None else optional["cut_gb_s"] * 1e9,
        texts,
    )


def _table(raw: Mapping[str, object], key: str, where: str) -> Mapping[str, object]:
    value = raw.get(key, {})
    if not isinstance(value, dict):
        raise KnobError(f"{where}: {key} must be a table, [{key}], got {str(value)[:40]!r}. Correct it.")
    return value


def _number(value: object, key: str, where: str, least: float | None = None) -> float:
    number = value if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    if (math.ulp(0.0) if least is None else least) <= number <= _LARGEST:  # never nan
        return float(number)
    rule = "a number above 0" if least is None else f"a number from {least:g}"
    raise KnobError(f"{where}: {key} must be {rule}, at most {_LARGEST:g}, got {repr(value)[:40]}. Correct it.")


def _plain(value: float) -> str:
    """Four digits, as TOML reads them: never an exponent without a point, never a bare integer that was none."""
    return repr(float(f"{value:.4g}"))
