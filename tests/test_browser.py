"""The viewers in a real browser: JupyterLab runs notebooks 02, 07 and 08, and what a user moves changes what it must.

What the browser showed lies in build/browser afterwards, to be looked at.
"""

import io
import re
import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
from browser import CHROMIUM, SWITCHES, Viewer, Visit, jupyterlab, until
from PIL import Image
from test_notebooks import FOLDER, code, read, smaller, start_up

from mg3d.recipe import SCALES, Recipe

SHOTS = Path(__file__).parents[1] / "build" / "browser"
AXIAL = 0
SLICE_MM = 12  # the read-out says where the mouse is, and then where the slices through that place lie
QUICK = {"scale": "demo", "steps": 1, "batch": 2, "text": "tiny"}
GREEN, RED, YELLOW = (0x00, 0xA6, 0x51), (0xE4, 0x00, 0x2B), (0xFF, 0xD4, 0x00)
# of the first curve; a plot that the browser has not drawn yet has none
POINTS = "plot => (plot.calcdata?.[0] ?? []).filter(p => p.x !== undefined).length"
BLUE, ORANGE, PALE = (0x56, 0xB4, 0xE9), (0xD5, 0x5E, 0x00), (0xF0, 0xE4, 0x42)  # for every colour vision

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed (Debian: apt install chromium)"),
    pytest.mark.skipif(find_spec("playwright") is None, reason="no playwright (pip install -e '.[test]')"),
    pytest.mark.timeout(3600),
]


@pytest.fixture
def visit(tmp_path, monkeypatch) -> Iterator[Visit]:
    from playwright.sync_api import sync_playwright

    rows = smaller()
    for name, row in rows.items():
        monkeypatch.setitem(SCALES, name, row)
    root, notebooks = tmp_path / "clone", tmp_path / "clone" / "notebooks"
    notebooks.mkdir(parents=True)
    shutil.copytree(FOLDER.parent / "docs", root / "docs")  # no link out of its root is followed
    start_up(tmp_path / "state" / "IPYTHONDIR", rows)
    server = jupyterlab(root, tmp_path / "state", home=tmp_path / "home")
    with server as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=SWITCHES)
        yield Visit(browser, address, notebooks)
        browser.close()


