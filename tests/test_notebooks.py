"""The notebooks are clean and run; the runner checks parameters, survives failures and writes pages without network."""

import ast
import atexit
import io
import json
import re
import sys
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path

import nbformat
import pytest

from mg3d import batch, html
from mg3d.parameters import check, parameters_of
from mg3d.recipe import SCALES, Plan, Recipe, Scale
from mg3d.transfer import STUDIES, Transfer

FOLDER = Path(__file__).parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
BY_NAME = pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda f: f.stem)


def read(file: Path):
    return nbformat.read(file, as_version=4)


def code(notebook) -> list:
    return [c for c in notebook.cells if c.cell_type == "code"]


# hygiene -----------------------------------------------------------------------------------------------------------


def starts_with_a_title(file, notebook):
    return notebook.cells[0].cell_type == "markdown" and re.match(r"# \S", notebook.cells[0].source)


def has_one_parameters_cell_first(file, notebook):
    tagged = ["parameters" in c.metadata.get("tags", ()) for c in code(notebook)]
    return tagged == [True] + [False] * (len(tagged) - 1)


def plan_of(notebook) -> type[Plan]:
    """Whose fields the parameters are: those of the plan that the second code cell makes."""
    (kind,) = [p for p in (Recipe, Transfer) if f"{p.__name__}.from_notebook" in code(notebook)[1].source]
    return kind


def parameters_are_explained_fields_of_the_plan(file, notebook):
    """With the plan's defaults; the study is the notebook's own choice."""
    first, *lines = code(notebook)[0].source.splitlines()
    known = {f.name: (f.type.__name__, f.default) for f in fields(plan_of(notebook))}
    for line in lines:
        node = ast.parse(line).body[0]
        kind, default = known[node.target.id]
        value = ast.literal_eval(node.value)
        same = node.annotation.id == kind and (value == default or (node.target.id == "study" and value in STUDIES))
        if not same or "  # " not in line:
            return False
    return first == "# Parameters" and bool(lines)


def shows_its_parameters_to_papermill(file, notebook):
    from papermill.inspection import inspect_notebook

    told = inspect_notebook(str(file))
    return list(told) == list(parameters_of(file)) and all(p["help"] for p in told.values())


def brings_the_plan_in_the_second_code_cell(file, notebook):
    name = plan_of(notebook).__name__
    return f"{name.lower()} = {name}.from_notebook(globals())" in code(notebook)[1].source


def is_thin(file, notebook):
    return len(code(notebook)) <= 10 and all(len(c.source.splitlines()) <= 10 for c in code(notebook))


def defines_nothing(file, notebook):
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return not any(isinstance(node, kinds) for c in code(notebook) for node in ast.walk(ast.parse(c.source)))


def has_no_outputs(file, notebook):
    return all(not c.outputs and c.execution_count is None for c in code(notebook))


def has_no_traces_of_a_run(file, notebook):
    traces = {"papermill", "widgets", "mg3d"} & notebook.metadata.keys()
    return not traces and all(set(c.metadata) <= {"tags"} for c in notebook.cells)


def names_the_kernel_python3(file, notebook):
    return notebook.metadata.kernelspec.name == "python3"


def keeps_distinct_ids(file, notebook):
    ids = [c.id for c in notebook.cells]
    return len(set(ids)) == len(ids)


def is_small(file, notebook):
    return file.stat().st_size < 100_000


def names_no_place_of_one_machine(file, notebook):
    return not re.search(r"/(home|Users|root|work|tmp)/|[A-Z]:\\\\", file.read_text())


def imports_what_a_notebook_may(file, notebook):
    names = set()
    for cell in code(notebook):
        for node in ast.walk(ast.parse(cell.source)):
            if isinstance(node, ast.Import):
                names |= {a.name.split(".")[0] for a in node.names}
            elif isinstance(node, ast.ImportFrom):
                names.add(node.module.split(".")[0])
    return names <= {"mg3d", "widgets", "numpy", "pandas"}


def explains_more_than_it_computes(file, notebook):
    prose = sum(len(c.source) for c in notebook.cells if c.cell_type == "markdown")
    return prose > sum(len(c.source) for c in code(notebook))


