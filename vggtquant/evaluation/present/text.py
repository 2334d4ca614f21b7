# SPDX-License-Identifier: Apache-2.0
"""Says a document of results in words and tables: for the terminal, and as the text report."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import RenderableType
from rich.table import Table as Grid

from ..analyse.document import regressions
from ..formatting import count, megabytes, number, percent, scaled, some
from ..schema import METRIC_NAMES, Document, Proof, Row
from . import columns, conclusions
from .tables import NARROW, WIDTH, Table, rendered

# FP32's slowest time over its fastest from which on a reader is told.
_DRIFT = 1.15

Parts = Iterator[RenderableType | Table]


def main_tables(document: Document, *, wide: bool = True) -> list[Table]:
    """The schemes, the same with INT8 activations, and FP32's own uncertainty."""
    chosen = {document.recommendation.scheme, *(name for _, name in conclusions.picks(document))}
    found = []
    for block in columns.blocks(document, wide=wide):
        table = Table(["Scheme", *(c.heading for c in block.columns)], title=block.title)
        for row in block.rows:
            cells = [row.status.value, *[""] * (len(block.columns) - 1)]
            if row.ok:
                cells = [_cell(column, row) for column in block.columns]
            else:
                table.bad.add(row.name)
            if row.name in chosen:
                table.marked.add(row.name)
            table.add(row.name, *cells)
        found.append(table)
    return found


def _cell(column: columns.Column, row: Row) -> str:
    if column is columns.SPEEDUP and (why := columns.withheld(row)):
        return why
    return column.cell(row)


def terminal(document: Document, width: int, *, colour: bool = False) -> str:
    """What the command prints: tables that fit, whether times can be used, what to use."""
    wide = width >= WIDTH
    parts: list[RenderableType | Table] = []
    for table in main_tables(document, wide=wide):
        parts += [table, ""]
    parts += [document.timing.verdict, *legend(document), "", *conclusions.headline(document)]
    parts += [f"caution: {words}" for words in timing_cautions(document)]
    return rendered(parts, min(width, WIDTH) if wide else max(width, NARROW), colour=colour)


def legend(document: Document) -> list[str]:
    """What the columns of the main table mean."""
    lines = [
        "MB: millions of bytes of parameters and buffers as held; smaller: FP32 bytes / these.",
        "ms: median time of a forward; ±: interquartile range; speedup: against FP32, forward by "
        "forward in turn; ±x: half of what the quartiles leave open; unsure: they are more than "
        "1.5x apart; ~: ratio of processor times, since other programs ran; busy: they ran, and it "
        "is not known; once: run without FP32 beside it.",
        "error: geometric mean over outputs of ||FP32 - scheme|| / ||FP32||, in percent.",
    ]
    if any(row.task.truth for row in document.schemes):
        lines.append(
            "AUC@30 (camera poses, more is better) and AbsRel (depth, less is better): against "
            "ground truth, in percent."
        )
    return lines


# ---- the text report -----------------------------------------------------------------------------


def full_report(document: Document) -> str:
    """The text report: what was compared, results, what to use, what got worse, what to beware."""
    title = "VGGT quantization report"
    parts: list[RenderableType | Table] = [f"{title}\n{'=' * len(title)}"]
    for heading, content in _sections(document):
        there = list(content)
        if there:
            parts += [f"\n{heading}\n{'-' * len(heading)}", *there]
    return rendered(parts, WIDTH)


def _sections(document: Document) -> Iterator[tuple[str, Parts]]:
    yield "What was compared", _compared(document)
    yield "Results", _results(document)
    yield "Failed or not run", _bad(document)
    yield "Recommendation", iter([_facts(list(conclusions.recommendation(document)))])
    yield "Biggest regressions (relative_l2 against FP32)", _regressions(document)
    yield "Noise floor: how far FP32 is from itself", _floor(document)
    for section in conclusions.sections(document):
        yield section.title, (part for found in section.parts for part in (found, ""))
    yield "Memory and loading", _memory(document)
    yield "What was not quantized", _left_out(document)
    yield "Proof that the quantized layers ran", _proofs(document)
    yield "Cautions", (f"* {words}" for words in cautions(document))
    yield "Every metric of every output, against FP32 (mean over scenes)", _metrics(document)