def place(visit: Visit, stem: str, **parameters) -> int:
    """A copy of a notebook with parameters, as papermill would inject them; how many code cells it has."""
    notebook = read(FOLDER / f"{stem}.ipynb")
    where = next(i for i, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", ()))
    lines = ["# Parameters", *(f"{name} = {value!r}" for name, value in parameters.items())]
    notebook.cells.insert(where + 1, nbformat.v4.new_code_cell("\n".join(lines)))
    nbformat.write(notebook, visit.notebooks / f"{stem}.ipynb")
    return len(code(notebook))


def run(visit: Visit, stem: str, **parameters) -> Viewer:
    """Run a copy of a notebook; its viewer."""
    visit.run_all(f"notebooks/{stem}.ipynb", cells=place(visit, stem, **parameters))
    return Viewer(visit)


def keep(viewer: Viewer, name: str) -> None:
    SHOTS.mkdir(parents=True, exist_ok=True)
    viewer.cell.screenshot(path=SHOTS / f"{name}.png")


def painted(viewer: Viewer, number: int) -> bool:
    """Whether a panel looks like its grey picture, and less so upside down."""
    shot = viewer.shot(number)
    image = Image.fromarray(viewer.panels()[number].grey[..., 0]).resize(shot.shape[::-1])
    grey = np.asarray(image, float).ravel()
    up, down = (np.corrcoef(grey, turned.ravel())[0, 1] for turned in (shot, shot[::-1]))
    return up > 0.8 and up > down + 0.02


def changed(before: list, after: list, kind: int) -> list[int]:
    """The panels whose grey (0) or overlaid (1) picture is another one."""
    return [i for i, (old, new) in enumerate(zip(before, after, strict=True)) if old[kind] != new[kind]]


def check_planes(viewer: Viewer, *, axial: list[int], others: list[int]) -> None:
    """What both viewers share: what is painted, sliders, clicks. `axial` and `others` are the numbers of panels."""
    viewer.click(AXIAL, x=0.45, y=0.5)
    viewer.click(others[0], x=0.45, y=0.55)  # coronal: now all planes are amid the body
    viewer.slide("opacity", key="Home")
    for number in axial + others:
        until(lambda n=number: painted(viewer, n), "the greys in their place, the head up")
    viewer.slide("opacity", times=10)

    before, at = viewer.still(), viewer.at()
    viewer.slide("axial", key="ArrowRight", times=3)
    until(lambda: changed(before, viewer.pictures(), 0) == axial, "another axial slice, and nothing else")
    until(lambda: viewer.at()[2] < at[2], "a lower slice in the read-out")  # slice 1 is that at the head
    np.testing.assert_allclose(viewer.at()[:2], at[:2], atol=SLICE_MM)

    seen = {}
    for x in (0.35, 0.65):
        before, at = viewer.still(), viewer.at()
        viewer.click(AXIAL, x=x, y=0.45)
        until(lambda b=before: set(changed(b, viewer.pictures(), 0)) >= {others[-1]}, "another sagittal slice")
        assert not set(changed(before, viewer.pictures(), 0)) & set(axial)  # the click was in this very slice
        until(lambda a=at: (viewer.at() != a).any(), "another place in the read-out")
        seen[x] = viewer.at()
    apart = seen[0.35][0] - seen[0.65][0]  # the patient's right is on the left of the picture
    assert apart == pytest.approx(0.3 * viewer.panels()[AXIAL].wide_mm, abs=SLICE_MM)
    assert seen[0.35][1] == pytest.approx(seen[0.65][1], abs=SLICE_MM)


def test_explorer_and_error_viewer_in_jupyterlab(visit):
    explorer = run(visit, "07_attention_maps", **QUICK)
    keep(explorer, "07_start")
    check_figures(explorer)
    check_planes(explorer, axial=[0, 3], others=[1, 2, 4, 5])
    check_sentences(explorer)
    check_volume(explorer)
    assert (visit.errors, visit.strangers) == ([], set())

    more = {"scale": "demo", "steps": 1, "batch": 1, "study": "covid19-20", "init": f"run:{Recipe(**QUICK).id}"}
    errors = run(visit, "08_segmentation_errors", **more)
    keep(errors, "08_start")
    assert any(re.search(r"scratch Dice .*pre-trained Dice", text) for text in errors.texts())
    check_errors(errors)
    check_planes(errors, axial=[0, 1], others=[2, 3, 4, 5])
    keep(errors, "08_clicked")
    assert (visit.errors, visit.strangers) == ([], set())


def test_losses_grow_while_training_runs_in_jupyterlab(visit):
    """The kernel is busy with the training all the while; what it has logged is seen nevertheless."""
    steps = 40
    more = {"scale": "demo", "steps": steps, "batch": 2, "text": "tiny", "variant": "no-mim"}
    cells = place(visit, "02_pretrain", **more)
    visit.start("notebooks/02_pretrain.ipynb")
    curves = visit.page.locator(".js-plotly-plot").first
    curves.wait_for(state="attached")
    said = visit.page.locator(".jp-CodeCell").filter(has=visit.page.locator(".js-plotly-plot"))
    said = said.first.locator(".widget-html-content").first
    until(lambda: curves.evaluate(POINTS), "the first points")
    seen = []

    def grown() -> bool:
        seen.append((curves.evaluate(POINTS), said.inner_text()))
        busy = visit.page.locator(".jp-Notebook-ExecutionIndicator[data-status='busy']").count()
        assert busy or seen[-1][0] >= steps, seen  # still training
        return seen[-1][0] >= steps // 2

    until(grown, "half of the curve")
    assert len({points for points, _ in seen}) > 2, seen
    assert all(re.match(r"step \d+, [\d.]+ s a step", words) for _, words in seen), seen
    visit.finish(cells=cells)
    assert said.inner_text().startswith(f"step {steps},")
    curves.scroll_into_view_if_needed()
    curves.screenshot(path=SHOTS / "02_losses.png")
    assert (visit.errors, visit.strangers) == ([], set())


def check_figures(viewer: Viewer) -> None:
    """The pictures of the notebook's own text, which lie in docs/, are there."""
    images = viewer.page.locator(".jp-MarkdownCell img")
    until(lambda: images.count() == 2, "the figures of the text")
    until(lambda: images.evaluate_all("all => all.every(i => i.naturalWidth > 300)"), "their content", seconds=60)
    images.last.scroll_into_view_if_needed()
    viewer.page.screenshot(path=SHOTS / "07_figures.png")
    viewer.cell.scroll_into_view_if_needed()


def check_sentences(viewer: Viewer) -> None:
    """A sentence brings its own map; and who looks here is asked of the place that was clicked."""
    lines = viewer.cell.locator(".widget-select select")
    texts = [text.replace("\xa0", " ").strip() for text in lines.locator("option").all_inner_texts()]
    chosen = lines.evaluate("e => e.selectedIndex")
    other = (chosen + 3) % len(texts)
    before = viewer.still()
    lines.select_option(index=other)
    until(lambda: changed(before, viewer.pictures(), 1), "another map")
    said = re.sub(r"^\d+ +", "", texts[other])
    until(lambda: said in viewer.texts(), "the sentence above the planes")
    assert not any(re.sub(r"^\d+ +", "", texts[chosen]) in text for text in viewer.texts())
    keep(viewer, "07_sentence")

    viewer.cell.get_by_text("by who looks here").click()
    until(lambda: all("×" in t for t in lines.locator("option").all_inner_texts()), "sentences by who looks here")
    orders = []
    for x, y in ((0.3, 0.4), (0.7, 0.6)):
        before = lines.locator("option").all_inner_texts()
        viewer.click(AXIAL, x=x, y=y)
        until(lambda b=before: lines.locator("option").all_inner_texts() != b, "sentences in another order")
        orders.append(lines.locator("option").all_inner_texts())
    times = [float(text.split("×")[0]) for text in orders[-1]]
    assert orders[0] != orders[1]
    assert times == sorted(times, reverse=True)
    keep(viewer, "07_who_looks_here")


def check_volume(viewer: Viewer) -> None:
    """Planes and rendering are drawn, and another sentence is another picture, its words above it."""
    page = viewer.page
    cell = page.locator(".jp-CodeCell").filter(has=page.locator("option:text-is('planes and 3-D')"))
    canvas, lines = cell.locator("canvas").first, cell.locator(".widget-select select")
    canvas.scroll_into_view_if_needed()
    until(lambda: pixels(canvas).std() > 20, "planes and rendering")
    before, number = pixels(canvas), lines.evaluate("e => e.selectedIndex")
    lines.select_option(index=(number + 3) % lines.locator("option").count())
    until(lambda: (np.abs(pixels(canvas) - before) > 20).mean() > 0.001, "another sentence's picture")
    said = lines.evaluate("e => e.options[e.selectedIndex].text").replace("\xa0", " ")
    said = re.sub(r"^ *\d+ +", "", said)
    until(lambda: said in cell.locator(".widget-html-content").all_inner_texts(), "the sentence above the planes")
    cell.screenshot(path=SHOTS / "07_volume.png")


def pixels(canvas: Any) -> np.ndarray:
    """A canvas as painted, grey."""
    return np.asarray(Image.open(io.BytesIO(canvas.screenshot())).convert("L"), float)


def check_errors(viewer: Viewer) -> None:
    """Nothing but the three colours, yellow where a lesion was missed, and another palette when it is asked for."""
    assert {c for panel in viewer.panels() for c in panel.colours()} <= {GREEN, RED, YELLOW}
    jumps = viewer.cell.locator(".widget-select select")
    texts = [text.replace("\xa0", " ") for text in jumps.locator("option").all_inner_texts()]
    place = next(i for i, text in enumerate(texts) if ": missed" in text or ": lesion" in text)
    missed, column = ": missed" in texts[place], int(texts[place].startswith("pre-trained"))
    jumps.select_option(index=place)
    wanted = f"{texts[place].split(':')[0]}: missing"
    until(lambda: not missed or any(wanted in text for text in viewer.texts()), "what was missed in the read-out")
    for panel in viewer.panels()[column::2]:
        assert panel.colours() & {GREEN, YELLOW}
    keep(viewer, "08_lesion")
    viewer.cell.locator("select").filter(has_text="for every colour vision").select_option("for every colour vision")
    until(lambda: viewer.panels()[column].colours() & {BLUE, ORANGE, PALE}, "the other palette")
    assert {c for panel in viewer.panels() for c in panel.colours()} <= {BLUE, ORANGE, PALE}
