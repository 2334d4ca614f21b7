# SPDX-License-Identifier: Apache-2.0
"""Rows and documents made by hand, for the tests of what is made of them."""

import json
from pathlib import Path
from typing import Any

import msgspec
from msgspec import structs

import vggtquant as vq
from vggtquant.evaluation.analyse import rows
from vggtquant.evaluation.analyse.document import assemble
from vggtquant.evaluation.measure import journal, task, variants
from vggtquant.evaluation.records import Head, Planning
from vggtquant.evaluation.schema import (
    METRIC_NAMES,
    Bytes,
    Cpu,
    Data,
    Document,
    Environment,
    KernelUse,
    Kind,
    Layer,
    Metrics,
    Model,
    PoseErrors,
    Proof,
    Row,
    SceneInput,
    SceneScores,
    Settings,
    State,
    Task,
    Threads,
    Time,
)

SCHEMA_FILE = Path(__file__).parents[2] / "docs" / "report.schema.json"
SCHEMA = json.loads(SCHEMA_FILE.read_text())
FP32_BYTES = 1_000_000


def variant(name: str) -> variants.Variant:
    """The row of a named config."""
    config = vq.get_config(name)
    kinds = {"fp32": Kind.BASELINE, "bf16": Kind.REFERENCE}
    return variants.Variant(name, kinds.get(config.quant_type, Kind.QUANTIZED), config)


def row(name: str, error: float, nbytes: int, ms: float, **changes: object) -> Row:
    """A row that finished, on one scene."""
    made = rows.empty(variant(name))
    metrics = Metrics(**(dict.fromkeys(METRIC_NAMES, 0.5) | {"relative_l2": error}))
    metrics.mae = error / 3
    made.metrics = {"depth": metrics, "pose_fov": structs.replace(metrics, ssim=None)}
    made.reasons = {"pose_fov": {"ssim": "not an image"}}
    made.error = error
    made.outputs_equal_baseline = made.kind is Kind.BASELINE
    made.bytes = Bytes(
        model_bytes=nbytes,
        compression_ratio_model=FP32_BYTES / nbytes,
        quantized_layers_bytes_before=None,
        quantized_layers_bytes_after=None,
        compression_ratio_quantized_layers=None,
        bits_per_weight=None,
    )
    made.time = Time(
        forward_ms_median=ms,
        forward_ms_iqr=0.1 * ms,
        forward_ms_min=ms,
        forward_ms_max=ms,
        fp32_ms_nearby=100.0,
        speedup=100 / ms,
        speedup_low=85 / ms,
        speedup_high=115 / ms,
        pairs=0 if made.kind is Kind.BASELINE else 24,
        waited=None if made.kind is Kind.BASELINE else 0.01,
    )
    with_scenes(made, [Task(fp32={"depth_abs_rel": error}, consistency={})])
    if made.kind is Kind.QUANTIZED:
        made.proof = Proof(
            layers_swapped=3,
            layers_executed=3,
            layer_calls=3,
            layers_not_executed=[],
            layers_not_exercised=[],
            layers_with_float_weights=[],
            layers_without_kernel=[],
            kernels=[KernelUse(kernel="float x int8, scalar", layers=3, calls=3)],
            packed_bytes_touched=1000,
            scenes_equal_baseline=[],
        )
        made.layers = [Layer(name="first", skipped="the first Linear (skip_first_last)")]
    return structs.replace(made, **changes)


def with_scenes(made: Row, tasks: list[Task]) -> Row:
    """Gives a row scenes with these scores."""
    made.scenes = [
        SceneScores(
            scene=f"s{i}",
            metrics=made.metrics,
            reasons=made.reasons,
            task=one,
            pose_errors=PoseErrors(),
            calibration={},
            forward_ms_runs=[made.timed.forward_ms_median],
        )
        for i, one in enumerate(tasks)
    ]
    made.task, made.calibration = task.over_scenes(made.scenes)
    return made


def seven() -> list[Row]:
    """FP32, bfloat16 and five schemes."""
    return [
        row("Baseline_FP32", 0.0, FP32_BYTES, 100.0),
        row("Baseline_BF16", 0.002, FP32_BYTES, 60.0),
        row("INT8_Per_Tensor_Symmetric", 0.02, 300_000, 80.0),
        row("INT8_Per_Channel_Symmetric", 0.01, 310_000, 80.0),
        row("INT8_Per_Channel_Symmetric_A8", 0.012, 310_000, 40.0),
        row("INT4_Group_128", 0.08, 180_000, 90.0),
        row("INT4_Group_32", 0.06, 190_000, 95.0),
    ]


def head(names: list[str], scenes: int = 1) -> Head:
    """The head of a journal of an evaluation of two small pictures a scene."""
    return Head(
        journal=journal.VERSION,
        identity={},
        plan=Planning(amount=1, runs=3, warmup=1),
        configs=[vq.get_config(name) for name in names],
        linears=["first"],
        environment=Environment(
            utc="2026-01-02T03:04:05Z",
            argv=["vggtquant", "evaluate"],
            cpu=Cpu(
                model="A processor",
                cores_usable=2,
                flags=["avx2"],
                isa_active="avx2",
                isa_available=["scalar", "avx2"],
            ),
            machines=["A processor"],
            memory_bytes=1 << 33,
            system="Linux",
            threads=Threads(torch=2, omp_num_threads=None),
            load_average_1min=0.1,
            versions={"vggtquant": "1", "torch": "2"},
        ),
        model=Model(
            name="toy",
            source="function",
            licence="ours",
            sha256="0" * 64,
            parameters=250_000,
            parameter_bytes=FP32_BYTES,
            linear_layers=5,
            linear_subclass_layers=0,
            linear_weights=240_000,
            linear_share=0.96,
            linear_layers_not_reached=["track_head"],
            outputs={"depth": [1, 2, 28, 28, 1]},
        ),
        data=Data(
            description="pictures",
            synthetic=False,
            preprocessing="crop",
            scenes=[
                SceneInput(
                    name=f"s{i}",
                    frames=2,
                    height_px=28,
                    width_px=28,
                    ground_truth=False,
                    images_sha256={},
                )
                for i in range(scenes)
            ],
        ),
        settings=Settings(
            model="toy",
            images=["here"],
            max_images=None,
            scenes=None,
            mode="crop",
            schemes=names,
            output_dir="out",
            device="cpu",
            runs=3,
            warmup=1,
            threads=None,
            seed=0,
            layout=None,
            max_drop=None,
            max_bytes=None,
            min_speedup=None,
            shard=None,
            isolate=False,
            sensitivity=None,
        ),
        forecast=[],
    )


def document(found: list[Row], **blocks: Any) -> Document:
    """A document of rows; `blocks` replace those that follow from them."""
    names = [one.name for one in found if one.name in vq.CONFIGS]
    return assemble(head(names), found, State.COMPLETE, **blocks)


def plain(made: Document) -> dict[str, Any]:
    """A document as a reader of its file has it."""
    return json.loads(msgspec.json.encode(made))