def _facts(facts: Sequence[tuple[str, str]]) -> Grid:
    grid = Grid.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    grid.add_column()
    for name, value in facts:
        grid.add_row(name, value)
    return grid


def _compared(document: Document) -> Parts:
    model, data, env = document.model, document.data, document.environment
    first = data.scenes[0]
    frames = sum(scene.frames for scene in data.scenes)
    yield _facts(
        [
            (
                "Model",
                f"{model.name}: {model.parameters:,} parameters, "
                f"{megabytes(model.parameter_bytes)} MB in FP32, {model.linear_layers} "
                f"Linear layers with {100 * model.linear_share:.1f} % of them. "
                f"Licence: {model.licence}.",
            ),
            (
                "Inputs",
                f"{data.description}: {count(len(data.scenes), 'scene')}, "
                f"{count(frames, 'picture')} in all, {first.width_px} x {first.height_px} px",
            ),
            (
                "Reference",
                "the same model with its FP32 weights on the same pictures. Each scheme replaces "
                "the weights of the Linear layers by packed integers; every output is compared.",
            ),
            (
                "Runs",
                f"{document.settings.warmup} warm-up, then over all scenes, times: "
                f"{document.settings.runs}; {count(env.threads.torch, 'thread')}",
            ),
            (
                "Machine",
                f"{env.cpu.model}, {env.cpu.cores_usable} cores, kernels: "
                f"{env.cpu.isa_active}; torch {env.versions.get('torch')}",
            ),
            *([("GPU", env.gpu.words)] if env.gpu else []),
            ("Date", env.utc),
            ("State", document.status.value),
        ]
    )


def _results(document: Document) -> Parts:
    for table in main_tables(document):
        yield from (table, "")
    yield document.timing.verdict
    yield from legend(document)


def _bad(document: Document) -> Parts:
    for row in document.schemes:
        if not row.ok:
            yield f"{row.name} ({row.status.value}): {row.reason}"


def _regressions(document: Document) -> Parts:
    for value, scheme, output in regressions(document.schemes):
        yield f"{100 * value:10.3f} %  {output:18} {scheme}"


def _floor(document: Document) -> Parts:
    floor = document.noise_floor
    rows = {row.name: row for row in document.schemes}
    names = list(floor.errors)
    if not names:
        return
    short = (name.removeprefix("Baseline_").removeprefix("FP32_") for name in names)
    table = Table(["Error %", *short])
    table.add("all outputs", *(percent(error) for error in floor.errors.values()))
    for output in rows[names[0]].metrics:
        table.add(output, *(percent(rows[name].metrics[output].relative_l2) for name in names))
    yield from (table, "")
    for name in names:
        yield from (f"{name}: {note}." for note in rows[name].notes)
    yield floor.rule
    for scheme, below in floor.below.items():
        if below.error:
            yield f"* {scheme}: its error is below that of {', '.join(below.error)}."
        elif below.outputs:
            some = [f"{output} ({', '.join(names)})" for output, names in below.outputs.items()]
            yield f"* {scheme}: below the floor only in {'; '.join(some)}."
    if not any(below.error or below.outputs for below in floor.below.values()):
        yield "No scheme has an error below it."


