# SPDX-License-Identifier: Apache-2.0
"""Where a shard runs: submitit's local and Slurm executors, and Ray, behind two small protocols."""

from __future__ import annotations

import importlib
import os
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ..errors import UserError

Work = Callable[..., str]
"""What a job runs; returns "" or why its input is bad."""

HOURS = 24
"""Of a Slurm job, where no option says timeout_min; submitit's default is five minutes."""


class Job(Protocol):
    """One run of one shard."""

    def is_over(self) -> bool:
        """Whether it has ended, in whatever way."""

    def result(self) -> str | None:
        """What the work returned; None: it was killed, or its machine was lost."""

    def cancel(self) -> None:
        """Ends it."""


class Launcher(Protocol):
    """Takes jobs."""

    def submit(self, work: Work, *arguments: Any) -> Job:
        """Has the work done by a process of its own."""

    def close(self) -> None:
        """Gives back what the launcher holds, once all jobs are over."""


@dataclass(frozen=True)
class Resources:
    """What the jobs of an evaluation are given."""

    folder: Path
    """For logs."""
    jobs: int
    threads: int | None
    """CPUs of each; None: the launcher's default."""
    options: Mapping[str, str]
    """Of the scheduler: submitit's parameters without `slurm_`, or those of ray.remote."""


def _package(name: str, extra: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(f"this launcher needs {name}: pip install 'vggtquant[{extra}]'") from error


def _value(words: str) -> int | str:
    return int(words) if words.isdecimal() else words


# ---- submitit ------------------------------------------------------------------------------------


class _Submitted:
    """A job of submitit. Its own `done` asks Slurm's accounting, which many clusters lack."""

    def __init__(self, job: Any, alive: Callable[[str], bool] | None) -> None:
        self.job, self._alive = job, alive

    def is_over(self) -> bool:
        if self._alive is None:
            return bool(self.job.done())
        return self.job.paths.result_pickle.exists() or not self._alive(self.job.job_id)

    def result(self) -> str | None:
        if not self.job.paths.result_pickle.exists():
            return None
        error = self.job.exception()
        if error is not None:
            return f"a shard failed, see {self.job.paths.stderr}: {str(error).splitlines()[-1]}"
        return str(self.job.result())

    def cancel(self) -> None:
        self.job.cancel(check=False)


class _Submitit:
    def __init__(self, cluster: str, given: Resources) -> None:
        submitit = _package("submitit", "cluster")
        given.folder.mkdir(parents=True, exist_ok=True)
        self._alive = _in_queue if cluster == "slurm" else None
        executor = submitit.AutoExecutor(folder=given.folder, cluster=cluster)
        options: dict[str, Any] = {"timeout_min": HOURS * 60, "name": "vggtquant"}
        if given.threads:
            options["cpus_per_task"] = given.threads
        own = {key: _value(words) for key, words in given.options.items()}
        common = {"timeout_min", "mem_gb", "cpus_per_task", "gpus_per_node", "nodes", "name"}
        for key, value in own.items():
            options[key if key in common else f"{cluster}_{key}"] = value
        try:
            executor.update_parameters(**options)
        except (NameError, TypeError, ValueError) as error:
            raise UserError(f"--job_option: {str(error).splitlines()[0]}") from error
        self._executor = executor

    def submit(self, work: Work, *arguments: Any) -> Job:
        try:
            return _Submitted(self._executor.submit(work, *arguments), self._alive)
        except Exception as error:  # sbatch's words come in several classes
            raise UserError(f"the job was refused: {' '.join(str(error).split())}") from error

    def close(self) -> None:
        """Nothing is held."""


def _in_queue(number: str) -> bool:
    """Whether Slurm has the job, waiting or running."""
    done = subprocess.run(
        ["squeue", "--noheader", "--format=%T", "--jobs", number], capture_output=True, text=True
    )
    if done.returncode and "Invalid job id" not in done.stderr:
        return True  # the controller does not answer; it may later
    return any(state not in _ENDED for state in done.stdout.split())


_ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "OUT_OF_MEMORY")


# ---- Ray -----------------------------------------------------------------------------------------


class _Task:
    def __init__(self, ray: Any, reference: Any) -> None:
        self._ray, self._reference = ray, reference

    def is_over(self) -> bool:
        return bool(self._ray.wait([self._reference], timeout=0)[0])

    def result(self) -> str | None:
        try:
            return str(self._ray.get(self._reference))
        except self._ray.exceptions.RayTaskError as error:
            return f"a shard failed: {str(error).strip().splitlines()[-1]}"
        except self._ray.exceptions.RayError:
            return None  # the worker was killed, or its node was lost

    def cancel(self) -> None:
        self._ray.cancel(self._reference, force=True)


class _Ray:
    """The cluster of RAY_ADDRESS, or one of this machine alone for as long as this lasts."""

    def __init__(self, given: Resources) -> None:
        self._ray = _package("ray", "ray")
        cpus = given.threads or 1
        self._owned = not self._ray.is_initialized()
        if self._owned:
            here = (
                None if "RAY_ADDRESS" in os.environ else max(os.cpu_count() or 1, given.jobs * cpus)
            )
            self._ray.init(
                num_cpus=here, include_dashboard=False, log_to_driver=False, logging_level="ERROR"
            )
        own = {key: _value(words) for key, words in given.options.items()}
        self._options = {"num_cpus": cpus, "max_retries": 0, **own}

    def submit(self, work: Work, *arguments: Any) -> Job:
        try:
            task = self._ray.remote(work).options(**self._options)
        except (TypeError, ValueError) as error:
            raise UserError(f"--job_option: {str(error).splitlines()[0]}") from error
        return _Task(self._ray, task.remote(*arguments))

    def close(self) -> None:
        if self._owned:
            self._ray.shutdown()


LAUNCHERS: dict[str, Callable[[Resources], Launcher]] = {
    "local": lambda given: _Submitit("local", given),
    "slurm": lambda given: _Submitit("slurm", given),
    "ray": _Ray,
}
"""What --launcher takes."""
