# SPDX-License-Identifier: Apache-2.0
"""The experiment report as blocks: every number from the document, every sentence from phrases."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence

from msgspec import structs

from ....configs import CONFIGS, QuantizationConfig
from ...analyse import recommendation
from ...formatting import ends, megabytes, percent, scaled, signed
from ...schema import METRIC_NAMES, Basis, Document, Kind, NoiseFloor, Row, State, Status, Withheld
from . import analysis
from .blocks import Block, Bullets, Code, Drawing, Formula, Grid, Heading, Paragraph, Picture
from .phrases import Phrases

EIGHT = METRIC_NAMES[: METRIC_NAMES.index("ssim") + 1]
"""The eight metrics; what a report gives beside them is no metric of the matrix."""

CORE = tuple(
    config.name
    for config in CONFIGS.values()
    if config.quant_type != "bf16" and not config.quantize_activations
)
"""The eight schemes of --core."""

_FORMS = {"psnr": ".2f", "cross_entropy": ".4f", "cosine_similarity": ".6f", "ssim": ".5f"}

FORMULAS = {
    "symmetric": Formula(
        r"s = \frac{\max|w|}{Q}, \quad q = \mathrm{clamp}(\mathrm{rint}(w / s), -Q, Q),"
        r" \quad \hat{w} = s\,q",
        "s = max|w| / Q,  q = clamp(rint(w / s), -Q, Q),  ŵ = s q",
    ),
    "asymmetric": Formula(
        r"s = \frac{u - l}{255}, \quad z = \mathrm{rint}(-128 - l / s), \quad"
        r" q = \mathrm{clamp}(\mathrm{rint}(w / s) + z, -128, 127), \quad \hat{w} = s\,(q - z)",
        "s = (u - l) / 255,  z = rint(-128 - l / s),  "
        "q = clamp(rint(w / s) + z, -128, 127),  ŵ = s (q - z)",
    ),
    "per_tensor": Formula(r"\hat{W}_{ij} = s\,(q_{ij} - z)", "Ŵ[i,j] = s (q[i,j] - z)"),
    "per_channel": Formula(r"\hat{W}_{ij} = s_i\,(q_{ij} - z_i)", "Ŵ[i,j] = s[i] (q[i,j] - z[i])"),
    "group": Formula(
        r"\hat{W}_{ij} = s_i\,m_{ik}\,q_{ij}, \quad k = \lfloor j / g \rfloor",
        "Ŵ[i,j] = s[i] m[i,k] q[i,j],  k = floor(j / g)",
    ),
}
_DEFINITIONS = {
    "mae": "Σ |r − c| / n",
    "mse": "Σ (r − c)² / n",
    "rmse": "√(Σ (r − c)² / n)",
    "psnr": "10 log₁₀(R² / mse)",
    "cross_entropy": "−Σ p ln q / m",
    "cosine_similarity": "Σ r c / √(Σ r² Σ c²)",
    "relative_error": "Σ |r − c| / (|r| + 10⁻⁸) / n",
    "ssim": "SSIM (Wang et al. 2004)",
}
_DATA = {
    "data_rendered": r"rendered scenes of vggtquant",
    "data_given": r"scenes given in Python",
    "data_pictures": r"pictures",
    "data_folders": r"pictures, a folder a scene",
    "data_groups": r"pictures in (?P<groups>\d+) overlapping groups",
    "data_layout": r"scenes with ground truth \((?P<layout>.+)\)",
}
"""Phrases for the descriptions of data that measure.inputs gives."""

_LICENCES = {
    "licence_unknown": r"not known here.*|not stated in the file.*",
    "licence_noncommercial": r"CC BY-NC 4\.0, as tagged.*",
    "licence_commercial": r"VGGT License: commercial.*",
    "licence_tiny": r"Apache-2\.0: our own weights.*",
    "licence_page": r"see (?P<page>\S+)",
}
"""Phrases for the licences that weights.names gives; others are names."""

_WITHHELD = {Withheld.ONCE: "once", Withheld.SPREAD: "spread", Withheld.BUSY: "busy"}
_BIBTEX = """@software{{vggtquant,
  title   = {{vggtquant: quantization of VGGT with packed weights and integer arithmetic}},
  version = {{{version}}},
  year    = {{{year}}},
}}"""


def core(document: Document) -> Document:
    """The document of the eight schemes alone; the noise floor stays that of all references.

    >>> len(CORE)
    8
    """
    references = [row for row in document.schemes if row.kind is Kind.REFERENCE]
    rows = [row for row in document.schemes if row.name in CORE or row.kind is Kind.BASELINE]
    names = {row.name for row in rows}
    old = document.statistics
    statistics = structs.replace(
        old,
        against_fp32={name: one for name, one in old.against_fp32.items() if name in names},
        between=[one for one in old.between if one.a in names and one.b in names],
    )
    floor = document.noise_floor
    below = {name: one for name, one in floor.below.items() if name in names}
    given = document.recommendation.budget
    return structs.replace(
        document,
        schemes=rows,
        statistics=statistics,
        noise_floor=NoiseFloor(rule=floor.rule, errors=floor.errors, below=below),
        best=recommendation.best(rows, statistics),
        recommendation=recommendation.recommend([*rows, *references], given, statistics),
    )


def blocks(
    document: Document, say: Phrases, drawings: Sequence[Drawing], command: str
) -> list[Block]:
    """The whole report after its title.

    drawings: the figures that there are. command: what writes this report.
    """
    found: list[Block] = [Heading(say("purpose"))]
    found += [Paragraph(say("purpose_text", model=document.model.name))]
    for part in (_setup, _method, _schemes, _results):
        found += part(document, say)
    found += _pictures(drawings, say)
    found += [Heading(say("analysis"))]
    found += map(Paragraph, analysis.paragraphs(document, say))
    found += [Heading(say("conclusion"))]
    found += [Paragraph(say.sentences(analysis.conclusion(document, say)))]
    return found + [*_end(document, say, command)]


# ---- setup, method -------------------------------------------------------------------------------


def _setup(document: Document, say: Phrases) -> Iterator[Block]:
    model, data, env = document.model, document.data, document.environment
    first, settings = data.scenes[0], document.settings
    known = sum(scene.ground_truth for scene in data.scenes)
    facts = [
        (
            "model",
            say(
                "model_value",
                name=model.name,
                parameters=f"{model.parameters:,}",
                mb=megabytes(model.parameter_bytes),
                layers=model.linear_layers,
                share=f"{100 * model.linear_share:.1f}",
            ),
        ),
        ("licence", _told(model.licence, _LICENCES, say)),
        ("weights", model.sha256),
        (
            "data",
            say(
                "data_value",
                description=_told(data.description, _DATA, say),
                scenes=len(data.scenes),
                frames=sum(scene.frames for scene in data.scenes),
                width=first.width_px,
                height=first.height_px,
            ),
        ),
        ("truth", say("truth_value", known=known, scenes=len(data.scenes))),
        (
            "machine",
            say(
                "machine_value",
                cpu=env.cpu.model,
                cores=env.cpu.cores_usable,
                threads=env.threads.torch,
                isa=env.cpu.isa_active,
            ),
        ),
        *([("gpu", env.gpu.words)] if env.gpu else []),
        ("versions", ", ".join(f"{name} {v}" for name, v in env.versions.items() if v)),
        (
            "protocol",
            say(
                "protocol_value",
                warmup=settings.warmup,
                runs=settings.runs,
                seed=settings.seed,
            ),
        ),
        ("date", env.utc),
    ]
    yield Heading(say("setup"))
    yield Grid(
        say("setup_caption"),
        (say("item"), say("value")),
        [(say(key), value) for key, value in facts],
        figures=False,
    )
    yield Paragraph(say("protocol_text"))
    if data.synthetic:
        yield Paragraph(say("synthetic"))
    if document.status in (State.RUNNING, State.INTERRUPTED):
        yield Paragraph(say("incomplete", state=say(f"state_{document.status.value}")))


def _told(words: str, phrases: Mapping[str, str], say: Phrases) -> str:
    """The phrase whose pattern words of the document match, else the words."""
    for key, pattern in phrases.items():
        if found := re.fullmatch(pattern, words):
            return say(key, **found.groupdict())
    return words


def _method(document: Document, say: Phrases) -> Iterator[Block]:
    yield Heading(say("method"))
    for key, formula in FORMULAS.items():
        yield Paragraph(say(key))
        yield formula
    if any(row.config.quantize_activations for row in document.schemes):
        yield Paragraph(say("activations"))
    beyond = [
        row.name
        for row in document.schemes
        if row.config.attention != "float" or row.config.fuse or row.config.convolutions != "float"
    ]
    if beyond:
        yield Paragraph(say("beyond_linear", names=say.names(beyond)))
    yield Paragraph(say("metrics_text"))
    facts = {one.name: one for one in document.metrics}
    yield Grid(
        say("metrics_caption"),
        (say("metric"), say("formula"), say("unit"), say("better")),
        [
            (
                name,
                _DEFINITIONS[name],
                facts[name].unit or "-",
                say("higher") if facts[name].larger_is_better else say("lower"),
            )
            for name in EIGHT
            if name in facts
        ],
        figures=False,
    )


def _schemes(document: Document, say: Phrases) -> Iterator[Block]:
    headings = "scheme", "bits", "bits_per_weight", "granularity", "coding", "activation"
    rows = [row for row in document.schemes if row.kind is Kind.QUANTIZED]
    yield Heading(say("schemes"))
    yield Grid(
        say("schemes_caption"),
        [say(key) for key in headings],
        [
            (
                row.name,
                str(row.config.bits),
                scaled(row.bytes.bits_per_weight if row.bytes else None, 1, ".2f"),
                _granularity(row.config, say),
                say("is_symmetric" if row.config.symmetric else "is_asymmetric"),
                _number(row.config, row.config.activation_bits)
                if row.config.quantize_activations
                else say("float"),
            )
            for row in rows
        ],
        figures=False,
    )


def _number(config: QuantizationConfig, bits: int) -> str:
    return f"{'FP' if config.is_float8 else 'INT'}{bits}"


def _granularity(config: QuantizationConfig, say: Phrases) -> str:
    if config.quant_type == "mixed_precision":
        return say("mixed")
    if config.quant_type == "int4_group":
        return say("group_of", size=config.group_size)
    return say("channel" if config.per_channel else "tensor")


# ---- results -------------------------------------------------------------------------------------


def _status(row: Row, say: Phrases) -> str:
    return say("failed" if row.status is Status.FAILED else "skipped")


def _reason(row: Row, say: Phrases) -> str:
    """Why a row did not finish; an exception's own message stays as it is."""
    if row.why is None or row.reason is None:
        return row.reason or "-"
    facts = row.why.facts(row.reason)
    return row.reason if facts is None else say(f"why_{row.why.name.lower()}", **facts)


