"""Losses that are drawn while a run writes its log: by a thread where somebody looks on, else not at all."""

import threading
import time

import pandas as pd
import pytest

from widgets.progress import LiveLosses

ROWS: list[dict] = [{"step": n, "mim": 1 / n, "loss": 2 / n, "lr": 1e-4, "seconds": 0.1} for n in range(1, 1001)]
ROWS[1] |= {"valid_mim": 0.5, "rank": 3.0}


@pytest.fixture
def log(monkeypatch):
    monkeypatch.setenv("MG3D_WIDGETS", "1")
    return []


def table(log: list[dict]) -> pd.DataFrame:
    return pd.DataFrame(list(log))


def test_curves_grow_while_the_main_thread_is_busy(log):
    live = LiveLosses(lambda: table(log), every=0.01)
    shown = live.widget
    with live:
        for count in (1, 3):
            log += ROWS[len(log) : count]
            until = time.monotonic() + 10
            while f"step {count}," not in live.said.value and time.monotonic() < until:
                time.sleep(0.01)
            assert live.said.value == f"step {count}, 0.10 s a step"
        log += ROWS[3:5]
    assert live.said.value == "step 5, 0.10 s a step"  # the last look comes after the training
    assert not [t for t in threading.enumerate() if t.name == "live losses"]
    assert live.widget is shown
    assert shown.children[1] is live.plot
    assert [a.text for a in live.plot.layout.annotations] == ["mim", "loss", "lr", "rank"]
    assert list(live.plot.data[0].x) == [1, 2, 3, 4, 5]
    assert (list(live.plot.data[1].x), list(live.plot.data[1].y)) == ([2], [0.5])


def test_long_lines_are_thinned_and_keep_their_ends(log):
    log += ROWS
    live = LiveLosses(lambda: table(log))
    live.update()
    x = live.plot.data[0].x
    assert len(x) == 400
    assert (x[0], x[-1]) == (1, 1000)


def test_a_log_that_cannot_be_read_does_not_stop_the_training(log):
    def broken() -> pd.DataFrame:
        raise OSError("gone")

    live = LiveLosses(broken, every=0.01)
    with live:
        pass
    assert live.said.value == "the log cannot be read: OSError"


def test_where_nobody_looks_on_there_is_a_picture_and_no_thread(log, monkeypatch, tmp_path):
    monkeypatch.setenv("MG3D_WIDGETS", "0")
    live = LiveLosses(lambda: table(log))
    assert live._repr_mimebundle_() == {"text/plain": "no step yet"}
    with live:
        log += ROWS[:3]
    assert live.plot is None
    assert list(live._repr_mimebundle_()) == ["image/png"]
    live.save(tmp_path / "losses.svg")
    assert (tmp_path / "losses.svg").exists()
