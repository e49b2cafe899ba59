"""A Slurm of the tests' own: Debian's daemons, started as root below one short folder, on free ports, and stopped.

The nodes are virtual, all on this machine. There is no accounting, so `sacct` fails as on a cluster without slurmdbd.
Preempted jobs go back into the queue: the partition `high` preempts `main`.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

COMMANDS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol", "scancel")
CONFIGURATION = """\
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/builtin
SchedulerParameters=sched_interval=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=1
ReturnToService=2
SlurmdParameters=config_overrides
"""


class PrivateSlurm:
    """Start with `start`, stop with `stop`; commands run with `environment`."""

    def __init__(self, n_nodes: int, cpus_per_node: int) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))  # paths of sockets must be short
        self.folder.chmod(0o755)
        self.nodes = [f"n{number}" for number in range(1, n_nodes + 1)]
        self.cpus_per_node = cpus_per_node
        strange = ("SLURM_", "SBATCH_", "SQUEUE_", "SUBMITIT_")
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith(strange)}
        self.environment["SLURM_CONF"] = str(self.folder / "slurm.conf")

    @staticmethod
    def is_possible() -> bool:
        """Whether this machine has all that is needed."""
        return os.geteuid() == 0 and all(shutil.which(command) for command in COMMANDS)

    def start(self) -> None:
        """Start the daemons and wait until every node is idle."""
        munge = self.folder / "munge"
        munge.mkdir(mode=0o711)
        (self.folder / "state").mkdir()
        key = munge / "key"
        key.write_bytes(secrets.token_bytes(1024))
        key.chmod(0o400)
        options = {"key": "key", "pid": "munged.pid", "log": "log", "seed": "seed"}
        files = [f"--{option}-file={munge / name}" for option, name in options.items()]
        self.run("munged", f"--socket={munge / 'socket'}", *files)
        self._configure()
        self.run("slurmctld", "-c")
        for node in self.nodes:
            self.run("slurmd", "-N", node)
        wait_until(lambda: set(self.run("sinfo", "-hp", "main", "-o", "%T").split()) == {"idle"}, "idle nodes", 30)

    def _configure(self) -> None:
        host = socket.gethostname().split(".")[0]
        ports = _find_free_ports(len(self.nodes) + 1)
        lines = [CONFIGURATION.format(host=host, port=ports[0], folder=self.folder)]
        for node, port in zip(self.nodes, ports[1:], strict=True):
            lines.append(
                f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={self.cpus_per_node}"
                " RealMemory=1000 State=UNKNOWN\n"
            )
        for name, is_default, tier in (("main", "YES", 1), ("high", "NO", 10)):
            nodes = ",".join(self.nodes)
            lines.append(f"PartitionName={name} Nodes={nodes} Default={is_default} State=UP PriorityTier={tier}\n")
        (self.folder / "slurm.conf").write_text("".join(lines))

    def stop(self) -> None:
        """Cancel all jobs, then stop exactly the daemons that were started, by their pid files."""
        try:
            if (self.folder / "slurmctld.pid").exists():
                self.run("scancel", "--user=root")
                wait_until(lambda: not self.run("squeue", "-h"), "no jobs", 20)
        finally:
            for pid_file in (*self.folder.glob("slurmd-*.pid"), *self.folder.glob("*/munged.pid")):
                _stop_daemon(pid_file)
            _stop_daemon(self.folder / "slurmctld.pid")
            shutil.rmtree(self.folder, ignore_errors=True)

    def run(self, *command: str) -> str:
        """Run one of Slurm's commands and return what it prints."""
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, (command, done.stdout, done.stderr)
        return done.stdout.strip()

    def states(self) -> dict[str, str]:
        """Return the state of every job that Slurm remembers."""
        lines = self.run("squeue", "--states=all", "--array", "-h", "-o", "%i %T").splitlines()
        return dict(line.split() for line in lines)


def wait_until(holds: Callable[[], object], what: str, timeout_s: float = 60) -> None:
    """Wait for something, not for ever."""
    end = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < end, f"waited {timeout_s} s for {what}"
        time.sleep(0.1)


def _stop_daemon(pid_file: Path) -> None:
    try:
        pid = int(pid_file.read_text())
        os.kill(pid, signal.SIGTERM)
    except (OSError, ValueError):
        return
    try:
        wait_until(lambda: not _is_alive(pid), f"the end of {pid_file.name}", 10)
    except AssertionError:
        os.kill(pid, signal.SIGKILL)


def _is_alive(pid: int) -> bool:
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rsplit(")")[-1].split()[0] != "Z"
    except OSError:
        return False


def _find_free_ports(n: int) -> list[int]:
    listeners = [socket.socket() for _ in range(n)]
    try:
        for listener in listeners:
            listener.bind(("127.0.0.1", 0))
        return [listener.getsockname()[1] for listener in listeners]
    finally:
        for listener in listeners:
            listener.close()
