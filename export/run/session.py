"""onnxruntime sessions as a variant's io.json asks for them: named providers, no folding, no prepacking. No torch.

What can't run is refused before the session is opened where the graph tells, for onnxruntime then loads for minutes,
falls back in silence, or fails at the first token.
"""

import io
import re
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from export.run.graph_facts import FLOAT, Facts, check_ranges, read_facts
from export.run.last_row import last_row_model
from export.run.load_errors import shortened, too_old_to_load
from export.run.oldest import older_than_stated, too_old
from export.run.providers import CPU, CUDA, SESSION_ATTRIBUTES
from transform.errors import KnobcastError, VerificationError

# A provider by name, or with its options, as onnxruntime takes them.
Provider = str | tuple[str, Mapping[str, str]] | list[Any]

_WARNING, _FATAL = 2, 4  # onnxruntime's severities; the first is its default


class RunError(KnobcastError):
    """A variant that can't run here, or a prompt it can't take."""


def open_session(
    path: Path,
    options: Mapping[str, str],
    providers: Sequence[Provider] = (CPU,),
    threads: int = 0,
    stated: object = None,
) -> Any:
    """An InferenceSession on the first of `providers`; `options` are session config entries, 0 threads all cores.

    `stated`: io.json's `onnxruntime_by_graph`, which older variants don't have.
    """
    import onnxruntime

    named = [_with_options(provider) for provider in providers]
    facts = read_facts(path)
    check_ranges(path, facts)
    check_provider(path, facts, named[0][0])
    check_version(path, facts, stated)
    check_loads(named)
    session_options = onnxruntime.SessionOptions()
    session_options.log_severity_level = 3
    session_options.intra_op_num_threads = threads
    for attribute, given in SESSION_ATTRIBUTES["cpu"].items() if named[0][0] == CPU else ():
        setattr(session_options, attribute, given)
    for key, value in options.items():
        try:
            session_options.add_session_config_entry(key, value)
        except RuntimeError as error:
            raise VerificationError(
                f"io.json: onnxruntime can't take the session option {key[:60]!r}: {shortened(error)}. Export the "
                "variant again."
            ) from error
    try:
        # its own way of falling back prints on stdout and takes another provider than the one asked for
        return onnxruntime.InferenceSession(str(path), session_options, providers=named, enable_fallback=0)
    except Exception as error:  # onnxruntime has a dozen exception types without a common base
        raise _explained(path, facts, str(error), named[0][0]) from error


def _with_options(provider: Provider) -> tuple[str, dict[str, str]]:
    if isinstance(provider, str):
        return provider, {}
    name, options = provider
    return name, dict(options)


def check_loads(providers: Sequence[tuple[str, Mapping[str, str]]]) -> None:
    """Open a graph of one operator on the first provider: one that doesn't load is left out without an error."""
    import onnxruntime

    wanted = providers[0][0]
    if wanted == CPU:
        return
    with redirect_stdout(io.StringIO()) as missing:  # it prints what it can't find
        onnxruntime.preload_dlls()  # CUDA's libraries as pip installs them, with torch or alone
    onnxruntime.set_default_logger_severity(_FATAL)  # the reason goes into one message, ours
    try:
        tiny = onnxruntime.InferenceSession(last_row_model(FLOAT), providers=list(providers), enable_fallback=0)
        used, reason = str(tiny.get_providers()[0]), _first_library(missing.getvalue())
    except Exception as error:  # TensorRT's absence is an error, CUDA's is not
        used, reason = "", shortened(error)
    finally:
        onnxruntime.set_default_logger_severity(_WARNING)
    if used != wanted:
        raise RunError(
            f"The provider must load to be used: onnxruntime {onnxruntime.__version__} could not load {wanted} "
            f"({reason}). Install its libraries and a GPU's driver, or run on the cpu."
        )


def check_provider(path: Path, facts: Facts, provider: str) -> None:
    """Refuse a provider that isn't built in, and a graph it has no kernels for."""
    import onnxruntime

    version, available = onnxruntime.__version__, onnxruntime.get_available_providers()
    if provider not in available:
        raise RunError(
            f"The provider must be built into onnxruntime: {version} has {', '.join(available)}, not {provider}. "
            "Install onnxruntime-gpu, or run on the cpu."
        )
    if provider != CPU and "com.microsoft::QMoE" in facts.operators:
        raise RunError(
            f"{path.name} holds quantised experts (QMoE) in the order that the CPU's operator reads, {provider} reads "
            "another. Run it with --provider cpu, or export the variant with --form cuda."
        )
    if provider == CPU and facts.device_only:
        raise RunError(
            f"{path.name} is of the cuda form, which needs {CUDA}: for its fused experts (MoE) in float16 "
            f"onnxruntime {version} has no right operator on the CPU. Run it with --provider cuda, or export the "
            "variant with --form cpu or int4."
        )
    if provider == CPU and facts.bfloat16:
        raise RunError(
            f"{path.name} computes {', '.join(sorted(facts.bfloat16))} in bfloat16, which onnxruntime {version} has no "
            "kernels for on the CPU. Run it with --provider cuda, or export the variant with --form cpu."
        )


def check_version(path: Path, facts: Facts, stated: object = None) -> None:
    """Refuse a graph whose operators came with a later onnxruntime, and one of which io.json says so."""
    import onnxruntime

    version = onnxruntime.__version__
    if text := too_old(path.name, facts.operators, version) or older_than_stated(path.name, stated, version):
        raise RunError(text)


def _explained(path: Path, facts: Facts, reason: str, provider: str) -> KnobcastError:
    """The error onnxruntime gave, in our words where it is known."""
    import onnxruntime

    version = onnxruntime.__version__
    if text := too_old_to_load(path.name, reason, facts.operators, provider, version):
        return RunError(text)
    return VerificationError(
        f"{path.name}: onnxruntime {version} could not load it: {shortened(reason)}. Export the variant again."
    )


def _first_library(printed: str) -> str:
    """Of what preloading said, the first library that isn't there."""
    match = re.search(r"Failed to load (\S+?):", printed)
    return f"{match[1]} can't be loaded" if match else "it fell back to the next one"
