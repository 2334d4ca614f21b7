# SPDX-License-Identifier: Apache-2.0
"""Long work survives: kills, --resume, shards; and what is refused rather than mixed."""

import json
import multiprocessing
import os
import random
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from builders import head
from everywhere import by_default
from PIL import Image

import vggtquant as vq
from vggtquant.data import scenes
from vggtquant.errors import UserError
from vggtquant.evaluation import evaluate, merge, schema
from vggtquant.evaluation.measure import bench, journal, plan, timing, variants
from vggtquant.evaluation.measure.forward import Outputs
from vggtquant.evaluation.present import charts, page
from vggtquant.evaluation.records import End, Skip
from vggtquant.evaluation.schema import Document, Why
from vggtquant.progress import Progress
from vggtquant.tiny.model import TinyVGGT

INT8 = "INT8_Per_Channel_Symmetric_A8"
INT4 = "INT4_Group_32"
TIMES = {
    "environment",
    "forecast",
    "timing",
    "time",
    "prepare_s",
    "process_peak_bytes",
    "isolated",
    "forward_ms_runs",
    "forward_ms",
    "time_drift_percent",
    "speed",
}


def timeless(value: Any) -> Any:
    """A document without what a clock, a memory or another folder decided."""
    if isinstance(value, Document):
        value = msgspec.to_builtins(value)
    if isinstance(value, dict):
        return {k: timeless(v) for k, v in value.items() if k not in TIMES | {"output_dir"}}
    return [timeless(item) for item in value] if isinstance(value, list) else value


def _settings(folder: Path, **changes: object) -> plan.Settings:
    values = {"model": "toy:build", "scenes": 3, "runs": 1, "warmup": 0, "max_images": 2}
    values |= {"schemes": (INT8, INT4), "output_dir": str(folder)} | changes
    values["configs"] = plan.configs_of(values.pop("schemes"))
    return plan.Settings(**values)


def _evaluate(folder: Path, **changes: object) -> Document:
    with Progress(bars=False) as progress:
        return evaluate.evaluate(_settings(folder, **changes), progress).document


def _read(folder: Path) -> Document:
    return schema.read(folder)


@pytest.fixture(autouse=True, scope="module")
def _no_pictures() -> Iterator[None]:
    """Drawing takes most of a small run's time and is looked at elsewhere."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(charts, "png", lambda document: b"")
        patch.setattr(page, "draw", lambda document: "")
        yield


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    """`threads` of the settings stays for the rest of a process."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("straight")
    _evaluate(folder)
    return folder


