"""A Slurm of one node on this machine: controller, node and munge as processes of a test, all state in one folder."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NEEDED = ("slurmctld", "slurmd", "munged", "runuser", "sbatch", "srun", "squeue", "scontrol")

CONF = """
ClusterName=one
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/pgid
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=2
MailProg=/bin/true
SchedulerParameters=sched_interval=1,batch_sched_delay=0
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 RealMemory=4000 State=UNKNOWN
PartitionName=debug Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


def lacking() -> str:
    """Why no Slurm can be started here, "" when one can."""
    missing = [name for name in NEEDED if shutil.which(name) is None]
    if missing:
        return f"{', '.join(missing)} not installed (apt install slurmd slurmctld slurm-client munge)"
    return "" if os.geteuid() == 0 else "slurmd wants to be started by root"


def _ports(count: int) -> list[int]:
    """Ports that nobody listens on."""
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def _munge(folder: Path) -> None:
    """Start munge, which says who sends a message; it must not run as root, and its key must be its own."""
    for above in (folder, *folder.parents):
        if above.stat().st_mode & 0o111 != 0o111 and above != Path("/"):
            above.chmod(above.stat().st_mode | 0o111)
    home = folder / "munge"
    home.mkdir()
    (home / "key").write_bytes(os.urandom(1024))
    (home / "key").chmod(0o400)
    subprocess.run(["chown", "-R", "munge", str(home)], check=True)
    home.chmod(0o711)
    files = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
    options = [f"--{option}={home / name}" for option, name in files.items()]
    subprocess.run(["runuser", "-u", "munge", "--", "munged", "--force", *options], check=True, capture_output=True)


@contextmanager
def slurm(folder: Path) -> Iterator[Path]:
    """Start it, yield its configuration file ($SLURM_CONF), stop it. RuntimeError when its node does not come up."""
    conf = folder / "slurm.conf"
    host = socket.gethostname().split(".")[0]
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True)
    conf.write_text(CONF.format(host=host, folder=folder, ports=_ports(2)))
    environment = {**os.environ, "SLURM_CONF": str(conf)}
    try:
        _munge(folder)
        for daemon in ("slurmctld", "slurmd"):
            subprocess.run([daemon, "-f", str(conf)], check=True, env=environment, capture_output=True)
        until = time.monotonic() + 20
        state = ""
        while "idle" not in state:
            if time.monotonic() > until:
                raise RuntimeError(f"the node is {state or 'unknown'}: {(folder / 'slurmd.log').read_text()[-2000:]}")
            command = ["sinfo", "--noheader", "--format", "%T"]
            state = subprocess.run(command, env=environment, capture_output=True, text=True, check=False).stdout
            time.sleep(0.1)
        yield conf
    finally:
        for pid in (folder / "slurmd.pid", folder / "slurmctld.pid", folder / "munge" / "pid"):
            if pid.exists():
                os.kill(int(pid.read_text()), 15)
