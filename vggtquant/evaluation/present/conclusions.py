# SPDX-License-Identifier: Apache-2.0
"""The parts of the text report that say what the scores mean: tasks, confidence, chance, advice.

Words for what stands in the document; nothing is computed here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.table import Table

from .tables import new_table, scaled, signed

Row = dict[str, Any]
Document = dict[str, Any]
Section = tuple[str, list[str | Table]]
Column = tuple[str, str, float, str]  # score, heading, factor, format

_POSES: tuple[Column, ...] = (
    ("auc_3", "AUC@3", 100.0, ".1f"),
    ("auc_5", "@5", 100.0, ".1f"),
    ("auc_15", "@15", 100.0, ".1f"),
    ("auc_30", "@30", 100.0, ".1f"),
    ("rotation_median_deg", "rot", 1.0, ".2f"),
    ("translation_median_deg", "trans", 1.0, ".2f"),
)
_TRUTH: tuple[Column, ...] = (
    *_POSES,
    ("depth_abs_rel_median", "AbsRel", 100.0, ".2f"),
    ("depth_delta_1.25_median", "d<1.25", 100.0, ".1f"),
    ("points_chamfer_umeyama", "chamfer", 1.0, ".4f"),
    ("depth_ause", "AUSE", 1.0, ".3f"),
)
_FP32: tuple[Column, ...] = (
    *_POSES,
    ("depth_abs_rel", "AbsRel", 100.0, ".3f"),
    ("depth_rmse", "RMSE", 1.0, ".4f"),
    ("points_chamfer", "chamfer", 1.0, ".5f"),
)
_CONSISTENCY: tuple[Column, ...] = (
    ("points_gap", "depth against points %", 100.0, ".2f"),
    ("reprojection_px", "round trip px", 1.0, ".2f"),
    ("reprojection_depth", "its depth %", 100.0, ".2f"),
    ("consistent_share", "consistent %", 100.0, ".1f"),
)
# part of `task`: title, columns, explanation.
_PARTS: dict[str, tuple[str, tuple[Column, ...], str]] = {
    "fp32": (
        "Against FP32's own prediction",
        _FP32,
        "Scores (below) with the FP32 model's outputs in the place of the truth, without any "
        "alignment: what quantizing changed. AUC and AbsRel in percent, angles in degrees, RMSE of "
        "the depth and chamfer of the points in the model's own unit of length.",
    ),
    "truth": (
        "Against ground truth",
        _TRUTH,
        "AUC@k: area under the curve of camera pairs whose rotation and translation direction are "
        "both right to within 1..k degrees, in percent (pairs of all scenes pooled). rot, trans: "
        "median angles in degrees. AbsRel, d<1.25: depth after median scaling, in percent. "
        "chamfer: of the points after Umeyama alignment, in scene units. AUSE: how well confidence "
        "ranks the depth errors, 0 is best. The JSON holds more scores and those of each scene.",
    ),
    "consistency": (
        "Views against each other",
        _CONSISTENCY,
        "depth against points: mean distance of the point map from the depth unprojected with the "
        "predicted cameras, over the mean distance from the first camera. round trip: a pixel goes "
        "through its depth into another view and back through that one's depth; median distance "
        "from where it began, and difference of depth; consistent: within 1 px and 1 %.",
    ),
}

# Scores whose differences from FP32 are told: score, what, factor, unit.
TOLD = (
    ("truth/auc_30", "Pose AUC@30 against ground truth", 100.0, "points"),
    ("truth/depth_abs_rel_median", "Depth AbsRel against ground truth", 100.0, "%"),
    ("fp32/auc_30", "Pose AUC@30 against FP32's own poses", 100.0, "points"),
    ("fp32/depth_abs_rel", "Depth AbsRel against FP32's own depth", 100.0, "%"),
    ("calibration/depth_laplace_nll", "Likelihood of the depth (negative logarithm)", 1.0, "nat"),
)
# Schemes in the order in which their depth error should grow, and the score that says so.
_CHAIN = (
    "INT8_Per_Channel_Symmetric",
    "INT8_Per_Tensor_Symmetric",
    "INT4_Group_32",
    "INT4_Group_64",
    "INT4_Group_128",
)
_MOST_LAYERS = 20  # in the text
_CHAIN_SCORE = "fp32/depth_abs_rel"
# The row of the noise floor to which scores against FP32 itself are held.
_FLOOR = "Baseline_FP32_Noisy_Input"


def sections(document: Document) -> Iterator[Section]:
    """Title and content of each part that the document has figures for."""
    rows = [row for row in document["schemes"] if row["status"] == "ok"]
    for part, (title, columns, words) in _PARTS.items():
        shown = [row for row in rows if row["task"][part]]
        there = [c for c in columns if any(c[0] in row["task"][part] for row in shown)]
        if there:
            yield title, [_scores(shown, part, there), words]
    if any(row["calibration"] for row in rows):
        yield "Confidence", list(_confidence(rows))
    if document["statistics"]["against_fp32"]:
        yield "Difference or chance", list(_chance(document["statistics"]))
    if document["sensitivity"]:
        yield "Which layers make the error", list(_layers(document["sensitivity"]))


def _scores(rows: Sequence[Row], part: str, columns: Sequence[Column]) -> Table:
    made = new_table(["Scheme", *(heading for _, heading, _, _ in columns)])
    for row in rows:
        scores = row["task"][part]
        made.add_row(row["name"], *(scaled(scores.get(c), k, form) for c, _, k, form in columns))
    return made


# ---- confidence ----------------------------------------------------------------------------------


def _confidence(rows: Sequence[Row]) -> Iterator[str | Table]:
    for head in dict.fromkeys(head for row in rows for head in row["calibration"]):
        there = [row for row in rows if head in row["calibration"]]
        against = there[0]["calibration"][head]["against"]
        made = new_table(
            ("Scheme", "NLL", "more", "shift", "corr.", "threshold", "kept %", "overlap %"),
            title=f"{head}: errors against {_AGAINST[against]}",
        )
        for row in there:
            own = row["calibration"][head]
            kept = own["kept_50"]
            made.add_row(
                row["name"],
                scaled(own["laplace_nll"], 1, ".3f"),
                signed(own["laplace_nll_difference"], 3),
                signed(own["log_confidence_shift"], 3),
                scaled(own["confidence_correlation"], 1, ".3f"),
                scaled(kept["threshold"], 1, ".3f"),
                scaled(kept["share_at_fp32_threshold"], 100, ".1f"),
                scaled(kept["overlap"], 100, ".1f"),
            )
        yield made
    yield (
        "NLL: negative log-likelihood (nat, less is better) of the errors, after scale alignment, "
        "under the Laplace density that VGGT's confidence states; more: than FP32's. shift: of the "
        "mean log confidence. corr.: rank correlation with FP32's confidence. threshold: keeps the "
        "half of the pixels that FP32's median keeps; kept: what FP32's threshold would keep of "
        "this scheme's; overlap: of the two halves."
    )


_AGAINST = {
    "truth": "ground truth",
    "fp32": "FP32's prediction",
    "fp32 and truth": "ground truth where known, else FP32's prediction",
}


# ---- chance --------------------------------------------------------------------------------------


def _chance(statistics: Mapping[str, Any]) -> Iterator[str | Table]:
    share = f"{100 * statistics['confidence']:g} %"
    if statistics["note"]:
        yield f"{statistics['note'].capitalize()}."
    else:
        yield (
            f"Scheme minus FP32, with the {share} interval of a paired bootstrap over "
            f"{statistics['scenes']} scenes ({statistics['resamples']} resamples, seed "
            f"{statistics['seed']}). Each interval stands for itself: of twenty comparisons "
            "without any difference, one is expected to show some."
        )
    floor = {(e["b"], e["score"]): e for e in statistics["between"] if e["a"] == _FLOOR}
    for score, what, factor, unit in TOLD:
        found = {n: s[score] for n, s in statistics["against_fp32"].items() if score in s}
        if not found:
            continue
        itself = score.startswith("fp32/")
        heading = "beside the noisy input" if itself else "reading"
        made = new_table(
            ("Scheme", "difference", f"{share} interval", heading), title=f"{what} ({unit})"
        )
        for name, entry in found.items():
            read = floor.get((name, score)) if itself else entry
            made.add_row(
                name,
                signed(factor * entry["difference"], 4),
                _ends(entry, factor),
                _judged(read, statistics["larger_is_better"][score]) if read else "-",
            )
        yield made
        if itself:
            yield (
                "No scheme can be nearer to FP32 than FP32 itself, so an interval beside 0 says "
                "little: read is the difference from FP32 on pictures with one step of noise."
            )
    yield from _chain(statistics)


def _judged(entry: Row, larger_is_better: bool) -> str:
    better = (entry["difference"] > 0) == larger_is_better
    return _reading(entry, "better" if better else "worse")


def _ends(entry: Row, factor: float) -> str:
    if entry["low"] is None:
        return "-"
    return f"{signed(factor * entry['low'], 4)} .. {signed(factor * entry['high'], 4)}"


def _reading(entry: Row, words: str) -> str:
    if entry["low"] is None:
        return "-"
    return words if entry["shown"] else "no difference shown"


def _chain(statistics: Mapping[str, Any]) -> Iterator[str | Table]:
    """Whether the depth error grows with each coarser scheme."""
    pairs = {(e["a"], e["b"]): e for e in statistics["between"] if e["score"] == _CHAIN_SCORE}
    made = new_table(
        ("Beside the line above", "difference", "interval", "reading"),
        title="Does the depth error against FP32 grow along these? (AbsRel, %)",
    )
    for a, b in zip(_CHAIN, _CHAIN[1:], strict=False):
        entry = pairs.get((a, b)) or _turned(pairs.get((b, a)))
        if entry:
            if not made.row_count:
                made.add_row(a, "", "", "")
            made.add_row(
                b,
                signed(100 * entry["difference"], 4),
                _ends(entry, 100),
                _reading(entry, "grows" if entry["difference"] > 0 else "shrinks"),
            )
    if made.row_count:
        yield made


def _turned(entry: Row | None) -> Row | None:
    """The comparison the other way round."""
    if entry is None:
        return None
    low, high = entry["low"], entry["high"]
    ends = {"low": None, "high": None} if low is None else {"low": -high, "high": -low}
    return {**entry, "difference": -entry["difference"], **ends}


# ---- layers --------------------------------------------------------------------------------------


def _layers(found: Mapping[str, Any]) -> Iterator[str | Table]:
    """The layers that alone make most of the error, and what speaks for and against the figures."""
    yield (
        f"{found['scheme']} on scene {found['scene']}, one layer at a time. The shares of all "
        f"{len(found['layers'])} layers add up to {100 * found['share_sum']:.0f} %."
    )
    if found["reason"]:
        yield f"Broke off: {found['reason']}"
    made = new_table(("Layer", "share %", "weight dB", "cosine", "output dB", "cosine"))
    for layer in found["layers"][:_MOST_LAYERS]:
        made.add_row(
            layer["name"],
            scaled(layer["share"], 100, ".2f"),
            scaled(layer["sqnr_db"], 1, ".1f"),
            scaled(layer["cosine"], 1, ".5f"),
            scaled(layer["output_sqnr_db"], 1, ".1f"),
            scaled(layer["output_cosine"], 1, ".5f"),
        )
    yield made
    more = len(found["layers"]) - _MOST_LAYERS
    yield (
        (f"{more} more layers are in the JSON. " if more > 0 else "")
        + "dB: signal to quantization noise, of the weight and of the layer's own output (on the "
        f"inputs that it had). {found['rule']}"
    )
    if found["not_reached"]:
        yield f"Not run by these inputs: {', '.join(found['not_reached'])}"


# ---- recommendation ------------------------------------------------------------------------------


def recommendation(document: Document) -> Iterator[tuple[str, str]]:
    """What to use, why, by which rule, and what is best for one thing alone: headings and words."""
    rows = {row["name"]: row for row in document["schemes"]}
    advice, best = document["recommendation"], document["best"]
    if advice["scheme"] is None:
        yield "Use", f"none. {advice['reason']}"
    else:
        yield "Use", f"{_told(rows[advice['scheme']])}."
        yield "Why", advice["reason"]
        yield from (("Poses", words) for words in poses(document))
        yield from (("But", f"{words}.") for words in advice["open"])
        yield "Front", ", ".join(advice["front"])
        yield from (("Not", f"{n}: {' and '.join(why)}.") for n, why in advice["excluded"].items())
    yield "Budget", budget(advice)
    yield "Rule", advice["rule"]
    for why in ("accuracy", "size", "speed"):
        if best[why] is not None:
            words = " ".join((f"{_told(rows[best[why]])}.", *tied(document, why)))
            yield f"Best for {why}", words
    yield "Error", best["rules"]["error"]


def budget(advice: Row) -> str:
    """The bounds that were given."""
    bounds = (f"{name} {bound:g}" for name, bound in advice["budget"].items() if bound is not None)
    return ", ".join(bounds) or "none given (--max_drop, --max_bytes, --min_speedup)"


def poses(document: Document) -> Iterator[str]:
    """What the recommended scheme makes of the poses, with its interval, in a sentence."""
    loss = document["recommendation"]["loss"]
    if loss is None:
        return
    what = {"truth": "ground truth", "fp32": "FP32's own poses"}[loss["against"]]
    ends = document["statistics"]["note"] or (
        f"{100 * document['statistics']['confidence']:g} % interval "
        f"{signed(-loss['high'], 2)} .. {signed(-loss['low'], 2)}"
    )
    yield f"{signed(-loss['points'], 2)} points of AUC@30 against {what} ({ends})."


def tied(document: Document, why: str) -> Iterator[str]:
    """What the best for one thing cannot be told from, in a sentence."""
    names = document["best"]["tied"].get(why)
    if names:
        words = {"accuracy": "No difference in error is shown from", "speed": "As fast may be"}
        all_of_them = len(names) > 1 and len(names) + 1 == len(_quantized(document))
        yield f"{words[why]} {'all others' if all_of_them else ', '.join(names)}."


def _quantized(document: Document) -> list[Row]:
    return [r for r in document["schemes"] if r["kind"] == "quantized" and r["status"] == "ok"]


def _told(row: Row) -> str:
    low, high = row["time"]["speedup_low"], row["time"]["speedup_high"]
    spread = "" if low is None else f" ({low:.2f} .. {high:.2f})"
    return (
        f"{row['name']} ({row['bytes']['model_bytes'] / 1e6:,.2f} MB, "
        f"{row['time']['speedup']:.2f}x FP32's speed{spread}, error {100 * row['error']:.3f} %)"
    )
