# SPDX-License-Identifier: Apache-2.0
"""The main job on a GPU: quantize, evaluate, load and run there. `pytest -m gpu`, or on the
pretended GPU of tests/pretended_gpu.py, as tests/test_cuda_shim.py does."""

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from toy import Toy

import vggtquant as vq
from vggtquant import devices, engines, gpu_linear, ops, selftest
from vggtquant.checkpoint import document
from vggtquant.commands.cli import main
from vggtquant.evaluation.measure import bench, forecast, isolate, plan, variants
from vggtquant.evaluation.present import text
from vggtquant.run import run
from vggtquant.selftest import compare

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available() or ops.cuda_missing() is not None,
        reason=f"no GPU to test on: {ops.cuda_missing() or 'torch sees none'}",
    ),
]

A8, FP8 = "INT8_Per_Channel_Symmetric_A8", "FP8_Per_Channel"
PRETENDED = "VGGTQUANT_PRETENDED" in os.environ


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """The forecast times a layer with few tokens: the shim is slow."""
    monkeypatch.setattr(forecast, "_PROBE_ROWS", 4)


def small() -> Toy:
    return Toy(width=16, blocks=1).eval()


def scene() -> list[tuple[torch.Tensor, None]]:
    generator = torch.Generator().manual_seed(0)
    return [(torch.rand(2, 3, 28, 28, generator=generator), None)]


def test_an_evaluation_on_the_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """End to end, with a scheme and BF16, and the report is looked at. The float
    layers wait on the CPU while a scheme is measured."""
    parked: list[tuple[str, int]] = []
    park = bench.Bench._park

    def parks(self: bench.Bench, layers: dict[str, nn.Module], where: torch.device) -> None:
        park(self, layers, where)
        assert all(p.device.type == where.type for m in layers.values() for p in m.parameters())
        if layers:
            parked.append((where.type, len(layers)))

    monkeypatch.setattr(bench.Bench, "_park", parks)
    model = small().cuda()
    schemes = ["Baseline_BF16", A8, FP8]
    report = vq.evaluate(model, scene(), schemes, tmp_path, False, runs=1, warmup=0)
    document = report.document
    rows = {row.name: row for row in document.schemes}
    assert all(row.ok for row in rows.values()), [row.reason for row in rows.values()]
    assert parked == [("cpu", 3), ("cuda", 3)] * 2  # for the passes, and back for the pairs
    assert document.settings.device == "cuda:0" and variants.OTHER_THREADS not in rows
    gpu = document.environment.gpu
    assert gpu is not None and gpu.name == torch.cuda.get_device_name()
    for row in rows.values():
        assert row.gpu_peak is not None and row.gpu_peak.reserved_bytes > 0
    assert rows["Baseline_FP32_Repeat"].outputs_equal_baseline
    assert 0 < rows[A8].error < 0.05 and rows["Baseline_BF16"].error > 0
    assert 0 < rows[FP8].error < 0.2
    (use,) = rows[FP8].proof.kernels
    assert use.kernel == "float8 x float8, cuda scaled_mm"
    kernels = {use.kernel for use in rows[A8].proof.kernels}
    assert kernels and all("cuda" in kernel for kernel in kernels)
    assert all(p.device.type == "cuda" for p in model.parameters())  # as it was

    words = text.full_report(document)
    assert f"{gpu.name}, compute capability" in words and "TF32 of FP32: products" in words
    assert "GPU peak MB" in words
    assert gpu.name in (tmp_path / "comprehensive_report.html").read_text()
    written = json.loads((tmp_path / "comprehensive_results.json").read_text())
    assert written["environment"]["gpu"]["capability"] == gpu.capability


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU")
def test_a_model_on_the_second_gpu(tmp_path: Path) -> None:
    """It is evaluated where it is, with the errors that the first GPU has."""
    seen = []
    for place in ("cuda:0", "cuda:1"):
        model = small().to(place)
        with engines.use("fused"):
            report = vq.evaluate(model, scene(), [A8, FP8], tmp_path, False, runs=1, warmup=0)
        rows = {row.name: row for row in report.document.schemes}
        assert all(row.ok for row in rows.values()), [row.reason for row in rows.values()]
        assert report.document.settings.device == place
        assert all(str(p.device) == place for p in model.parameters())
        seen.append({name: row.error for name, row in rows.items()})
    assert seen[0] == pytest.approx(seen[1], rel=0.1)


def test_where_an_evaluation_takes_place() -> None:
    on_gpu = replace(vq.CONFIGS[A8], name="On_GPU", device="cuda")
    other = replace(on_gpu, name="Other", device="cuda:0")
    settings = plan.Settings(configs=(vq.CONFIGS[A8], on_gpu))
    assert plan.chosen_device(settings) == torch.device("cuda")
    assert plan.chosen_device(replace(settings, device="cpu")) == devices.CPU
    assert plan.chosen_device(plan.Settings(), small().cuda()) == torch.device("cuda:0")
    assert plan.chosen_device(plan.Settings(), small()) == devices.CPU
    with pytest.raises(vq.UserError, match="the devices cuda, cuda:0; one is wanted: --device"):
        plan.chosen_device(replace(settings, configs=(on_gpu, other)))
    with pytest.raises(vq.UserError, match="--max_memory is that of a process on the CPU"):
        plan.chosen_device(replace(settings, max_memory=10**9))


