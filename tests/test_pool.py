"""Jobs over processes: a killed one costs its own job alone, an error names its job, nothing outlives the parent."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mg3d.data.pool import scatter


def double(job: int) -> int:
    if job == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    if job == 100:
        raise KeyError("no such thing")
    return 2 * job


def lost(job: int) -> int:
    return -job


def test_a_job_that_kills_its_process_is_given_up_and_no_other():
    assert dict(scatter(double, range(8), lost=lost, workers=2)) == {i: 2 * i if i != 3 else -3 for i in range(8)}


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_comes_here_and_names_its_job(workers):
    with pytest.raises(KeyError, match="no such thing") as caught:
        list(scatter(double, [5, 100], lost=lost, workers=workers))
    assert caught.value.__notes__ == ["while working on 100"]


def test_one_worker_is_this_process():
    assert list(scatter(lambda job: os.getpid(), [1, 2], lost=lost, workers=1)) == [(1, os.getpid()), (2, os.getpid())]
    assert list(scatter(double, [], lost=lost, workers=0)) == []


def test_a_script_without_a_guard_is_told_what_to_do(tmp_path):
    script = tmp_path / "script.py"
    script.write_text("from mg3d.data.pool import scatter\nprint(list(scatter(abs, [1, 2], lost=abs, workers=2)))")
    done = subprocess.run(
        [sys.executable, script], check=False, capture_output=True, text=True, cwd=Path(__file__).parents[1]
    )
    assert done.returncode != 0
    assert "if __name__ == '__main__'" in done.stderr


@pytest.mark.skipif(not Path("/proc").exists(), reason="no /proc")
def test_workers_end_when_the_parent_is_killed(tmp_path):
    code = (
        "import os, time; from functools import partial; from mg3d.data.pool import scatter\n"
        "from test_pool import note\n"
        f"list(scatter(partial(note, folder={str(tmp_path)!r}), range(99), lost=abs, workers=2))"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parent)
    while len(os.listdir(tmp_path)) < 2:
        assert parent.poll() is None
        time.sleep(0.05)
    parent.kill()
    parent.wait()
    until = time.time() + 20
    workers = [int(name) for name in os.listdir(tmp_path)]
    while any(alive(pid) for pid in workers):
        assert time.time() < until
        time.sleep(0.05)


def note(job: int, folder: str) -> None:
    Path(folder, str(os.getpid())).touch()
    time.sleep(0.1)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
