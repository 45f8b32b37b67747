"""A real Slurm of one node on this machine: daemons in the foreground, loopback only, private files."""

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

_PROGRAMS = ("munged", "slurmctld", "slurmd", "srun", "sbatch", "scontrol", "sinfo")
_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin"


def why_no_slurm() -> str:
    """ "" where a private Slurm can run, else the reason."""
    missing = [name for name in _PROGRAMS if shutil.which(name, path=_PATH) is None]
    if missing:
        return f"Slurm is not installed ({', '.join(missing)} missing; Debian: slurmctld slurmd slurm-client munge)"
    return "" if os.geteuid() == 0 else "a private Slurm needs root"


@contextlib.contextmanager
def running_slurm(start_timeout_s: float = 30.0, requeue_after_s: int = 120) -> Iterator[dict[str, str]]:
    """Yields the environment in which ``srun`` reaches a Slurm with one node of 4 slots; ends all daemons after.

    requeue_after_s: a job that is requeued waits so long, until what its steps were allowed with has expired.
    """
    # Not pytest's tmp_path: munged and slurmd use Unix sockets, whose names are limited to 107 bytes.
    folder = Path(tempfile.mkdtemp(prefix="intentpm-slurm-"))
    daemons: list[subprocess.Popen[bytes]] = []
    try:
        _write_config(folder, requeue_after_s)
        environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf"), "PATH": _PATH}
        for argv in _daemons(folder):
            with open(folder / f"{argv[0]}.out", "wb") as log:
                daemons.append(
                    subprocess.Popen(
                        argv, env=environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL, cwd=folder
                    )
                )
        _wait_until_idle(folder, daemons, environment, time.monotonic() + start_timeout_s)
        yield environment
    finally:
        for daemon in reversed(daemons):
            daemon.terminate()
        for daemon in reversed(daemons):
            _end(daemon)
        shutil.rmtree(folder, ignore_errors=True)


def _daemons(folder: Path) -> list[list[str]]:
    munge = ["munged", "--foreground", "--force", f"--socket={folder}/munge.socket", f"--key-file={folder}/munge.key"]
    munge += [f"--pid-file={folder}/munge.pid", f"--seed-file={folder}/munge.seed", f"--log-file={folder}/munge.log"]
    return [munge, ["slurmctld", "-D", "-c"], ["slurmd", "-D", "-N", _node()]]


def _write_config(folder: Path, requeue_after_s: int) -> None:
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o600)
    for name in ("state", "spool"):
        (folder / name).mkdir()
    controller, daemon = _free_port(), _free_port()
    (folder / "slurm.conf").write_text(
        f"""
ClusterName=intentpm
SlurmctldHost={_node()}(127.0.0.1)
SlurmctldPort={controller}
SlurmdPort={daemon}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire={requeue_after_s}
SchedulerParameters=sched_interval=2,bf_interval=2
CredType=cred/munge
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
AccountingStorageType=accounting_storage/none
SwitchType=switch/none
MpiDefault=none
SlurmdParameters=config_overrides
ReturnToService=2
InactiveLimit=0
KillWait=5
NodeName={_node()} NodeAddr=127.0.0.1 CPUs=4 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
    )


def _wait_until_idle(
    folder: Path, daemons: list[subprocess.Popen[bytes]], environment: Mapping[str, str], deadline: float
) -> None:
    while True:
        said = subprocess.run(
            ["sinfo", "-h", "-o", "%T"], env=environment, capture_output=True, text=True, timeout=20, check=False
        )
        if said.stdout.strip() == "idle":
            return
        ended = [daemon.args for daemon in daemons if daemon.poll() is not None]
        if ended or time.monotonic() >= deadline:
            logs = "\n".join(
                f"--- {log.name}\n{log.read_text(errors='replace')[-3000:]}"
                for log in sorted([*folder.glob("*.log"), *folder.glob("*.out")])
            )
            raise RuntimeError(f"Slurm did not start (ended: {ended}; sinfo: {said.stdout}{said.stderr})\n{logs}")
        time.sleep(0.2)


def _end(daemon: subprocess.Popen[bytes]) -> None:
    try:
        daemon.wait(10)
    except subprocess.TimeoutExpired:
        daemon.kill()
        daemon.wait()


def _node() -> str:
    return socket.gethostname().partition(".")[0]


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port
