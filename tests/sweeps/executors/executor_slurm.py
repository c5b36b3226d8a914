"""A real Slurm of one node, from Debian's packages (slurm-wlm, munge), in a folder of its own."""

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from executor_places import until
from executor_ray import free_port
from steer_experiments import processes

CONF = """
ClusterName=steer
SlurmctldHost={host}(127.0.0.1)
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
SlurmUser=root
SlurmdUser=root
SlurmctldPort={ctld}
SlurmdPort={slurmd}
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=1,requeue_delay=0
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobRequeue=1
KillWait=5
ReturnToService=2
SlurmdParameters=config_overrides
GresTypes=gpu
NodeName={host} NodeAddr=127.0.0.1 CPUs=8 Gres=gpu:4 State=UNKNOWN
PartitionName=low Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""
GRES = "Name=gpu File=/dev/tty[1-4]\n"
TOOLS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue")


def why_not() -> str:
    """Why Slurm cannot be started here, or nothing."""
    missing = [tool for tool in TOOLS if shutil.which(tool, path=_path()) is None]
    if missing:
        return f"{', '.join(missing)} not installed (apt-get install slurm-wlm munge)"
    if find_spec("submitit") is None:
        return "submitit not installed (pip install 'steer-openrlhf[slurm]')"
    return "" if os.geteuid() == 0 else "slurmd needs root to start jobs"


def _path() -> str:
    return os.environ["PATH"] + ":/usr/sbin"


class Slurm:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.daemons: list[subprocess.Popen[bytes]] = []
        fields = {"host": socket.gethostname().split(".")[0], "folder": folder, "ctld": free_port()}
        (folder / "slurm.conf").write_text(CONF.format(slurmd=free_port(), **fields))
        (folder / "gres.conf").write_text(GRES)
        self.variables = {"SLURM_CONF": str(folder / "slurm.conf")}

    def start(self) -> None:
        (self.folder / "munge.key").write_bytes(os.urandom(128))
        (self.folder / "munge.key").chmod(0o600)
        for name in ("state", "spool"):
            (self.folder / name).mkdir()
        own = [f"--{name}={self.folder}/munge.{name}" for name in ("socket", "pid-file", "log-file", "seed-file")]
        self._daemon("munged", "--foreground", "--force", f"--key-file={self.folder}/munge.key", *own)
        until((self.folder / "munge.socket").exists)
        self._daemon("slurmctld", "-D", "-c")
        self._daemon("slurmd", "-D", "-c")
        until(self._ready)

    def _daemon(self, *command: str) -> None:
        tool = shutil.which(command[0], path=_path())
        assert tool is not None
        with (self.folder / f"{command[0]}.out").open("ab") as output:
            self.daemons.append(processes.spawn([tool, *command[1:]], output, os.environ | self.variables))

    def _ready(self) -> bool:
        for daemon in self.daemons:
            assert daemon.poll() is None, f"{daemon.args}: {self.tails()}"
        done = subprocess.run(["sinfo", "--noheader", "--format=%T"], capture_output=True, text=True,
                              env=os.environ | self.variables)  # fmt: skip
        return "idle" in done.stdout

    def tails(self) -> str:
        return "\n".join(path.read_text()[-1500:] for path in [*self.folder.glob("*.out"), *self.folder.glob("*.log")])

    def stop(self) -> None:
        subprocess.run(["scancel", "--signal=KILL", "--full", "--user=root"], env=os.environ | self.variables)
        for daemon in reversed(self.daemons):
            processes.end_child(daemon)
        processes.end(processes.users_of(self.folder), patience_s=2.0)


@contextmanager
def slurm() -> Iterator[Slurm]:
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))
    folder.chmod(0o755)  # munge's socket is for everybody
    found = Slurm(folder)
    try:
        found.start()
        yield found
    finally:
        found.stop()
        shutil.rmtree(folder, ignore_errors=True)