@pytest.fixture
def stop_after(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Ends an evaluation when its journal has taken so many records more."""

    def install(count: int) -> None:
        real = journal.Journal.add
        left = [count]

        def add(self, record):
            if left[0] == 0:
                raise KeyboardInterrupt
            left[0] -= 1
            return real(self, record)

        monkeypatch.setattr(journal.Journal, "add", add)

    return install


# ---- the file ------------------------------------------------------------------------------------


HEAD = head(["Baseline_FP32"])


def _end(scheme: str) -> End:
    return End(scheme=scheme)


def test_records_are_there_once_they_are_added(tmp_path: Path) -> None:
    path = tmp_path / journal.NAME
    with journal.create(path, HEAD) as writing:
        writing.add(Skip(scheme="a", why=Why.SLOW, reason=f"{0.1 + 0.2}"))
        assert journal.read(path)[1] == writing.records  # not only after closing
    found, records, nbytes = journal.read(path)
    assert found == HEAD and nbytes == path.stat().st_size
    assert records == [Skip(scheme="a", why=Why.SLOW, reason=f"{0.1 + 0.2}")]


@pytest.mark.parametrize("cut", [1, 7, 20])
def test_a_torn_last_line_is_dropped(tmp_path: Path, cut: int) -> None:
    path = tmp_path / journal.NAME
    with journal.create(path, HEAD) as writing:
        writing.add(_end("a"))
        writing.add(_end("b"))
    path.write_bytes(path.read_bytes()[:-cut])
    with journal.reopen(path) as again:
        assert again.records == [_end("a")]
        again.add(_end("c"))
    assert [record.scheme for record in journal.read(path)[1]] == ["a", "c"]


@pytest.mark.parametrize(
    "line", ['{"kind"', '{"kind": "end"}', '{"kind": "x", "scheme": "a"}', "[]"]
)
def test_damage_before_the_end_is_refused(tmp_path: Path, line: str) -> None:
    path = tmp_path / journal.NAME
    whole = msgspec.json.encode(HEAD).decode()
    path.write_text(f'{whole}\n{line}\n{{"kind": "end", "scheme": "a"}}\n')
    with pytest.raises(UserError, match="line 2 is damaged"):
        journal.read(path)
    path.write_text('{"journal": 2}\n')
    with pytest.raises(UserError, match="line 1 is damaged .*missing required field"):
        journal.read(path)


@pytest.mark.parametrize("content", ['{"journal": 99}\n', "[]\n", "null\n", "\xff\n", ""])
def test_what_is_no_journal_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / journal.NAME
    path.write_text(content, encoding="latin-1")
    with pytest.raises(UserError, match="no journal of this version"):
        journal.read(path)


def test_two_processes_do_not_write_one_journal(tmp_path: Path) -> None:
    path = tmp_path / journal.NAME
    with journal.create(path, HEAD) as writing:
        writing.add(_end("a"))
        for take in (journal.reopen, lambda path: journal.create(path, HEAD)):
            with pytest.raises(UserError, match="another evaluation"):
                take(path)
        assert journal.read(path)[1] == [_end("a")]  # --restart takes nothing from it
    journal.reopen(path).close()
    journal.create(path, HEAD).close()
    assert journal.read(path)[1] == []


def test_a_full_disk_is_told(tmp_path: Path, monkeypatch) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with journal.create(tmp_path / journal.NAME, HEAD) as writing:
        monkeypatch.setattr(os, "write", full)
        with pytest.raises(UserError, match="No space left"):
            writing.add(_end("a"))


# ---- resume --------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", by_default([0, 1, 3, 6, 17, 18, 20], 3, 18))
def test_a_stopped_run_goes_on_to_the_same_figures(
    tmp_path: Path, straight: Path, stop_after, monkeypatch, count: int
) -> None:
    with monkeypatch.context(), pytest.raises(evaluate.Interrupted):
        stop_after(count)
        _evaluate(tmp_path)
    monkeypatch.undo()
    kept = (tmp_path / journal.NAME).read_text()
    assert len(kept.splitlines()) == 1 + count
    document = _evaluate(tmp_path, resume=True)
    assert (tmp_path / journal.NAME).read_text().startswith(kept)
    assert timeless(document) == timeless(_read(straight))


def test_resume_without_a_journal_begins(tmp_path: Path, straight: Path) -> None:
    assert timeless(_evaluate(tmp_path, resume=True)) == timeless(_read(straight))


def test_resume_of_a_finished_run_measures_nothing(
    tmp_path: Path, straight: Path, monkeypatch
) -> None:
    (tmp_path / journal.NAME).write_bytes((straight / journal.NAME).read_bytes())
    monkeypatch.setattr(bench, "measure", lambda *_, **__: pytest.fail("measured again"))
    document = _evaluate(tmp_path, resume=True, max_bytes=1)
    assert document.schemes == _read(straight).schemes
    assert document.recommendation.budget.max_bytes == 1


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seed": 1}, "seed is 0 there and 1 here"),
        ({"runs": 2}, "runs is 1 there and 2 here"),
        ({"schemes": (INT8,)}, f"schemes is {INT8} {INT4} there and {INT8} here"),
        ({"scenes": None}, "scenes is 3 there and the default here"),
        ({"model": "toy:slow"}, "model is toy:build there and toy:slow here"),
        ({"shard": (1, 3)}, "shard is the default there and 1/3 here"),
    ],
)
def test_a_journal_of_other_settings_is_refused(
    tmp_path: Path, straight: Path, changes: dict, said: str
) -> None:
    before = (straight / journal.NAME).read_bytes()
    (tmp_path / journal.NAME).write_bytes(before)
    with pytest.raises(UserError, match="--resume cannot go on") as caught:
        _evaluate(tmp_path, resume=True, **changes)
    assert said in str(caught.value) and "\n" not in str(caught.value)
    assert (tmp_path / journal.NAME).read_bytes() == before


@pytest.mark.parametrize("what", ["weights", "threads", "version"])
def test_other_circumstances_are_refused(
    tmp_path: Path, straight: Path, monkeypatch, what: str
) -> None:
    (tmp_path / journal.NAME).write_bytes((straight / journal.NAME).read_bytes())
    if what == "weights":
        import toy

        monkeypatch.setattr(toy, "build", lambda: toy.Toy(width=64).eval())
    if what == "version":
        monkeypatch.setattr(evaluate, "VERSION", "99.0")
    threads = {"threads": 5} if what == "threads" else {}
    named = {"weights": "model_sha256", "version": "vggtquant is"}.get(what, what)
    with pytest.raises(UserError, match=named):
        _evaluate(tmp_path, resume=True, **threads)


def test_other_pictures_are_refused(tmp_path: Path, monkeypatch, stop_after) -> None:
    pictures = tmp_path / "room"
    pictures.mkdir()
    for i in range(2):
        Image.new("RGB", (28, 28), (40 * i, 100, 200)).save(pictures / f"{i}.png")
    changes = {"images": (str(pictures),), "scenes": None}
    with pytest.raises(evaluate.Interrupted):
        stop_after(5)
        _evaluate(tmp_path, **changes)
    monkeypatch.undo()
    Image.new("RGB", (28, 28), (1, 2, 3)).save(pictures / "1.png")
    with pytest.raises(UserError, match="the pictures of scene room are others"):
        _evaluate(tmp_path, resume=True, **changes)


def test_other_bits_of_fp32_are_refused(tmp_path: Path, straight: Path) -> None:
    lines = (straight / journal.NAME).read_text().splitlines()
    kept = [line for line in lines if json.loads(line).get("scheme") in (None, "Baseline_FP32")]
    scene = next(i for i, line in enumerate(kept) if '"sha256":"' in line and i)
    record = json.loads(kept[scene]) | {"sha256": "0" * 64}
    kept[scene] = json.dumps(record)
    (tmp_path / journal.NAME).write_text("\n".join(kept) + "\n")
    with pytest.raises(UserError, match=f"FP32's outputs on {record['scene']} are other bits"):
        _evaluate(tmp_path, resume=True)


def test_an_unfinished_run_is_not_lost_by_accident(tmp_path: Path, monkeypatch, stop_after) -> None:
    with pytest.raises(evaluate.Interrupted):
        stop_after(12)
        _evaluate(tmp_path)
    monkeypatch.undo()
    before = (tmp_path / journal.NAME).read_bytes()
    with pytest.raises(UserError, match=r"unfinished evaluation \(2 of 6 rows\): --resume goes on"):
        _evaluate(tmp_path)
    assert (tmp_path / journal.NAME).read_bytes() == before
    assert _evaluate(tmp_path, restart=True).status == "complete"
    assert _evaluate(tmp_path, seed=1).status == "complete"  # what was finished is replaced


def test_what_broke_off_is_tried_again(tmp_path: Path, straight: Path, monkeypatch) -> None:
    real = variants.quantize_model

    def unlucky(model, config, **options):
        if config.name == INT8:
            raise MemoryError("no room")
        return real(model, config, **options)

    monkeypatch.setattr(variants, "quantize_model", unlucky)
    failed = _evaluate(tmp_path)
    assert [row.status for row in failed.schemes] == ["ok"] * 4 + ["failed", "ok"]
    assert failed.schemes[4].reason == "MemoryError: no room"
    assert timeless(_evaluate(tmp_path, resume=True)) == timeless(failed)  # and fails again
    monkeypatch.undo()
    assert timeless(_evaluate(tmp_path, resume=True)) == timeless(_read(straight))


# ---- shards --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The folders of 1/3, 2/3 and 3/3 of seven scenes."""
    folders = [tmp_path_factory.mktemp(f"shard{part}") for part in (1, 2, 3)]
    for part, folder in enumerate(folders, 1):
        _evaluate(folder, shard=(part, 3), scenes=7)
    return folders


def _merge(folders: list[Path], out: Path) -> Document:
    return merge.merge([str(folder) for folder in folders], str(out)).document


def test_merged_shards_are_the_whole(tmp_path: Path, shards: list[Path]) -> None:
    whole = _evaluate(tmp_path / "whole", scenes=7)
    counts = [len(_read(folder).data.scenes) for folder in shards]
    assert counts == [2, 2, 3]
    for order in ([0, 1, 2], [2, 0, 1]):
        out = tmp_path / f"out{order[0]}"
        merged = _merge([shards[i] for i in order], out)
        assert timeless(merged) == timeless(whole) == timeless(_read(out))
        assert merged.statistics.note is None  # seven scenes make intervals
        assert (out / schema.PAGE_NAME).exists()


@pytest.mark.slow  # three evaluations; what is compared is in test_unlike_shards_are_named too
def test_shards_under_other_mount_points(tmp_path: Path) -> None:
    """What a folder and a weights file are called on a machine is no part of the evaluation."""
    scenes.write_dataset(tmp_path / "here", 2, 2, size=28)
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    scenes.write_dataset(tmp_path / "other", 2, 2, seed=1, size=28)
    size = {"dim": 64, "heads": 2, "depth": 2}
    weights = TinyVGGT(**size).state_dict()
    for machine in ("mine", "yours"):
        (tmp_path / machine).mkdir()
        torch.save(weights, tmp_path / machine / "a.pt")
        (tmp_path / machine / "config.json").write_text(json.dumps(size))
    for part, place, machine in ((1, "here", "mine"), (2, "there", "yours"), (2, "other", "mine")):
        _evaluate(
            tmp_path / f"out-{place}",
            shard=(part, 2),
            scenes=2,
            images=(str(tmp_path / place),),
            model=str(tmp_path / machine / "a.pt"),
            schemes=(INT4,),
        )
    made = _merge([tmp_path / "out-here", tmp_path / "out-there"], tmp_path / "out")
    assert len(made.data.scenes) == 2
    with pytest.raises(UserError, match="unlike: names_sha256"):
        _merge([tmp_path / "out-here", tmp_path / "out-other"], tmp_path / "none")


def test_missing_and_doubled_shards_are_named(tmp_path: Path, shards: list[Path]) -> None:
    with pytest.raises(UserError, match="missing: shard 2/3"):
        _merge([shards[0], shards[2]], tmp_path)
    with pytest.raises(UserError, match="shard 1/3 is given twice"):
        _merge([shards[0], shards[1], shards[2], shards[0]], tmp_path)
    with pytest.raises(UserError, match="none is no journal|cannot read .*none"):
        _merge([shards[0], tmp_path / "none"], tmp_path)


def test_unlike_shards_are_named(tmp_path: Path, shards: list[Path]) -> None:
    _evaluate(tmp_path / "other", shard=(3, 3), scenes=7, seed=5)
    with pytest.raises(UserError, match="unlike: seed is 0 there and 5 here"):
        _merge([shards[0], shards[1], tmp_path / "other"], tmp_path / "out")
    _evaluate(tmp_path / "four", shard=(3, 4), scenes=7)
    with pytest.raises(UserError, match="unlike: shard is 3 shards there and 4 shards here"):
        _merge([shards[0], shards[1], tmp_path / "four"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_unfinished_shard_is_named(
    tmp_path: Path, shards: list[Path], stop_after, monkeypatch
) -> None:
    with pytest.raises(evaluate.Interrupted):
        stop_after(9)
        _evaluate(tmp_path / "cut", shard=(2, 3), scenes=7)
    monkeypatch.undo()
    with pytest.raises(UserError, match="shard 2/3 in .*cut is unfinished"):
        _merge([shards[0], tmp_path / "cut", shards[2]], tmp_path / "out")


def test_whole_runs_are_no_shards(tmp_path: Path, shards: list[Path], straight: Path) -> None:
    with pytest.raises(UserError, match="holds a whole evaluation"):
        _merge([straight], tmp_path)
    with pytest.raises(UserError, match="holds an evaluation of its own"):
        _merge(shards, straight)


@pytest.mark.parametrize("shard", [(0, 3), (4, 3), (1, 0)])
def test_shards_out_of_range(tmp_path: Path, shard: tuple[int, int]) -> None:
    with pytest.raises(UserError, match=f"--shard is {shard[0]}/{shard[1]}"):
        _evaluate(tmp_path, shard=shard)


def test_more_shards_than_scenes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--shard is 1/4; there are only 3 scenes"):
        _evaluate(tmp_path, shard=(1, 4))


# ---- kill -9 -------------------------------------------------------------------------------------

KILLS = 20


class _Telling(Progress):
    """Says when the run begins."""

    def __init__(self, begun: Any) -> None:
        super().__init__(bars=False)
        self.begun = begun

    def start(self, forwards: int) -> None:
        self.begun.set()


def _process(folder: Path, begun: Any) -> None:
    # On a busy machine two threads wait for each other longer than all else takes.
    variants.other_threads = lambda threads: threads
    timing.PAIRS, timing.ROUNDS = 2, 1
    settings = _settings(folder, model="builtin:tiny", resume=True, threads=1)
    with _Telling(begun) as progress:
        evaluate.evaluate(settings, progress)


def _run(context: Any, folder: Path, moment: float | None) -> tuple[int, float]:
    """Runs or goes on with an evaluation, killed so long after it began; exit code and seconds."""
    begun = context.Event()
    process = context.Process(target=_process, args=(folder, begun))
    process.start()
    assert begun.wait(300)
    start = time.monotonic()
    process.join(moment)
    if process.is_alive():
        process.kill()
        process.join()
    return process.exitcode, time.monotonic() - start


@pytest.mark.slow
def test_killed_at_any_moment_it_goes_on_to_the_same_figures(tmp_path: Path) -> None:
    # A server that has imported everything forks the processes, so that starting one is quick.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["vggtquant.evaluation.evaluate", "matplotlib.pyplot", __name__])
    code, seconds = _run(context, tmp_path / "straight", None)
    assert code == 0
    shares = [random.Random(7 + i).random() for i in range(KILLS)]
    killed, sizes = 0, set()
    for share in shares:
        # A process that goes on has to warm up and to compute FP32 again: together, several runs.
        moment = 4 * seconds * share / sum(shares)
        code, _ = _run(context, tmp_path / "killed", moment)
        assert code in (0, -9)
        killed += code == -9
        sizes.add(len(journal.read(tmp_path / "killed" / journal.NAME)[1]))
    assert killed >= KILLS // 2 and len(sizes) >= 5  # at various places
    code, _ = _run(context, tmp_path / "killed", None)
    assert code == 0
    assert timeless(_read(tmp_path / "killed")) == timeless(_read(tmp_path / "straight"))
    assert _read(tmp_path / "killed").status == "complete"


# ---- sabotage of the harness ---------------------------------------------------------------------


def test_layers_swapped_after_the_run_are_caught(tmp_path: Path, monkeypatch) -> None:
    """Reports layers as swapped, lets FP32 run, and swaps them once that is over."""
    real, real_measure = variants.quantize_model, bench.measure
    due: list[Callable[[], None]] = []

    def late(model, config, **options):
        copies = dict(model.named_modules())
        model, result = real(model, config, **options)
        packed = {layer.name: model.get_submodule(layer.name) for layer in result.quantized}
        vq.restore_model(model, result)
        assert all(model.get_submodule(name) is copies[name] for name in packed)

        def swap() -> None:
            for name, layer in packed.items():
                parent, _, child = name.rpartition(".")
                setattr(model.get_submodule(parent), child, layer)

        due.append(swap)
        return model, result

    def measured(*args, **options):
        found = real_measure(*args, **options)
        while due:
            due.pop()()
        return found

    monkeypatch.setattr(variants, "quantize_model", late)
    monkeypatch.setattr(bench, "measure", measured)
    row = _evaluate(tmp_path, schemes=(INT8,)).schemes[-1]
    assert row.status == "failed" and row.why is Why.FLOAT_WEIGHTS
    assert "swapped layers hold float weights, or are not in the model" in row.reason


def test_a_scene_left_out_is_caught_by_its_name(tmp_path: Path, monkeypatch) -> None:
    real = bench.Bench.records

    def lacking(self, variant, todo, **options):
        left = [s for s in todo if variant.name != INT8 or s is not todo[1]]
        return real(self, variant, left, **options)

    monkeypatch.setattr(bench.Bench, "records", lacking)
    document = _evaluate(tmp_path)
    rows = {row.name: row for row in document.schemes}
    scene = document.data.scenes[1].name
    assert rows[INT8].status == "failed" and rows[INT8].metrics == {}
    assert rows[INT8].reason == f"there are no results of scene {scene}"
    assert rows[INT4].status == "ok" and document.status == "with failures"


@pytest.mark.parametrize("cheated", [{0}, {1}, {0, 1, 2}])
def test_the_baseline_twice_is_caught(tmp_path: Path, monkeypatch, cheated: set[int]) -> None:
    """A harness that keeps the packed model aside and scores the float one, if on one scene."""
    real = bench.measure

    def float_again(model, images, passes, *, watched, **options):
        found = real(model, images, passes, watched=watched, **options)
        if any(isinstance(layer, vq.QuantizedLinear) for layer in watched.values()):
            if list(baseline).index(images.data_ptr()) in cheated:
                found.outputs = baseline[images.data_ptr()]
        else:
            baseline.setdefault(images.data_ptr(), found.outputs)
        return found

    baseline: dict[int, Outputs] = {}
    monkeypatch.setattr(bench, "measure", float_again)
    document = _evaluate(tmp_path, schemes=(INT8,))
    row = document.schemes[-1]
    scenes = [document.data.scenes[i].name for i in sorted(cheated)]
    assert row.status == "failed" and row.proof.scenes_equal_baseline == scenes
    assert f"outputs on {', '.join(scenes)} equal the baseline's bit for bit" in row.reason


def test_layers_that_one_scene_goes_round_are_caught(tmp_path: Path, monkeypatch) -> None:
    """A packed layer that is set aside on the last scene alone."""
    real = bench.Bench._scene

    def round_it(self, variant, sample, passes, subject):
        if variant.name == INT8 and sample is self.samples[-1]:
            first = next(iter(subject.watched))
            *parent, child = first.split(".")
            at = self.model.get_submodule(".".join(parent))
            packed = getattr(at, child)
            at.register_forward_pre_hook(lambda *_: setattr(at, child, self.linears[first]))
            at.register_forward_hook(lambda *_: setattr(at, child, packed))
        return real(self, variant, sample, passes, subject)

    monkeypatch.setattr(bench.Bench, "_scene", round_it)
    row = _evaluate(tmp_path, schemes=(INT8,)).schemes[-1]
    assert row.status == "failed" and len(row.proof.layers_not_executed) == 1
    assert "1 swapped layers did not run on a scene although the baseline's did" in row.reason


def test_a_product_that_no_kernel_made_is_caught(tmp_path: Path, monkeypatch) -> None:
    """Layers that hold packed weights and multiply by floats all the same."""

    def simulated(self, x):
        return (x @ self.weight.T + self.bias).detach()

    monkeypatch.setattr(vq.QuantizedLinear, "forward", simulated)
    row = _evaluate(tmp_path, schemes=(INT8,), scenes=1).schemes[-1]
    assert row.status == "failed" and row.why is Why.NO_KERNEL
    assert "6 layers ran without a packed kernel" in row.reason


def test_noise_that_changes_nothing_is_caught(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(variants, "with_noise", lambda images, scene: images)
    rows = {row.name: row for row in _evaluate(tmp_path, schemes=(INT8,), scenes=1).schemes}
    assert rows[variants.NOISY_INPUT].status == "failed"
    assert "the noise changed nothing" in rows[variants.NOISY_INPUT].reason
