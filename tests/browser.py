"""JupyterLab and a headless Chromium, driven as a user would: open a notebook, run it, use what is alive in it."""

import base64
import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import numpy as np
from PIL import Image

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
GL = ["--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist"]  # WebGL 2
OFFLINE = ["--disable-quic", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
SWITCHES = ["--no-sandbox", "--no-first-run", *OFFLINE, *GL]
PATIENCE_S = 900  # with tests on all cores; alone nothing takes a tenth of it
# anywidget gives a widget two seconds to start, plotly's 5 MB included: too few beside other tests
PATIENT = "const wait = AbortSignal.timeout.bind(AbortSignal); AbortSignal.timeout = ms => wait(Math.max(ms, 300000))"
# a busy kernel's spinner alone would be painted sixty times a second, without a graphics card
STILL = """addEventListener('DOMContentLoaded', () => { const style = document.createElement('style');
  style.textContent = '*, *::before, *::after { animation: none !important; transition: none !important }';
  document.head.append(style) })"""
TOKEN = "t"
PLACE = re.compile(r"([RL]) ([\d.]+)\s+([AP]) ([\d.]+)\s+([SI]) ([\d.]+)")
STATE = ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "JUPYTERLAB_SETTINGS_DIR",
         "JUPYTERLAB_WORKSPACES_DIR", "IPYTHONDIR")  # fmt: skip
SETTINGS = {
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},  # no question over the page
    "notebook-extension/tracker": {"windowingMode": "none"},  # cells out of sight are there, too
}
PROMPTS = "[...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')].map(e => e.textContent)"
FAULT = '[data-mime-type="application/vnd.jupyter.error"]'
PANELS = """cell => { const plot = cell.querySelector('.js-plotly-plot');
  return [...plot.querySelectorAll('.cartesianlayer .subplot')].map(e => {
    const id = e.classList[1], drag = plot.querySelector(`.nsewdrag[data-subplot="${id}"]`).getBoundingClientRect();
    const axis = plot._fullLayout[id.split('y')[0].replace('x', 'xaxis')];
    return { box: [drag.x, drag.y, drag.width, drag.height], wide: Math.abs(axis.range[1] - axis.range[0]),
      pictures: [...e.querySelectorAll('image')].map(i => i.getAttribute('href') || i.getAttribute('xlink:href')) } }) }
"""


@contextmanager
def jupyterlab(root: Path, state: Path, *, home: Path) -> Iterator[str]:
    """A server over a folder, with nothing of the user's and all of its state in `state`; its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    own = {name: str(state / name) for name in STATE}
    for name, content in SETTINGS.items():
        file = state / "JUPYTERLAB_SETTINGS_DIR" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(content))
    own |= {"MG3D_HOME": str(home), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    words = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--ServerApp.root_dir={root}"]
    words += ["--ServerApp.ip=127.0.0.1", f"--ServerApp.port={port}", f"--IdentityProvider.token={TOKEN}"]
    log = state / "server.log"
    with log.open("w") as lines:
        server = subprocess.Popen(words, env=os.environ | own, stdout=lines, stderr=lines)
        try:
            address = f"http://127.0.0.1:{port}"
            until(lambda: server.poll() is not None or _answers(f"{address}/api?token={TOKEN}"), "the server")
            assert server.poll() is None, log.read_text()[-2000:]
            yield address
        finally:
            server.terminate()
            server.wait(60)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except OSError:
        return False


def until(true: Callable[[], Any], what: str, *, seconds: float = PATIENCE_S) -> None:
    """Wait until something is true."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"waited {seconds:.0f} s in vain for {what}"
        time.sleep(0.5)


@dataclass(frozen=True)
class Panel:
    """One plane as the browser has it: pictures as RGBA [rows, columns, 4], its place on the page, its width in mm."""

    grey: np.ndarray
    over: np.ndarray
    box: tuple[float, float, float, float]  # x, y, width, height in pixels of the page
    wide_mm: float

    def colours(self) -> set[tuple[int, ...]]:
        """The opaque colours that lie over the greys."""
        return {tuple(int(c) for c in p[:3]) for p in self.over.reshape(-1, 4) if p[3]}