def has_formulas_that_a_page_can_show(file, notebook):
    texts = [c.source for c in notebook.cells if c.cell_type == "markdown"]
    found = [m for text in texts for m in html.FORMULA.finditer(text) if not m["code"]]
    return all(html.formula(m["display"] or m["inline"]).startswith("<img") for m in found)


def shows_pictures_that_are_there(file, notebook):
    """Beside the notebook's own folder, whichever the file's is: in the repository."""
    shown = [f for c in notebook.cells if c.cell_type == "markdown" for f in re.findall(r"!\[.*?\]\((.+?)\)", c.source)]
    return all((FOLDER / name).is_file() for name in shown)


RULES = (
    starts_with_a_title,
    has_one_parameters_cell_first,
    parameters_are_explained_fields_of_the_plan,
    shows_its_parameters_to_papermill,
    brings_the_plan_in_the_second_code_cell,
    is_thin,
    defines_nothing,
    has_no_outputs,
    has_no_traces_of_a_run,
    names_the_kernel_python3,
    keeps_distinct_ids,
    is_small,
    names_no_place_of_one_machine,
    imports_what_a_notebook_may,
    explains_more_than_it_computes,
    has_formulas_that_a_page_can_show,
    shows_pictures_that_are_there,
)


@BY_NAME
@pytest.mark.parametrize("rule", RULES, ids=lambda r: r.__name__)
def test_a_notebook(file, rule):
    notebook = read(file)
    nbformat.validate(notebook)
    assert rule(file, notebook), f"{file.name}: {rule.__name__} does not hold"


def test_the_rules_find_what_they_forbid(tmp_path):
    """A notebook that breaks every rule."""
    cells = [
        nbformat.v4.new_code_cell(
            "def f(): pass\nimport os\n'/home/me'" + "\n" * 9, outputs=[nbformat.v4.new_output("stream", text="x")]
        ),
        nbformat.v4.new_code_cell("seeed: int = 1", metadata={"papermill": {}}),
        nbformat.v4.new_markdown_cell(r"$\nosuch{x}$"),
        nbformat.v4.new_markdown_cell("# late\n![what](../docs/nowhere.png)"),
    ]
    bad = nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": {"name": "mine", "display_name": "mine"}})
    bad.cells[2].id = bad.cells[3].id
    file = tmp_path / "bad.ipynb"
    file.write_text(json.dumps(bad) + " " * 100_000)
    for rule in RULES:
        try:
            held = rule(file, bad)
        except (ValueError, KeyError, AttributeError, Warning):
            held = False
        assert not held, f"{rule.__name__} lets everything pass"


# running -----------------------------------------------------------------------------------------------------------


@contextmanager
def shell(tmp_path: Path):
    """A fresh IPython without a kernel, history file or profile of the user."""
    from IPython.core.interactiveshell import InteractiveShell
    from traitlets.config import Config

    config = Config()
    config.HistoryManager.enabled = False
    config.InteractiveShell.colors = "nocolor"
    before = sys.modules["__main__"]
    made = InteractiveShell(config=config, ipython_dir=str(tmp_path / "ipython"))
    try:
        yield made
    finally:
        sys.modules["__main__"] = before
        made.atexit_operations()
        atexit.unregister(made.atexit_operations)


def execute(file: Path, tmp_path: Path, **parameters) -> list:
    """Run the cells as papermill would, parameters injected after the parameters cell; the values of the cells."""
    sources = [c.source for c in code(read(file))]
    sources.insert(1, "# Parameters\n" + "\n".join(f"{k} = {v!r}" for k, v in parameters.items()))
    values = []
    with shell(tmp_path) as ipython:
        for source in sources:
            done = ipython.run_cell(source, store_history=True)
            done.raise_error()
            values.append(done.result)
    return values


QUICK = {"scale": "demo", "steps": 2, "batch": 4, "text": "tiny"}  # the same for all, so that they share a pre-training
# a patch costs as much as four volumes; of few patients more have pneumonia than large nodules
LESS = {"08_segmentation_errors": {"batch": 1, "steps": 1, "study": "covid19-20"}}
PICTURES = {
    "00_tour": 2,
    "01_data": 3,
    "02_pretrain": 2,
    "03_ablations": 1,
    "04_scaling_law": 2,
    "05_downstream": 2,
    "06_tables": 2,
    "07_attention_maps": 2,
    "08_segmentation_errors": 2,
}


