# SPDX-License-Identifier: Apache-2.0
"""A Slurm of one node, from Debian's slurm-wlm, for as long as a test takes."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue")

CONF = """\
ClusterName=test
SlurmctldHost={host}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CryptoType=crypto/munge
SlurmUser=root
SlurmdUser=root
SlurmctldPort={port}
SlurmdPort={other}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
ReturnToService=2
NodeName={host} CPUs={cpus} State=UNKNOWN
PartitionName=all Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("", 0))
        return int(one.getsockname()[1])


@contextmanager
def node(folder: Path) -> Iterator[str]:
    """Within it, sbatch and its kin reach the node; gives "" or why there is none."""
    path = os.pathsep.join([os.environ["PATH"], "/usr/sbin", "/sbin"])
    missing = [name for name in PROGRAMS if shutil.which(name, path=path) is None]
    if missing:
        yield f"{', '.join(missing)} not installed: apt-get install slurm-wlm"
        return
    if os.geteuid() != 0:
        yield "slurmctld and slurmd want to be started by root here"
        return
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True)
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o600)
    host = socket.gethostname().partition(".")[0]
    conf = folder / "slurm.conf"
    conf.write_text(
        CONF.format(
            folder=folder,
            host=host,
            port=_free_port(),
            other=_free_port(),
            cpus=os.cpu_count() or 1,
        )
    )
    before = {name: os.environ.get(name) for name in ("SLURM_CONF", "PATH")}
    os.environ |= {"SLURM_CONF": str(conf), "PATH": path}
    munge = ["munged", "--force", "--foreground", f"--key-file={key}"]
    munge += [f"--{what}-file={folder}/munged.{what}" for what in ("log", "pid", "seed")]
    munge += [f"--socket={folder}/munge.socket"]
    started: list[subprocess.Popen[bytes]] = []
    try:
        with open(folder / "out", "wb") as out:
            for words in (munge, ["slurmctld", "-D"], ["slurmd", "-D"]):
                started.append(subprocess.Popen(words, stdout=out, stderr=out))
                time.sleep(1)
        for _ in range(60):
            said = subprocess.run(["sinfo", "-h", "-o", "%T"], capture_output=True, text=True)
            if said.stdout.strip() == "idle":
                break
            time.sleep(0.5)
        else:
            words = (folder / "out").read_text(errors="replace").splitlines()[-3:]
            yield f"Slurm's node does not come up: {said.stdout}{said.stderr} {' '.join(words)}"
            return
        yield ""
    finally:
        for process in reversed(started):
            process.terminate()
        for process in reversed(started):
            process.wait(30)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