class Visit:
    """A page of JupyterLab. `errors` are the errors of its console, `strangers` hosts that it asked beside its own.

    `notebooks` is the folder `notebooks` of its root.
    """

    def __init__(self, browser: Any, address: str, notebooks: Path):
        self.page = browser.new_page(viewport={"width": 1500, "height": 2200})
        self.page.set_default_timeout(1000 * PATIENCE_S)
        self.page.add_init_script(PATIENT)
        self.page.add_init_script(STILL)
        # without its own wait: what JupyterLab asks next takes the place of what was answered, and would be waited for
        self.page.add_locator_handler(self.page.locator(".jp-Dialog").first, self._answer, no_wait_after=True)
        self.address, self.notebooks, self.errors, self.strangers, self.asked = address, notebooks, [], set(), []
        self.page.on("console", lambda m: self.errors.append(m.text) if m.type == "error" else None)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", self._asked)

    def _asked(self, request: Any) -> None:
        host = urlparse(request.url).hostname
        if host and host != "127.0.0.1":
            self.strangers.add(host)

    def run_all(self, name: str, *, cells: int) -> None:
        """Open a notebook, run all of its `cells` code cells, and wait until the last one is done."""
        self.start(name)
        self.finish(cells=cells)

    def start(self, name: str) -> None:
        """Open a notebook, in a workspace of its own, and have all of its cells run."""
        page = self.page
        page.goto(f"{self.address}/lab/workspaces/{Path(name).stem}/tree/{name}?token={TOKEN}")
        page.wait_for_selector(".jp-Notebook .jp-Cell")
        # the notebook's own indicator says idle before there is a kernel, too: each cell that is run then asks for one,
        # and each answer starts another and ends the one before
        page.locator("#jp-main-statusbar").get_by_text("Python 3 (ipykernel) | Idle").first.wait_for()
        page.keyboard.press("Escape")  # a menu that is still open would be closed by the click
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
        page.wait_for_function(f"{PROMPTS}.every(t => /\\[[*\\d]+\\]/.test(t))")

    def finish(self, *, cells: int) -> None:
        """Wait until the last of the code cells is done."""
        page = self.page
        page.wait_for_function(f"{PROMPTS}.some(t => t.includes('[{cells}]')) || document.querySelector('{FAULT}')")
        fault = page.locator(FAULT)
        assert not fault.count(), fault.first.inner_text()[-3000:]

    def _answer(self, dialog: Any) -> None:
        """Yes to all that JupyterLab asks over the page, such as to go on without a server that is slow to answer."""
        while dialog.is_visible():
            self.asked.append(dialog.inner_text(timeout=60_000))
            assert len(self.asked) < 10, self.asked
            dialog.locator("button.jp-mod-accept").click(timeout=60_000)
            self.page.wait_for_timeout(2000)  # the next one comes at once, if there is one


class Viewer:
    """The one viewer of planes in a notebook that has been run, in the cell that it is the output of."""

    def __init__(self, visit: Visit):
        self.page = visit.page
        self.cell = self.page.locator(".jp-CodeCell").filter(has=self.page.locator(".js-plotly-plot")).first
        self.cell.locator(".cartesianlayer image").first.wait_for(state="attached")
        self.cell.scroll_into_view_if_needed()
        until(lambda: all(len(p["pictures"]) == 2 for p in self._asked()), "two pictures in each panel")

    def _asked(self) -> list[dict[str, Any]]:
        return self.cell.evaluate(PANELS)

    def panels(self) -> list[Panel]:
        """The panels row by row."""
        return [Panel(*map(_pixels, p["pictures"]), tuple(p["box"]), p["wide"]) for p in self._asked()]

    def pictures(self) -> list[tuple[str, str]]:
        """What `panels` decodes, to be compared."""
        return [tuple(p["pictures"]) for p in self._asked()]

    def texts(self) -> list[str]:
        """All texts of the viewer above and below its planes."""
        return [text.replace("\xa0", " ") for text in self.cell.locator(".widget-html-content").all_inner_texts()]

    def still(self) -> list[tuple[str, str]]:
        """The pictures once all that was asked of the kernel is answered: it is idle, and 2 s change nothing."""
        idle = self.page.locator(".jp-Notebook-ExecutionIndicator[data-status='idle']")
        seen: list[Any] = []

        def same() -> bool:
            seen.append((self.pictures(), self.texts()))
            self.page.wait_for_timeout(2000)
            return bool(idle.count()) and seen[-1] == (self.pictures(), self.texts())

        until(same, "a viewer that has come to rest")
        return seen[-1][0]

    def at(self) -> np.ndarray:
        """Where the read-out says that the crosshair or the mouse is, RAS mm."""
        found = next(filter(None, map(PLACE.search, self.texts())))
        return np.array([float(found[i + 1]) * (1 if found[i] in "RAS" else -1) for i in (1, 3, 5)])

    def slide(self, name: str, *, key: str = "ArrowRight", times: int = 1) -> None:
        """Move a slider by its keys."""
        slider = self.cell.locator(".widget-slider").filter(has=self.page.locator(f".widget-label:text-is('{name}')"))
        for _ in range(times):
            slider.locator(".noUi-handle").press(key)

    def click(self, panel: int, *, x: float, y: float) -> None:
        """Click into a panel, at shares of its width and height from its upper left corner; return when it was heard.

        A plot keeps one message for a busy kernel: what the mouse does next would take the place of a click.
        """
        left, top, width, height = self.panels()[panel].box
        said, shown = self.texts(), self.pictures()
        self.page.mouse.move(left + x * width - 3, top + y * height - 3)  # plotly hovers over what the mouse moves in
        self.page.mouse.move(left + x * width, top + y * height)
        until(lambda: self.texts() != said, "the read-out of what is under the mouse")
        self.page.mouse.click(left + x * width, top + y * height)
        with suppress(AssertionError):  # in one of many clicks the crosshair stays in its slices
            until(lambda: self.pictures() != shown, "other slices", seconds=20)
        self.page.mouse.move(2, 2)  # the read-out follows the mouse as long as it is over a plane

    def shot(self, panel: int) -> np.ndarray:
        """Pixels of a panel as painted, grey [rows, columns]."""
        x, y, width, height = self.panels()[panel].box
        png = self.page.screenshot(clip={"x": x, "y": y, "width": width, "height": height})
        return np.asarray(Image.open(io.BytesIO(png)).convert("L"), float)


def _pixels(source: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(source.split(",")[1]))).convert("RGBA"))