def _speedup(row: Row, say: Phrases) -> str:
    time = row.timed
    if time.speedup is not None:
        about = "~" if time.speedup_basis is Basis.PROCESSOR else ""
        return f"{about}{time.speedup:.2f}"
    return say(_WITHHELD[time.speedup_withheld]) if time.speedup_withheld else "-"


def _score(row: Row, name: str) -> float | None:
    return (row.task.fp32 or {}).get(name)


_CELLS: dict[str, Callable[[Row, Phrases], str]] = {
    "size_mb": lambda row, say: megabytes(row.nbytes),
    "compression": lambda row, say: scaled(
        row.bytes.compression_ratio_model if row.bytes else None, 1, ".2f"
    ),
    "time_ms": lambda row, say: scaled(row.timed.forward_ms_median, 1, ".1f"),
    "iqr": lambda row, say: scaled(row.timed.forward_ms_iqr, 1, ".1f"),
    "speedup": _speedup,
    "error": lambda row, say: percent(row.error),
    "auc": lambda row, say: scaled(_score(row, "auc_30"), 100, ".1f"),
    "abs_rel": lambda row, say: percent(_score(row, "depth_abs_rel")),
}


def _results(document: Document, say: Phrases) -> Iterator[Block]:
    yield Heading(say("results"))
    rows = []
    for row in document.schemes:
        cells = [_status(row, say), *["-"] * (len(_CELLS) - 1)]
        if row.ok:
            cells = [cell(row, say) for cell in _CELLS.values()]
        rows.append([row.name, *cells])
    headings = [say("scheme"), *(say(key) for key in _CELLS)]
    yield Grid(say("results_caption"), headings, rows, "results", [headings, *rows])
    yield Paragraph(say("results_note"))
    bad = [row for row in document.schemes if not row.ok]
    if bad:
        yield Paragraph(say("bad"))
        yield Bullets(
            [
                say("bad_item", scheme=row.name, status=_status(row, say), reason=_reason(row, say))
                for row in bad
            ]
        )
    yield from _differences(document, say)
    yield from _matrices(document, say)