def memory_table(document: Document) -> Table:
    """Memory of the process, and what a process of its own says where there was one."""
    rows = document.finished()
    isolated = any(row.isolated for row in rows)
    on_gpu = any(row.gpu_peak for row in rows)
    gpu = ("GPU peak MB", "GPU reserved MB") if on_gpu else ()
    own = ("load s", "first forward s", "own peak MB", "file MB") if isolated else ()
    table = Table(["Scheme", *gpu, "peak MB", "quantizing s", *own])
    for row in rows:
        found = row.isolated
        cells = [megabytes(row.process_peak_bytes), number(row.prepare_s, 3)]
        if on_gpu:
            peak = row.gpu_peak
            cells[:0] = [
                megabytes(peak.allocated_bytes if peak else None),
                megabytes(peak.reserved_bytes if peak else None),
            ]
        if isolated:
            cells += [
                number(found.load_s if found else None, 3),
                number(found.first_forward_s if found else None, 3),
                megabytes(found.peak_rss_bytes if found else None),
                megabytes(found.file_bytes if found else None),
            ]
        table.add(row.name, *cells)
    return table


def memory_words(document: Document) -> str:
    """What the columns of the memory table mean."""
    words = "peak: of this process during the row, FP32 layers included."
    if any(row.gpu_peak for row in document.schemes):
        words = (
            "GPU peak: of tensors on the GPU during the row, without the FP32 layers that were "
            f"replaced; reserved: what torch took from the GPU for them. {words}"
        )
    if any(row.isolated for row in document.schemes):
        return f"{words} The rest: of a process that loads the scheme alone from its file."
    return f"{words} --isolate adds load time, memory and file of each scheme alone."


def _memory(document: Document) -> Parts:
    yield from (memory_table(document), "", memory_words(document))


def _left_out(document: Document) -> Parts:
    model = document.model
    rest = model.parameter_bytes - model.linear_weights * 4
    yield (
        f"{megabytes(rest)} MB are no Linear weights (convolutions, norms, embeddings, biases) and "
        "stay as they are in every scheme."
    )
    skipped: dict[str, dict[str, list[str]]] = {}  # by reason: layers, and the schemes of each
    for row in document.schemes:
        for layer in row.layers:
            if layer.skipped:
                names = skipped.setdefault(layer.skipped, {})
                names.setdefault(layer.name, []).append(row.name)
    for why, names in skipped.items():
        schemes = max(map(len, names.values()))
        yield f"* {some(list(names), 2, 'layers')}: {why} (in {schemes} schemes)"
    lost = model.linear_layers_not_reached
    if lost:
        yield (
            "Did not run on these inputs, not even in FP32, so nothing is known about it: "
            f"{some(lost, 2, 'layers')}"
        )


def kernels(proof: Proof) -> str:
    """What multiplied in how many layers."""
    return "; ".join(f"{use.layers} {use.kernel}" for use in proof.kernels)


def recheck(document: Document) -> str | None:
    """What FP32 gave after all schemes."""
    check = document.baseline_recheck
    if check is None:
        return None
    same = "the same bits as" if check.outputs_equal_first_run else "OTHER outputs than"
    return (
        f"FP32 run once more after all schemes gave {same} before them, in "
        f"{check.forward_ms:.1f} ms ({check.time_drift_percent:+.0f} %)."
    )


def _proofs(document: Document) -> Parts:
    proofs = {row.name: row.proof for row in document.schemes if row.proof}
    if proofs:
        table = Table(["Scheme", "swapped", "ran", "calls", "MB touched", "kernels"])
        for name, proof in proofs.items():
            table.add(
                name,
                str(proof.layers_swapped),
                str(proof.layers_executed),
                str(proof.layer_calls),
                megabytes(proof.packed_bytes_touched),
                kernels(proof),
            )
        yield from (table, "")
        floats = sum(len(proof.layers_with_float_weights) for proof in proofs.values())
        yield (
            f"Swapped layers that held float weights: {floats or 'none'}. MB touched: packed "
            "weights and biases of the layers that ran. Kernels: layers, activations x weights, "
            "instructions."
        )
    if words := recheck(document):
        yield words


