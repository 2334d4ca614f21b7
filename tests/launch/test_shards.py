# SPDX-License-Identifier: Apache-2.0
"""Shards as jobs: the report of one run, lost shards that go on, nothing left after a stop."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from vggtquant import UserError, ops
from vggtquant.commands import cli
from vggtquant.environment import cpu_model
from vggtquant.evaluation import evaluate as job
from vggtquant.evaluation.measure import journal
from vggtquant.evaluation.measure.plan import Settings, configs_of
from vggtquant.launch import jobs, shards
from vggtquant.progress import silent

TESTS = Path(__file__).parents[1]
SCHEMES = configs_of(["INT8_Per_Channel_Symmetric", "INT4_Group_64"])


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """What jobs inherit: the package and toy.py."""
    root = str(TESTS.parent)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([root, str(TESTS), *filter(None, sys.path)]))
    monkeypatch.setattr(shards, "POLL_S", 0.1)


def settings(out: Path, model: str = "toy:build", scenes: int = 2) -> Settings:
    return Settings(
        model=model,
        scenes=scenes,
        max_images=2,
        runs=1,
        warmup=0,
        threads=1,
        configs=SCHEMES,
        output_dir=str(out),
    )


def without_times(folder: Path) -> Any:
    """A report but for times, memory, and where and how it was run."""
    document = json.loads((folder / "comprehensive_results.json").read_text())
    metrics = [
        {key: row.get(key) for key in ("name", "status", "error", "metrics", "bytes", "config")}
        | {"scenes": [{k: v for k, v in s.items() if "ms" not in k} for s in row["scenes"]]}
        for row in document["schemes"]
    ]
    return json.loads(json.dumps([document["data"], document["model"], metrics]))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The report of one run, of the model that jobs are slow enough with to be killed, too."""
    folder = tmp_path_factory.mktemp("whole")
    with silent() as progress, pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(TESTS))
        job.evaluate(settings(folder), progress, draw=False)
    return without_times(folder)


class Now:
    """A launcher that does the work at once, here; the first `lost` jobs are lost half way."""

    def __init__(self, lost: int = 0) -> None:
        self.lost, self.submitted = lost, 0

    def submit(self, work: Callable[..., str], *arguments: Any) -> Any:
        self.submitted += 1
        self.said: str | None = work(*arguments)
        if self.submitted <= self.lost:
            path = Path(arguments[0].output_dir) / journal.NAME
            path.write_bytes(path.read_bytes()[:-700])  # as a kill leaves it
            self.said = None
        said = self.said
        return type("Done", (), {"is_over": lambda s: True, "result": lambda s: said})()

    def close(self) -> None:
        """Nothing."""