def _differences(document: Document, say: Phrases) -> Iterator[Block]:
    """A table a task score; without intervals the readings say so."""
    share = f"{100 * document.statistics.confidence:g}"
    headings = [say(key) for key in ("scheme", "difference", "interval", "reading")]
    for score, (title, factor) in analysis.SCORES.items():
        rows = []
        for row in analysis.scored(document):
            one = document.statistics.against_fp32.get(row.name, {}).get(score)
            if one is not None:
                rows.append(
                    (
                        row.name,
                        signed(factor * one.difference, 3),
                        ends(one.low, one.high, factor, 3),
                        say(f"reading_{one.reading.name.lower()}"),
                    )
                )
        if rows:
            caption = say("scores_caption", score=say(title), share=share)
            name = f"difference_{score.replace('/', '_')}"
            yield Grid(caption, headings, rows, name, [headings, *rows])


def outputs(document: Document) -> list[str]:
    """The outputs that any row has metrics of."""
    return list(dict.fromkeys(name for row in document.finished() for name in row.metrics))


def _matrices(document: Document, say: Phrases) -> Iterator[Block]:
    """Scheme by metric, a table an output."""
    found = outputs(document)
    yield Paragraph(say("matrix_note" if found else "matrix_none"))
    for output in found:
        rows: list[list[str]] = []
        exact: list[list[object]] = [["scheme", *EIGHT]]
        for row in document.schemes:
            values = row.metrics.get(output) if row.ok else None
            plain = [getattr(values, name) if values else None for name in EIGHT]
            cells = [
                scaled(value, 1, _FORMS.get(name, ".2e"))
                for name, value in zip(EIGHT, plain, strict=True)
            ]
            rows.append([row.name, *(cells if row.ok else [_status(row, say), *cells[1:]])])
            exact.append([row.name, *("" if value is None else value for value in plain)])
        caption = say("matrix_caption", output=output)
        yield Grid(caption, [say("scheme"), *EIGHT], rows, f"matrix_{output}", exact)


# ---- figures, end --------------------------------------------------------------------------------


def _pictures(drawings: Sequence[Drawing], say: Phrases) -> Iterator[Block]:
    if drawings:
        yield Heading(say("figures"))
    for one in drawings:
        yield Picture(one.name, say(one.caption, **one.facts))


def _end(document: Document, say: Phrases, command: str) -> Iterator[Block]:
    version = document.generator.version
    yield Heading(say("reproduce"))
    yield Paragraph(say("reproduce_text", version=version))
    yield Code(f"{shlex.join(document.environment.argv)}\n{command}")
    yield Heading(say("citation"))
    yield Code(_BIBTEX.format(version=version, year=document.environment.utc[:4]))