# Of the metrics' columns: headings shorter than their names, formats other than 1.23e-04.
_SHORT = {
    "cross_entropy": "CE",
    "cosine_similarity": "cosine",
    "relative_error": "rel. err",
    "relative_l2": "rel. L2",
}
_FORMS = {"psnr": ".1f", "cross_entropy": ".3f", "cosine_similarity": ".6f", "ssim": ".5f"}
_METRICS = METRIC_NAMES[: METRIC_NAMES.index("relative_l2") + 1]


def metric_table(row: Row) -> Table:
    """Every metric of every output of a scheme."""
    table = Table(["output", *(_SHORT.get(n, n) for n in _METRICS)], title=row.name)
    for output, values in row.metrics.items():
        cells = (scaled(getattr(values, n), 1.0, _FORMS.get(n, ".2e")) for n in _METRICS)
        table.add(output, *cells)
    return table


def _metrics(document: Document) -> Parts:
    rows = [row for row in document.schemes if row.metrics and not row.outputs_equal_baseline]
    for row in rows:
        yield from (metric_table(row), "")
    whys = {
        f"{output}, {metric}: {why}"
        for row in rows
        for output, reasons in row.reasons.items()
        for metric, why in reasons.items()
    }
    if whys:
        yield "A dash means that there is no such value:"
        yield from (f"  {why}" for why in sorted(whys))


def cautions(document: Document) -> list[str]:
    """What a reader should not conclude from these results."""
    scenes = document.data.scenes
    words = [
        "Times hold for this machine, these threads and this load: compare within this report.",
        "Only weights shrink. The memory of activations is the same in every scheme, so the whole "
        "process shrinks by less than the weights do.",
    ]
    if not all(scene.ground_truth for scene in scenes):
        words.append("Errors are against the FP32 model, not against the truth.")
    if document.data.synthetic:
        words.append(
            "The scenes are rendered, not photographed: test your own with --image_folder."
        )
    if document.model.name.startswith("builtin:"):
        words.append("The built-in model is small; VGGT-1B need not rank the schemes alike.")
    if document.statistics.note:
        words.append(
            f"{count(len(scenes), 'scene')} {'says' if len(scenes) == 1 else 'say'} nothing about "
            "chance; small differences may be it. "
            "--groups, or a folder of folders, makes several scenes of photographs."
        )
    if document.settings.runs * len(scenes) < 3:
        words.append("Fewer than three forwards a scheme: the times have no useful spread.")
    unsteady = [r.name for r in document.schemes if r.outputs_repeat_bit_for_bit is False]
    if unsteady:
        words.append(
            f"Other bits in another pass over the same pictures: {', '.join(unsteady)}; figures "
            "are those of the first pass."
        )
    return words + timing_cautions(document)


def timing_cautions(document: Document) -> list[str]:
    """What speaks against the times, from the times themselves and the machine's load."""
    env, timing = document.environment, document.timing
    words = []
    if timing.advice:
        wide = f"{timing.rule} ({len(timing.wide)} rows.) " if timing.wide else ""
        words.append(f"{wide}{timing.advice}")
    if len(env.machines) > 1:
        words.append(f"Times are of several machines: {'; '.join(env.machines)}.")
    if env.load_average_1min > env.cpu.cores_usable:
        words.append(
            f"The machine was busy in the minute before the run (load {env.load_average_1min} "
            f"on {env.cpu.cores_usable} cores): if it stayed so, times are too long."
        )
    times = [row.timed.fp32_ms_nearby for row in document.finished()]
    times += [row.timed.forward_ms_median for row in document.finished()[:1]]
    if document.baseline_recheck:
        times.append(document.baseline_recheck.forward_ms)
    known = [ms for ms in times if ms is not None]
    if known and max(known) > _DRIFT * min(known):
        words.append(
            f"FP32's own time ran from {min(known):.1f} to {max(known):.1f} ms in the course of "
            "the run: differences in time of that size are no finding."
        )
    return words