def smaller() -> dict[str, Scale]:
    """Scale demo and its nested sizes with a third of the volumes, and of the voxels of each less than half."""
    rows = {name: row for name, row in SCALES.items() if name.split("-")[0] == "demo"}
    less = {n: (row.volumes // 3, row.valid // 2, row.test // 2) for n, row in rows.items()}
    names = ("volumes", "valid", "test")
    return {n: replace(r, shape=(48, 36, 48), **dict(zip(names, less[n], strict=True))) for n, r in rows.items()}


def start_up(folder: Path, rows: dict[str, Scale]) -> Path:
    """A folder for IPYTHONDIR: kernels that start with it have these scales."""
    file = folder / "profile_default" / "startup" / "scales.py"
    file.parent.mkdir(parents=True)
    file.write_text(f"from mg3d.recipe import SCALES, Scale\nSCALES.update({rows!r})\n")
    return folder


@pytest.fixture
def small(monkeypatch, tmp_path) -> None:
    """Every kernel and this process have the scales of `smaller`."""
    rows = smaller()
    for name, row in rows.items():
        monkeypatch.setitem(SCALES, name, row)
    monkeypatch.setenv("IPYTHONDIR", str(start_up(tmp_path / "ipython-small", rows)))


@pytest.mark.timeout(3600)  # for a machine that is busy; alone it takes minutes
@pytest.mark.usefixtures("small")
def test_the_notebooks_run_one_after_the_other(tmp_path, monkeypatch, capsys):
    from widgets.attention import AttentionExplorer
    from widgets.errors import ErrorViewer
    from widgets.figures import Picture
    from widgets.volume import VolumeView

    monkeypatch.setenv("MG3D_HOME", str(tmp_path / "home"))
    pictures = {}
    for file in NOTEBOOKS:
        values = execute(file, tmp_path, **QUICK | LESS.get(file.stem, {}))
        viewers = [v.figure() for v in values if isinstance(v, AttentionExplorer | ErrorViewer | VolumeView)]
        shown = [v for v in values if isinstance(v, Picture)] + viewers
        assert all(p.png().startswith(b"\x89PNG") and p.alt for p in shown)
        pictures[file.stem] = len(shown)
    assert pictures == PICTURES
    # one pre-training that all share, three fine-tunings; three ablations, four smaller sizes, and ten heads of theirs
    runs = sorted((tmp_path / "home" / "runs").iterdir())
    assert len(runs) == 21
    capsys.readouterr()

    # the same by papermill, in a kernel, on what is there: one notebook is enough to see that it is the same
    out, given = tmp_path / "out", {name: QUICK[name] for name in ("scale", "text")}
    (result,) = batch.run([FOLDER / "01_data.ipynb"], out=out, parameters=given, html=True)
    assert result.status == "done", result.error
    executed, page = read(out / "01_data.ipynb"), (out / "01_data.html").read_text()
    assert sum("image/png" in o.get("data", {}) for c in code(executed) for o in c.outputs) == PICTURES["01_data"]
    assert sorted((tmp_path / "home" / "runs").iterdir()) == runs
    assert "widgets" not in executed.metadata
    assert (out / "01_data.ipynb").stat().st_size < 2_000_000
    assert page.count('src="data:image/png;base64') == PICTURES["01_data"]
    assert offline(page)


@BY_NAME
@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"scael": "demo"}, ValueError, r"unknown parameter 'scael' \(did you mean scale\?\); valid: .*seed"),
        ({"scale": "48k"}, ValueError, "unknown scale '48k'.*valid: demo, phantom, ctrg, 1.4k, 2.8k, 10k, 47k, folder"),
        ({"scale": "47k"}, FileNotFoundError, r"is missing\. Looked for: .*Where to get it: .*CT-RATE"),
    ],
    ids=["name", "value", "corpus"],
)
def test_a_notebook_that_cannot_run_says_why_at_once(file, given, error, message, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MG3D_HOME", str(tmp_path))
    with pytest.raises(error, match=message):
        execute(file, tmp_path, **given)
    assert not (tmp_path / "runs").exists()


def test_papermill_alone_is_as_strict(tmp_path, monkeypatch):
    """It only warns of a wrong name; the notebook's second cell does not."""
    import papermill

    monkeypatch.setenv("MG3D_HOME", str(tmp_path))
    with pytest.raises(papermill.PapermillExecutionError, match="did you mean scale"):
        papermill.execute_notebook(
            str(FOLDER / "02_pretrain.ipynb"), None, parameters={"scael": "demo"}, progress_bar=False
        )


# the runner --------------------------------------------------------------------------------------------------------


def toy(path: Path, *sources: str) -> Path:
    """A notebook with the parameters word and flag, and the given cells."""
    first = nbformat.v4.new_code_cell("# Parameters\nword: str = 'a'\nflag: bool = True\nrate: float = 1.0")
    first.metadata["tags"] = ["parameters"]
    cells = [nbformat.v4.new_markdown_cell("# Toy\n$\\frac{a}{b}$"), first, *map(nbformat.v4.new_code_cell, sources)]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    return path


def texts(notebook) -> str:
    return "".join(o.get("text", "") for c in code(notebook) for o in c.outputs)


def offline(page: str) -> bool:
    """Whether a page asks nobody for anything."""
    asks = re.findall(r"""(?:src|href)\s*=\s*["']?(?:https?:)?//[^"'\s>]+|url\(["']?(?:https?:)?//|@import""", page)
    links = [a for a in asks if "href" in a]  # a link in prose is followed by a click only
    return not set(asks) - set(links) and "<script" not in page and "<link" not in page


def test_one_failure_does_not_stop_the_others_and_what_is_done_is_skipped(tmp_path, capsys):
    good = toy(tmp_path / "good.ipynb", "import sys\nprint(word, flag, rate, sys.executable)")
    bad = toy(tmp_path / "bad.ipynb", "print('so far')", "assert word == 'a', 'the word is ' + word", "print('never')")
    out = tmp_path / "out"
    words = ["--out", str(out), "-p", "word", "b", "-p", "flag", "false", "-p", "rate", "1e-4"]
    assert batch.main([str(bad), str(good), *words, "--html", "--jobs", "2"]) == 1
    printed = capsys.readouterr().out
    assert re.search(r"bad +failed.*\n +good +done", printed)
    assert "bad.ipynb: AssertionError: the word is b" in printed
    assert printed.rstrip().endswith(f"lies in {out}")
    assert sorted(p.name for p in out.iterdir()) == [
        "bad.failed.ipynb",
        "bad.traceback.txt",
        "good.html",
        "good.ipynb",
    ]
    assert texts(read(out / "good.ipynb")) == f"b False 0.0001 {sys.executable}\n"
    assert "so far" in texts(read(out / "bad.failed.ipynb"))
    assert "never" not in texts(read(out / "bad.failed.ipynb"))
    trace = (out / "bad.traceback.txt").read_text()
    assert "AssertionError: the word is b" in trace
    assert "\x1b" not in trace
    assert offline((out / "good.html").read_text())

    before = (out / "good.ipynb").stat().st_mtime_ns
    assert batch.main([str(good), *words, "--html"]) == 0
    assert re.search(r"good +skipped", capsys.readouterr().out)
    assert (out / "good.ipynb").stat().st_mtime_ns == before

    # mended: the traces of the failure go; the changed source is not taken for the old one
    toy(bad, "print('mended')")
    assert batch.run([bad], out=out, parameters={"word": "b"}, html=False)[0].status == "done"
    assert sorted(p.name for p in out.iterdir()) == ["bad.ipynb", "good.html", "good.ipynb"]


@pytest.mark.parametrize(("deaths", "status"), [(1, "done"), (9, "failed")])
def test_a_kernel_that_does_not_start_is_tried_again(tmp_path, monkeypatch, deaths, status):
    import papermill

    calls = []

    def die_first(source, target, **rest):
        calls.append(source)
        if len(calls) <= deaths:
            raise RuntimeError("Kernel died before replying to kernel_info")
        Path(target).write_text(Path(source).read_text())

    monkeypatch.setattr(papermill, "execute_notebook", die_first)
    file = toy(tmp_path / "toy.ipynb", "1")
    (result,) = batch.run([file], out=tmp_path / "out", html=False)
    assert (result.status, len(calls)) == (status, min(deaths + 1, batch.STARTS))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["{}", "-p", "wrod", "x"],
            "toy.ipynb: unknown parameter 'wrod' (did you mean word?); valid: word, flag, rate",
        ),
        (["{}", "other.ipynb"], "other.ipynb: no such notebook"),
    ],
)
def test_what_cannot_start_stops_before_anything_runs(tmp_path, capsys, words, message):
    file = toy(tmp_path / "toy.ipynb", "1")
    words = [word.format(file) for word in words]
    assert batch.main([*words, "--out", str(tmp_path / "out"), "-p", "word", "b"]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("value", "kind", "typed"),
    [
        ("false", bool, False),
        ("True", bool, True),
        ("7", int, 7),
        ("1e-4", float, 1e-4),
        ("47", str, "47"),
        ("many", int, "many"),
        (3, int, 3),
    ],
)
def test_words_of_the_command_line_get_the_type_of_the_parameter(tmp_path, value, kind, typed):
    cell = nbformat.v4.new_code_cell(f"x: {kind.__name__} = {kind()!r}", metadata={"tags": ["parameters"]})
    file = tmp_path / "x.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), file)
    assert check(file, {"x": value}) == {"x": typed}


