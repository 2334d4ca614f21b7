# SPDX-License-Identifier: Apache-2.0
"""Runs an evaluation's shards as jobs, starts lost ones again, and merges them into one report."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from .. import ops
from ..environment import cpu_model
from ..errors import UserError
from ..evaluation import evaluate as job
from ..evaluation.measure import journal
from ..evaluation.measure.plan import Settings
from ..evaluation.merge import merge
from ..evaluation.records import Scene
from ..files import writable_folder
from ..progress import Progress, silent
from .jobs import LAUNCHERS, Job, Launcher, Resources

RESTARTS = 5
"""How often a shard that was lost is started again."""
POLL_S = 0.5
CANCEL_S = 20.0
"""Seconds within which cancelled jobs have to be over."""
FOLDER = "shards"


def work(settings: Settings, folder: str) -> str:
    """One shard, in a process of its own; "" or what is wrong with the input.

    folder: the one that names and paths are relative to. A shard that was lost on another kind of
    machine begins anew, so that its times are of one.
    """
    os.chdir(folder)
    if folder not in sys.path:  # for module:function
        sys.path.insert(0, folder)
    try:
        if _is_of_another_machine(Path(settings.output_dir) / journal.NAME):
            settings = replace(settings, resume=False, restart=True)
        with silent() as progress:
            job.evaluate(settings, progress, draw=False)
    except UserError as error:
        return str(error)
    return ""


def _is_of_another_machine(path: Path) -> bool:
    """Whether a journal was begun on another CPU or with another instruction set."""
    if not journal.begun(path):
        return False
    cpu = journal.read(path)[0].environment.cpu
    return (cpu.model, cpu.isa_active) != (cpu_model(), ops.isa())


@dataclass
class Shard:
    """A part of the scenes, and its present job."""

    settings: Settings
    job: Job | None = None
    starts: int = 0
    is_done: bool = False

    @property
    def folder(self) -> Path:
        return Path(self.settings.output_dir)

    def progress(self) -> tuple[int, int]:
        """Scenes of schemes that its journal has, of how many; of 0 before it has begun."""
        path = self.folder / journal.NAME
        try:
            head, records, _ = journal.read(path)
        except UserError:
            return 0, 0  # not there yet, or being written
        total = len(head.data.scenes) * len(job.variants_of(head))
        return len(journal.kind(records, Scene)), total

    def is_complete(self) -> bool:
        """Whether everything of it was run."""
        path = self.folder / journal.NAME
        return journal.begun(path) and job.is_complete(*journal.read(path)[:2])


def run(
    settings: Settings,
    launcher: str,
    jobs: int,
    progress: Progress,
    options: Mapping[str, str] | None = None,
) -> job.Result:
    """Evaluates in `jobs` shards and writes the report of one run into settings.output_dir.

    A shard whose process or machine is lost goes on from its journal, RESTARTS times at most. When
    this is stopped, so are the jobs; what they have measured is kept for --resume.

    Raises:
        UserError: bad input, also of a shard; a shard that was lost too often.
    """
    _check(settings, launcher, jobs)
    out = Path(settings.output_dir).absolute()
    writable_folder(out)
    shards = _shards(_with_threads(settings, launcher, jobs), out, jobs)
    given = Resources(out / FOLDER / "logs", jobs, shards[0].settings.threads, options or {})
    launch = LAUNCHERS[launcher](given)
    try:
        _drive(shards, launch, progress)
    except BaseException:
        _cancel(shards)
        progress.say(f"stopped; what the shards have is kept in {out / FOLDER}: --resume goes on")
        raise
    finally:
        launch.close()
    return merge([str(shard.folder) for shard in shards], str(out))


def _check(settings: Settings, launcher: str, jobs: int) -> None:
    if launcher not in LAUNCHERS:
        raise UserError(f"unknown launcher {launcher!r}: wanted one of {', '.join(LAUNCHERS)}")
    if not 1 <= jobs <= 10_000:
        raise UserError(f"--jobs is {jobs}; wanted 1 to 10000")
    if settings.shard is not None:
        raise UserError("--shard and --launcher were both given; --launcher makes the shards")
    if settings.resume and settings.restart:
        raise UserError("--resume and --restart were both given; wanted one of them")
    if (Path(settings.output_dir) / journal.NAME).exists():
        raise UserError(f"{settings.output_dir} holds an evaluation of its own; wanted another")


def _with_threads(settings: Settings, launcher: str, jobs: int) -> Settings:
    """On one machine the jobs share its cores; on others each has what its scheduler gives it."""
    if settings.threads is not None or launcher == "slurm":
        return settings
    return replace(settings, threads=max(1, (os.cpu_count() or 1) // jobs))


def _shards(settings: Settings, out: Path, jobs: int) -> list[Shard]:
    """Those of a new evaluation, or of the one to be continued."""
    made = [
        Shard(
            replace(
                settings,
                shard=(part, jobs),
                output_dir=str(out / FOLDER / str(part)),
                resume=True,
                restart=False,
            )
        )
        for part in range(1, jobs + 1)
    ]
    if settings.resume:
        return made
    begun = [shard for shard in made if journal.begun(shard.folder / journal.NAME)]
    if begun and not settings.restart and not all(shard.is_complete() for shard in made):
        raise UserError(
            f"{out / FOLDER} holds unfinished shards: --resume goes on with them, --restart drops "
            "them, another --output_dir keeps them"
        )
    shutil.rmtree(out / FOLDER, ignore_errors=True)
    return made


def _drive(shards: Sequence[Shard], launch: Launcher, progress: Progress) -> None:
    """Until all shards are done."""
    here = os.getcwd()
    seen = [(0, 0)] * len(shards)
    for shard in shards:
        shard.job = launch.submit(work, shard.settings, here)
        shard.starts = 1
    progress.say(f"{len(shards)} shards were submitted")
    while not all(shard.is_done for shard in shards):
        time.sleep(POLL_S)
        for number, shard in enumerate(shards):
            if shard.is_done or shard.job is None:
                continue
            if shard.job.is_over():
                _settle(shard, launch, progress, here)
            done = shard.progress()
            if done != seen[number]:
                seen[number] = done
                _show(seen, progress)


def _show(seen: Sequence[tuple[int, int]], progress: Progress) -> None:
    """All shards in one line, and in one bar."""
    done, total = (sum(column) for column in zip(*seen, strict=True))
    each = "  ".join(f"{i}: {n}/{of or '?'}" for i, (n, of) in enumerate(seen, 1))
    progress.shards(done, total, each)


def _settle(shard: Shard, launch: Launcher, progress: Progress, here: str) -> None:
    """What a job that is over leaves: a shard that is done, or one to be started again."""
    assert shard.job is not None
    name = "/".join(map(str, shard.settings.shard or ()))
    said = shard.job.result()
    if said:
        raise UserError(f"shard {name}: {said}")
    if said is not None and shard.is_complete():
        shard.is_done = True
        progress.say(f"shard {name} is done")
        return
    if shard.starts > RESTARTS:
        raise UserError(
            f"shard {name} was lost {shard.starts} times; its logs are in "
            f"{shard.folder.parent / 'logs'}, and --resume goes on"
        )
    progress.say(f"shard {name} was lost; it goes on from its journal")
    shard.job = launch.submit(work, shard.settings, here)
    shard.starts += 1


def _cancel(shards: Sequence[Shard]) -> None:
    """Ends the jobs and waits for that."""
    left = [shard.job for shard in shards if shard.job is not None and not shard.is_done]
    for one in left:
        one.cancel()
    end = time.monotonic() + CANCEL_S
    while time.monotonic() < end and not all(one.is_over() for one in left):
        time.sleep(0.1)
