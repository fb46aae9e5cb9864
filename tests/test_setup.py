"""Set-up: what a fresh machine installs, imports and reads is what the files say."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
README = (ROOT / "README.md").read_text()


def name(requirement: str) -> str:
    """Normalised name of a requirement."""
    found = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert found
    return re.sub(r"[-_.]+", "-", found.group()).lower()


CORE = {name(r) for r in PROJECT["dependencies"]}
EXTRAS = {k: {name(r) for r in v} for k, v in PROJECT["optional-dependencies"].items()}


def test_what_users_asked_for_is_there():
    asked = {"torch", "monai", "transformers", "jupyterlab", "ipywidgets", "napari", "plotly", "papermill", "pytest"}
    assert asked <= CORE | set().union(*EXTRAS.values())
    assert not {"napari", "pyside6-essentials", "pyqt5", "torchvision"} & CORE  # mg3d installs and runs without Qt
    for folder in ("notebooks", "mg3d", "widgets", "tests"):
        assert (ROOT / folder).is_dir()


def test_conda_file_installs_the_package_with_known_extras():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    python, pip, nested = environment["dependencies"]
    assert python == "python=3.11"
    assert PROJECT["requires-python"] == ">=3.11"
    assert pip == "pip"
    constraints, package = nested["pip"]
    assert constraints == "-c constraints.txt"
    extras = re.fullmatch(r"-e \.\[([a-z,]+)\]", package)
    assert extras
    assert set(extras.group(1).split(",")) == set(EXTRAS)


def test_every_requirement_is_pinned_exactly():
    lines = [x for x in (ROOT / "constraints.txt").read_text().splitlines() if x and not x.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", line) for line in lines)
    pinned = {name(line) for line in lines}
    assert pinned >= CORE | set().union(*EXTRAS.values()) - {"mg3d"}


def test_import_is_light():
    """`import mg3d` loads none of the heavy packages: measured 0.02 s, so nothing here needs a clock."""
    code = "import sys, mg3d; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "monai", "transformers", "pandas", "sklearn", "matplotlib", "plotly"} & set(loaded)
    code = "import sys, mg3d.train, mg3d.fit, mg3d.objectives, mg3d.encoders; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"monai", "transformers", "pandas", "sklearn", "matplotlib", "plotly"} & set(loaded)


def test_public_names_exist():
    import mg3d

    for public in mg3d.__all__:
        assert getattr(mg3d, public) is not None
    assert set(dir(mg3d)) >= set(mg3d.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Recipy'"):
        _ = mg3d.Recipy


def test_the_readme_tree_is_true():
    """Every module and notebook is named in the README's tree, and every file named there exists."""
    tree = README.split("## The tree")[1].split("## ")[0]
    named = set(re.findall(r"[\w/]+\.(?:py|ipynb)", tree))
    folders = [ROOT / folder for folder in ("mg3d", "widgets", "notebooks", "bench")]
    files = [p for folder in folders for end in ("*.py", "*.ipynb") for p in folder.rglob(end)]
    there = {p.name for p in files if p.parent.name != ".ipynb_checkpoints"} - {"__init__.py"}
    assert {Path(n).name for n in named} - {"__init__.py"} == there


def test_the_readme_lists_every_quarantine_reason():
    from mg3d.data.reading import REASONS

    rows = dict(re.findall(r"^\| `([\w-]+)` \| (.+) \|$", README.split("by name")[1].split("## ")[0], re.MULTILINE))
    assert rows == REASONS


def test_the_readme_lists_every_rival_with_its_lines():
    from mg3d.objectives import METHODS

    rows = re.findall(
        r"^\| `(\w+)` \|.* \| (\d+) \| .+ \|$", README.split("## Rivals")[1].split("## ")[0], re.MULTILINE
    )
    files = {name: ROOT / "mg3d" / "objectives" / f"{name}.py" for name in METHODS if name != "mg3d"}
    assert {name: int(lines) for name, lines in rows} == {n: len(f.read_text().splitlines()) for n, f in files.items()}


@pytest.mark.parametrize("file", ["LICENSE", "CONTRIBUTING.md", "Makefile", ".ci/run", "docs/devlog.md"])
def test_files_that_readers_look_for(file):
    assert (ROOT / file).stat().st_size > 100


TOO_OLD = "#!/bin/sh\nexit 1\n"
NO_VENV = '#!/bin/sh\ncase "$2" in *venv*) exit 1;; esac\nexit 0\n'


@pytest.mark.parametrize(
    ("python", "mend"),
    [(TOO_OLD, "Python 3.11 or newer is needed"), (NO_VENV, "apt install python3-venv")],
    ids=["too old", "without venv"],
)
def test_a_missing_prerequisite_is_named_with_its_mend(tmp_path, python, mend):
    stand_in = tmp_path / "python"
    stand_in.write_text(python)
    stand_in.chmod(0o755)
    copy = tmp_path / "clone"
    copy.mkdir()
    for file in ("Makefile", "pyproject.toml", "constraints.txt"):
        (copy / file).write_bytes((ROOT / file).read_bytes())
    done = subprocess.run(
        ["make", "-C", str(copy), "demo", f"PYTHON={stand_in}"], capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert mend in done.stdout + done.stderr
    assert not (copy / ".venv").exists()