# pages -------------------------------------------------------------------------------------------------------------


def test_a_page_needs_nothing_else():
    from matplotlib.figure import Figure

    buffer = io.BytesIO()
    Figure().savefig(buffer)
    from base64 import b64encode

    picture = nbformat.v4.new_output(
        "display_data", {"image/png": b64encode(buffer.getvalue()).decode()}, metadata={"image/png": {"alt": "a chest"}}
    )
    cells = [
        nbformat.v4.new_markdown_cell("# A title\n\n$$\\sum_i x_i$$\n\nand `$code$` and \\$5 and $\\tau$."),
        nbformat.v4.new_code_cell("1", outputs=[picture]),
    ]
    notebook = nbformat.v4.new_notebook(cells=cells)
    page = html.to_html(notebook)
    assert offline(page)
    assert "<title>A title</title>" in page
    assert page.count('src="data:image/svg+xml;base64') == 2
    assert 'alt="\\tau"' in page
    assert 'alt="a chest"' in page
    assert "$code$" in page
    assert "svg" not in notebook.cells[0].source  # the notebook itself is as it was


def test_a_page_holds_the_pictures_of_its_text(tmp_path):
    from base64 import b64encode

    from PIL import Image

    (tmp_path / "docs").mkdir()
    (tmp_path / "notebooks").mkdir()
    Image.new("L", (3, 2)).save(tmp_path / "docs" / "a.png")
    text = "# T\n![a <map>](../docs/a.png) `![b](../docs/a.png)` ![c](../docs/c.png)"
    page = html.to_html(
        nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(text)]), folder=tmp_path / "notebooks"
    )
    content = b64encode((tmp_path / "docs" / "a.png").read_bytes()).decode()
    assert page.count(f'src="data:image/png;base64,{content}"') == 1
    assert 'alt="a &lt;map&gt;"' in page
    assert "![b](../docs/a.png)" in page
    assert 'src="../docs/c.png"' in page  # not there: a link, as it was


def test_a_formula_stands_on_the_base_line():
    from base64 import b64decode

    def svg(tag: str) -> str:
        return b64decode(re.search('base64,([^"]+)', tag)[1]).decode()

    deep = float(re.search(r"vertical-align:(-[\d.]+)em", html.formula("y"))[1])
    flat = float(re.search(r"vertical-align:(-[\d.]+)em", html.formula("x"))[1])
    assert deep < flat - 0.1
    assert -0.1 < flat < 0
    left, top, width, height = map(float, re.search('viewBox="([^"]+)"', svg(html.formula("x")))[1].split())
    numbers = [float(n) for n in re.findall(r"-?\d+", re.search(' d="([^"]+)"', svg(html.formula("x")))[1])]
    assert all(left <= x <= left + width for x in numbers[::2])
    assert all(top <= y <= top + height for y in numbers[1::2])


def test_latex_that_cannot_be_drawn_stays_as_it_is():
    cell = nbformat.v4.new_markdown_cell(r"Costs $\nosuch{x}$.")
    assert r"$\nosuch{x}$" in html.to_html(nbformat.v4.new_notebook(cells=[cell]))