@pytest.mark.slow  # eight evaluations; merged shards are the whole in measure/test_journal.py too
def test_shards_make_the_report_of_one_run(
    tmp_path: Path, whole: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = Now(lost=1)
    monkeypatch.setitem(jobs.LAUNCHERS, "local", lambda given: now)
    with silent() as progress:
        shards.run(settings(tmp_path), "local", 2, progress)
    assert now.submitted == 3 and without_times(tmp_path) == whole
    with pytest.raises(UserError, match="unfinished"), silent() as progress:
        path = tmp_path / "shards" / "2" / journal.NAME
        path.write_bytes(path.read_bytes()[:-700])
        shards.run(settings(tmp_path), "local", 2, progress)
    with silent() as progress:
        shards.run(replace(settings(tmp_path), resume=True), "local", 2, progress)
    assert without_times(tmp_path) == whole


def test_a_shard_on_another_kind_of_machine_is_marked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first shard is lost here, and begins anew where there are other instructions."""
    now = Now(lost=1)
    submit = now.submit

    def elsewhere(work: Callable[..., str], *arguments: Any) -> Any:
        ops.use_isa("scalar" if now.submitted and arguments[0].shard == (1, 2) else None)
        return submit(work, *arguments)

    now.submit = elsewhere  # type: ignore[method-assign]
    monkeypatch.setitem(jobs.LAUNCHERS, "local", lambda given: now)
    here = ops.isa()
    try:
        with silent() as progress:
            shards.run(settings(tmp_path), "local", 2, progress)
    finally:
        ops.use_isa(None)
    path = tmp_path / "shards" / "1" / journal.NAME
    assert journal.read(path)[0].environment.cpu.isa_active == "scalar"
    machines = [f"{cpu_model()}, scalar (shard 1)", f"{cpu_model()}, {here} (shard 2)"]
    document = json.loads((tmp_path / "comprehensive_results.json").read_text())
    assert document["environment"]["machines"] == machines
    report = " ".join((tmp_path / "comprehensive_report.txt").read_text().split())
    assert f"Times are of several machines: {'; '.join(machines)}." in report


def test_a_shard_that_is_always_lost_ends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Lost:
        def submit(self, work: Any, *arguments: Any) -> Any:
            kind = {"is_over": lambda s: True, "result": lambda s: None, "cancel": lambda s: None}
            return type("Gone", (), kind)()

        def close(self) -> None:
            """Nothing."""

    monkeypatch.setitem(jobs.LAUNCHERS, "local", lambda given: Lost())
    monkeypatch.setattr(shards, "POLL_S", 0.0)
    with pytest.raises(UserError, match="lost 6 times"), silent() as progress:
        shards.run(settings(tmp_path), "local", 2, progress)


@pytest.mark.parametrize(
    "words, said",
    [
        (["--launcher", "local", "--jobs", "0"], "--jobs is 0"),
        (["--launcher", "local", "--shard", "1/2"], "--shard and --launcher"),
        (["--launcher", "local", "--job_option", "partition"], "KEY=VALUE"),
    ],
)
def test_bad_input(words: list[str], said: str, tmp_path: Path, capsys: Any) -> None:
    assert cli.main(["evaluate", *words, "--output_dir", str(tmp_path)]) == 2
    assert said in capsys.readouterr().err


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(UserError, match=r"vggtquant\[cluster\]"), silent() as progress:
        shards.run(settings(tmp_path), "local", 2, progress)


# ---- the real ones -------------------------------------------------------------------------------


def processes_of(folder: Path) -> list[int]:
    """Processes whose command line names the folder of the logs."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            words = (entry / "cmdline").read_bytes().decode(errors="replace")
        except OSError:
            continue
        if entry.name.isdecimal() and str(folder) in words and "submitit" in words:
            found.append(int(entry.name))
    return found


def killed(pids: Callable[[], list[int]], out: Path) -> threading.Thread:
    """A thread that kills the youngest of the workers as soon as a journal has a few records."""

    def kill() -> None:
        for _ in range(3000):
            time.sleep(0.02)
            journals = out.glob(f"{shards.FOLDER}/*/{journal.NAME}")
            if any(path.read_bytes().count(b"\n") > 3 for path in journals) and pids():
                os.kill(max(pids()), signal.SIGKILL)
                return

    thread = threading.Thread(target=kill)
    thread.start()
    return thread


def needs(package: str) -> None:
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed: pip install 'vggtquant[cluster,ray]'")


@pytest.mark.slow
def test_local_processes_and_a_kill(tmp_path: Path, whole: Any, capfd: Any) -> None:
    needs("submitit")
    logs = tmp_path / shards.FOLDER / "logs"
    thread = killed(lambda: processes_of(logs), tmp_path)
    lines: list[str] = []
    with silent() as progress:
        progress.say = lines.append  # type: ignore[method-assign]
        shards.run(settings(tmp_path, "toy:slow"), "local", 2, progress)
    thread.join()
    assert any("lost" in line for line in lines), lines
    found, want = without_times(tmp_path), json.loads(json.dumps(whole))
    for one in (found, want):
        one[1] = None  # toy:slow is toy:build, with a pause
    assert found == want and processes_of(logs) == []


@pytest.mark.slow
def test_a_stop_leaves_no_process_and_a_resume_goes_on(tmp_path: Path, whole: Any) -> None:
    needs("submitit")
    logs = tmp_path / shards.FOLDER / "logs"
    words = ["evaluate", "--model", "toy:slow", "--scenes", "2", "--max_images", "2", "--runs", "1"]
    words += ["--warmup", "0", "--threads", "1", "--launcher", "local", "--jobs", "2"]
    words += ["--schemes", ",".join(c.name for c in SCHEMES), "--output_dir", str(tmp_path)]
    command = [sys.executable, "-m", "vggtquant", *words]
    started = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    for _ in range(3000):
        time.sleep(0.02)
        journals = tmp_path.glob(f"{shards.FOLDER}/*/{journal.NAME}")
        if any(path.read_bytes().count(b"\n") > 3 for path in journals):
            break
    started.send_signal(signal.SIGINT)
    said = started.communicate(timeout=100)[1]
    assert started.returncode == 130 and "--resume goes on" in said
    assert processes_of(logs) == []
    assert subprocess.run([*command, "--resume"], capture_output=True).returncode == 0
    assert without_times(tmp_path)[2] == whole[2]


@pytest.mark.slow
def test_ray_and_a_kill(tmp_path: Path, whole: Any) -> None:
    needs("ray")

    def workers() -> list[int]:
        found = []
        for entry in Path("/proc").iterdir():
            try:
                name = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if entry.name.isdecimal() and name.startswith(b"ray::work"):
                found.append(int(entry.name))
        return found

    thread = killed(workers, tmp_path)
    lines: list[str] = []
    with silent() as progress:
        progress.say = lines.append  # type: ignore[method-assign]
        shards.run(settings(tmp_path, "toy:slow"), "ray", 2, progress)
    thread.join()
    assert any("lost" in line for line in lines), lines
    assert without_times(tmp_path)[2] == whole[2]


@pytest.fixture
def slurm(tmp_path: Path) -> Iterator[None]:
    """One node of a real Slurm; skipped where it cannot be had."""
    from slurm_node import node

    with node(tmp_path / "slurm") as reason:
        if reason:
            pytest.skip(reason)
        yield


@pytest.mark.slow
def test_slurm_and_a_kill(tmp_path: Path, whole: Any, slurm: None) -> None:
    needs("submitit")
    out = tmp_path / "out"
    logs = out / shards.FOLDER / "logs"
    thread = killed(lambda: processes_of(logs), out)
    lines: list[str] = []
    with silent() as progress:
        progress.say = lines.append  # type: ignore[method-assign]
        shards.run(settings(out, "toy:slow"), "slurm", 2, progress, {"partition": "all"})
    thread.join()
    assert any("lost" in line for line in lines), lines
    assert without_times(out)[2] == whole[2]