def test_a_model_on_the_gpu_is_quantized_there_layer_by_layer() -> None:
    on_cpu, on_gpu = small(), small().cuda()
    want, _ = vq.quantize_model(on_cpu, A8)
    got, report = vq.quantize_model(on_gpu, replace(vq.CONFIGS[A8], device="cuda"))
    x = scene()[0][0]
    with torch.inference_mode(), engines.use("fused"):
        outputs, wanted = got(x.cuda()), want(x)
    assert all(
        layer.packed.device.type == "cuda" for layer in got.modules() if hasattr(layer, "packed")
    )
    assert len(report.quantized) == 3 and not report.originals
    for name, value in wanted.items():
        assert torch.allclose(outputs[name].cpu(), value, atol=1e-4), name


def test_the_quantize_command_writes_the_cpu_s_file(tmp_path: Path) -> None:
    source = tmp_path / "model.pt"
    torch.save(
        {
            "a.weight": torch.randn(64, 64),
            "b.weight": torch.randn(64, 70),
            "b.bias": torch.zeros(64),
        },
        source,
    )
    for device in ("cpu", "cuda"):
        words = ["quantize", str(source), "--out", str(tmp_path / f"{device}.safetensors")]
        words += ["--scheme", "INT4_Group_32", "--all_layers", "--device", device]
        assert main(words) == 0
    one, other = ((tmp_path / f"{device}.safetensors").read_bytes() for device in ("cpu", "cuda"))
    assert one == other
    assert document.is_checkpoint(tmp_path / "cuda.safetensors")
    assert main([*words, "--method", "rtn"]) == 2  # calibration runs on the CPU


@pytest.mark.parametrize("autocast", [False, True])
def test_a_process_of_its_own_loads_onto_the_gpu(tmp_path: Path, capsys, autocast: bool) -> None:
    np.save(tmp_path / "images.npy", scene()[0][0].numpy())
    request = isolate.Request(
        "toy:build", None, str(tmp_path / "images.npy"), autocast, 1, device="cuda"
    )
    isolate.main([isolate.msgspec.json.encode(request).decode()])
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["first_forward_s"] > 0 and found["gpu_peak"]["reserved_bytes"] > 0


def test_a_run_on_the_gpu(tmp_path: Path) -> None:
    config = replace(vq.CONFIGS[A8], device="cuda")
    done = run(
        "toy:build", "builtin", tmp_path, scheme=config, max_images=2, size=28, device="cuda"
    )
    assert done.report is not None and done.report.quantized and done.points > 0


def test_the_clock_and_the_memory_of_the_gpu() -> None:
    device = torch.device("cuda:0")
    result, seconds = devices.timed(device, lambda: torch.ones(3, device="cuda") + 1)
    assert seconds >= 0 and result.tolist() == [2.0, 2.0, 2.0]
    devices.reset_peak(device)
    devices.synchronize(device)
    assert devices.peak(device) is not None and devices.peak(devices.CPU) is None


def test_the_self_test_finds_no_fault_on_the_gpu() -> None:
    size = selftest.Product(17, 66, 40)
    found = selftest.selftest("cuda", sizes=[size], linears=[(64, 64)], tokens=[9], runs=1)
    assert not found.failed, selftest.text(found)
    assert found.speeds and all(held.gpu_peak for held in found.memory)
    last = {FP8: "scaled_mm"}
    assert all(last.get(one.scheme, "decode") in one.engines_us for one in found.speeds)
    assert {check.kernel.split()[-1] for check in found.checks if check.kernel} == {
        *gpu_linear.NAMES
    }
    tokens = [check for check in found.checks if check.what == "tokens"]
    assert {check.dtype for check in tokens} == {"float32", "bfloat16"}
    assert torch.cuda.get_device_name() in selftest.text(found)


def test_fp8_codes_that_differ_are_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    coded = gpu_linear.code_float8
    arguments = vq.CONFIGS[FP8], selftest.Product(3, 40, 8), "bfloat16", torch.device("cuda:0")

    def wrong(*given: object) -> tuple[torch.Tensor, torch.Tensor]:
        codes, scale = coded(*given)
        return codes, scale * 2

    def fails(*given: object) -> None:
        raise RuntimeError("no kernel image")

    for code, words in ((wrong, "codes or scales differ"), (fails, "RuntimeError: no kernel")):
        monkeypatch.setattr(gpu_linear, "code_float8", code)
        check = compare.compare_tokens(*arguments)
        assert not check.ok and str(check.reason).startswith(words)
