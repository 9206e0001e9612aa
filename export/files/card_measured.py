"""The lines of a card that a sweep's measurements fill: accuracy with its interval, speed and memory."""

from export.files.measured import Drop, Latency, Measured, Share


def accuracy_lines(measured: Measured | None) -> list[str]:
    """The sweep's: this variant's accuracy and the source's on the same questions."""
    if measured is None or measured.quality is None or measured.data is None:
        return []
    data, quality = measured.data, measured.quality
    name = data.name.replace("`", "")
    rows = [("all", quality.total)] + ([*quality.by_task.items()] if len(quality.by_task) > 1 else [])
    lines = [
        f"Measured on {data.samples:,} questions about {data.pictures:,} pictures of `{name}` ({data.task}), with the "
        "weights of this form and the knobs at run time:",
        "",
        "| questions | accuracy | 95 % interval | samples |",
        "|---|---|---|---|",
        *(f"| {task} | {share.accuracy:.3f} | {_interval(share)} | {share.samples:,} |" for task, share in rows),
        "",
    ]
    if measured.source:
        lines += [
            f"The source has {measured.source.accuracy:.3f} on the same questions: {quality.drop.mean:.3f} more "
            f"(paired; 95 % interval {_interval(quality.drop)}).",
            "",
        ]
    return lines


def _interval(found: Share | Drop) -> str:
    return f"{found.interval[0]:.3f} to {found.interval[1]:.3f}" if found.interval else "unknown"


def speed_lines(measured: Measured) -> list[str]:
    """The sweep's times, and where they were taken."""
    machine = measured.machine or {}
    where = ", ".join(str(machine[name]) for name in ("gpu", "cpu") if machine.get(name))
    lines = [
        f"Medians with onnxruntime on {where or 'an unnamed machine'}, {machine.get('threads', '?')} threads.",
        "",
        "| workload | picture | prompt, ms | one token, ms | all, ms | peak memory, MB |",
        "|---|---|---|---|---|---|",
    ]
    for name, found in measured.latency.items():
        asked = measured.workloads.get(name)
        what = name
        if asked:
            picture = f"{asked.image[0]}×{asked.image[1]} picture, " if asked.image else ""
            what = f"{name}: {picture}{asked.prompt} tokens asked, {asked.new} answered"
        lines.append(f"| {what} | {_times(found)} |")
    return lines


def _times(found: Latency) -> str:
    seen = "" if found.vision_ms is None else f"{found.vision_ms:.1f}"
    peak = "" if found.peak_bytes is None else f"{found.peak_bytes / 1e6:,.0f}"
    return f"{seen} | {found.prefill_ms:.1f} | {found.decode_ms:.2f} | {found.total_ms:.1f} | {peak}"
