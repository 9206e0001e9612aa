"""`knobcast bench`: what is refused, who takes part, and where the numbers go."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from export.command.once import joined
from export.command.options import Json, Preprocess, Provider
from export.command.output import Console, print_json, remarks, show_warnings
from transform.errors import KnobcastError, KnobError, VerificationError, WriteError

if TYPE_CHECKING:
    from export.bench.record import BenchRecord, Setting
    from export.run.family_file import Member
    from export.run.io_file import Io

SCHEMA = 1
AGAINST = "eager,grouped_mm,exporter"


@dataclass(frozen=True)
class Contest:
    """Where all are measured, and who takes part."""

    provider: Provider = "cpu"
    threads: Annotated[
        int | None, typer.Option("--threads", min=1, help="For every contestant; absent: physical cores.")
    ] = None
    member: Annotated[str | None, typer.Option("--member", help="Of a family, this member: k4-b12.")] = None
    against: Annotated[
        list[str] | None,
        typer.Option(
            "--against", help="The first that runs is the baseline; none: the graphs alone.", show_default=AGAINST
        ),
    ] = None


@dataclass(frozen=True)
class Rounds:
    """What all of them do, and how often."""

    prompt_tokens: Annotated[
        int | None, typer.Option("--prompt-tokens", help="Absent: 512, or what a larger picture needs.")
    ] = None
    new_tokens: Annotated[int, typer.Option("--new-tokens", help="Always as many; N make N - 1 steps.")] = 64
    runs: Annotated[int, typer.Option("--runs", min=1, help="Rounds that count.")] = 5
    warmup: Annotated[int, typer.Option("--warmup", min=0, help="Rounds before them.")] = 1
    image: Annotated[Path | None, typer.Option("--image", help="A picture file; absent: a drawn one.")] = None
    preprocess: Preprocess = None
    timeout: Annotated[float, typer.Option("--timeout", min=1, help="Seconds one load, export or run may take.")] = (
        3600.0
    )


def bench(
    directory: Annotated[Path, typer.Argument(help="A variant, or a family with --member.")],
    contest: Contest,
    rounds: Rounds,
    out: Annotated[Path | None, typer.Option("--out", help="Write the record here too (.json).")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show who can be measured here, and stop.")] = False,
    as_json: Json = False,
) -> None:
    """Measure a variant's speed and memory beside PyTorch and transformers' exporter."""
    from export.bench.contestants import GRAPHS, WHAT, parse_against, unavailable
    from export.bench.cutting import open_cutter
    from export.bench.gguf_file import why_not
    from export.bench.machine import machine_facts, physical_cores
    from export.bench.show import show_bench, show_contestants
    from export.command.bars import turn_bar
    from export.run.graph_facts import read_facts
    from export.run.io_file import form_in
    from export.run.session import check_provider
    from transform.read import read_checkpoint
    from transform.sizes import parameters

    provider, member = contest.provider, contest.member
    baselines = parse_against(AGAINST if contest.against is None else str(joined(contest.against)))
    io, chosen = _open(directory, provider, member)
    decoder, form = chosen.graph if chosen else "text.onnx", form_in(io)
    _check_out(out, force or dry_run)
    from export.bench.workload import make_workload

    count = contest.threads or physical_cores()
    cutter = open_cutter(directory, io, rounds.image, rounds.preprocess, count)
    workload = make_workload(
        directory, io, rounds.prompt_tokens, rounds.new_tokens, None if cutter is None else cutter.cut()
    )
    names = (GRAPHS, *baselines)
    checkpoint = read_checkpoint(directory)
    ks = chosen.top_k if chosen else checkpoint.settings.top_k
    reasons = unavailable(names, parameters(checkpoint), provider, why_not(checkpoint, ks))
    graph = directory / decoder
    try:
        check_provider(graph, read_facts(graph), _named(provider))
    except VerificationError:
        pass  # a damaged graph is one contestant's failure, listed with the others' figures
    except KnobcastError as error:
        if not dry_run:
            raise
        reasons[GRAPHS] = str(error)
    facts: Setting = {
        "schema": SCHEMA,
        "directory": str(directory),
        "member": member,
        "form": form.name,
        "activations": io.get("activations") or next(iter(form.activations), None),
        "model_type": io["model_type"],
        "layers": len(chosen.blocks_kept) if chosen else io["layers"],
        "top_k": list(chosen.top_k) if chosen else io["top_k"],
        "provider": provider,
    }
    if dry_run:
        listed = {name: reasons.get(name) for name in names}
        if as_json:
            states = [
                {"name": n, "what": WHAT[n], "status": "unavailable" if reason else "available", "reason": reason}
                for n, reason in listed.items()
            ]
            print_json({**facts, "workload": workload.as_dict(), "contestants": states})
        else:
            show_contestants(listed, WHAT, Console(highlight=False))
        return
    show_warnings(f"{name} is left out: {reason}" for name, reason in reasons.items())
    from export.bench.job import BenchJob
    from export.bench.measure import Bench, first_baseline, measure, tokens_equal

    job = BenchJob(
        str(directory.resolve()),
        provider,
        count,
        graph=decoder,
        dtype="float32" if provider == "cpu" else form.compute,
        blocks_kept=chosen.blocks_kept if chosen else None,
        top_k=chosen.top_k if chosen else None,
    )
    plan = Bench(job, workload, names, reasons, rounds.runs, rounds.warmup, rounds.timeout)
    machine = machine_facts(count, provider != "cpu")  # the load before, not our own
    if machine["load"] is not None and machine["load"] > machine["cores"] / 2:
        show_warnings([
            f"others use this machine: load {machine['load']:g} on {machine['cores']} cores. PyTorch's threads suffer "
            f"most from that; wait until it is quiet{', or take --threads 1' * (count > 1)}."
        ])  # fmt: skip
    cut = None if cutter is None else cutter.timed(rounds.runs, rounds.warmup)
    with turn_bar(remarks, plan.turns) as (say, advance):
        found = measure(plan, say, advance)
    record: BenchRecord = {
        **facts,
        "machine": machine,
        "workload": workload.as_dict(),
        "preprocess": cut,
        "runs": rounds.runs,
        "warmup": rounds.warmup,
        "baseline": first_baseline(found),
        "tokens_equal": tokens_equal(found),
        "contestants": found,
    }
    if out is not None:
        from transform.write import write_json

        write_json(out, record)
    if as_json:
        print_json(record)
    else:
        show_bench(record, Console(highlight=False))
    if found[0]["status"] != "measured":
        raise typer.Exit(1)


def _open(directory: Path, provider: str, member: str | None) -> tuple["Io", "Member | None"]:
    """(io.json, the family's member); refuses what has no graphs, and a provider that isn't there."""
    import onnxruntime

    from export.files.integrity import check_before_torch
    from export.run.family_file import read_family
    from export.run.io_file import read_io
    from export.run.providers import PROVIDERS

    check_before_torch(directory)
    if provider not in PROVIDERS:
        raise KnobError(f"--provider must be one of {', '.join(PROVIDERS)}, got {provider[:40]!r}. Choose one of them.")
    wanted = _named(provider)
    if wanted not in onnxruntime.get_available_providers():
        raise KnobError(
            f"--provider {provider} must be built into onnxruntime: {onnxruntime.__version__} has "
            f"{', '.join(onnxruntime.get_available_providers())}. Install onnxruntime-gpu, or bench on the cpu."
        )
    chosen = None if member is None else read_family(directory).member(member)
    for name in ("io.json", chosen.graph if chosen else "text.onnx"):
        if not (directory / name).is_file():
            raise KnobError(
                f"a variant to bench must have {name}: {directory} has none. Export it with its graphs "
                "(without --no-onnx); a family of weights alone has none, load that with transformers."
            )
    return read_io(directory), chosen


def _named(provider: str) -> str:
    """onnxruntime's name of a provider."""
    from export.run.providers import CPU, CUDA, PROVIDERS, TENSORRT

    return dict(zip(PROVIDERS, (CPU, CUDA, TENSORRT), strict=True))[provider]


def _check_out(out: Path | None, force: bool) -> None:
    """Find out before the work that nothing can be written."""
    if out is None:
        return
    if not out.resolve().parent.is_dir():
        raise WriteError(f"{out} must lie in an existing folder, {out.resolve().parent} is none. Choose another --out.")
    if out.exists() and not force:
        raise WriteError(f"{out} exists; pass --force or choose another --out.")
