"""Folders, and writing whole or not at all."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mg3d import paths


def test_home_is_read_at_each_call(tmp_path, monkeypatch):
    monkeypatch.setenv("MG3D_HOME", str(tmp_path / "here"))
    assert paths.data() == tmp_path / "here" / "data"
    assert {p.name for p in (paths.cache(), paths.runs(), paths.weights())} == {"cache", "runs", "weights"}
    assert not (tmp_path / "here").exists()  # asking makes nothing
    monkeypatch.delenv("MG3D_HOME")
    assert paths.home() == Path.home() / "mg3d"
    monkeypatch.setenv("MG3D_HOME", "~/elsewhere")
    assert paths.home() == Path.home() / "elsewhere"


@pytest.mark.parametrize("content", [b"new", lambda file: file.write(b"new")], ids=["bytes", "writer"])
def test_write_replaces_and_leaves_nothing_beside(tmp_path, content):
    path = tmp_path / "a" / "b.bin"
    paths.write_atomic(path, b"old and longer")
    assert paths.write_atomic(path, content) == path
    assert path.read_bytes() == b"new"
    assert os.listdir(path.parent) == ["b.bin"]


@pytest.mark.parametrize("error", [RuntimeError("boom"), KeyboardInterrupt(), OSError(errno.EIO, "bad disk")])
def test_a_failed_write_keeps_the_old_file(tmp_path, error):
    path = paths.write_atomic(tmp_path / "a", b"old")

    def fail(file):
        file.write(b"half")
        raise error

    with pytest.raises(type(error)):
        paths.write_atomic(path, fail)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_full_disk_names_file_and_mend(tmp_path):
    def fill(_):
        with open("/dev/full", "wb") as full:
            full.write(b"x" * 100_000)

    with pytest.raises(OSError, match=r"volume\.npy: no space left.*MG3D_HOME") as caught:
        paths.write_atomic(tmp_path / "volume.npy", fill)
    assert caught.value.errno == errno.ENOSPC
    assert os.listdir(tmp_path) == []


def test_killed_writer_leaves_the_old_or_the_new_file(tmp_path):
    path = tmp_path / "a"
    code = (
        "import itertools, sys; from mg3d import paths\n"
        "for i in itertools.count(): paths.write_atomic(sys.argv[1], bytes([i % 256]) * 300_000)"
    )
    for wait in (0.05, 0.13, 0.21):
        process = subprocess.Popen([sys.executable, "-c", code, str(path)])
        while not path.exists():
            time.sleep(0.01)
        time.sleep(wait)
        process.send_signal(signal.SIGKILL)
        process.wait()
        content = path.read_bytes()
        assert len(content) == 300_000
        assert len(set(content)) == 1
