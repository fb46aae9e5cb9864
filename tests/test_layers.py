"""The arrows between the parts, read from the imports: who may know whom, and which package belongs where.

A new part gets a row in ARROWS; a part without one fails. An import counts wherever it stands: at the top, inside a
function, or for types only.
"""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted(p.relative_to(ROOT).as_posix() for folder in ("mg3d", "widgets") for p in (ROOT / folder).rglob("*.py"))

ARROWS = {  # part of mg3d: parts that it may import
    "types": "",
    "paths": "",
    "recipe": "paths",
    "runs": "recipe paths",
    "text": "types",
    "losses": "types",
    "contrast": "losses types",
    "entities": "attention types",
    "vlp": "attention decoders losses views types",
    "views": "types",
    "puzzles": "views",
    "pairs": "views",
    "metrics": "types",
    "attention": "types",
    "decoders": "types",
    "encoders": "types paths",
    "data": "text types paths",
    "objectives": "encoders decoders attention losses views metrics types"
    " contrast entities vlp pairs puzzles two_views",
    "two_views": "decoders encoders types views",
    "tasks": "encoders decoders attention losses views metrics types",
    "distributed": "recipe",
    "accumulate": "distributed types",
    "fit": "accumulate distributed metrics recipe runs types",
    "train": "objectives encoders data text types fit runs recipe distributed paths",  # where names become objects
    "maps": "train data text types runs recipe distributed paths",
    "grounding": "maps metrics data train runs types",
    "probing": "maps metrics train runs types distributed paths data",
    "transfer": "recipe",
    "studies": "tasks data train recipe transfer types paths",
    "heads": "studies tasks objectives encoders data text train runs recipe transfer",
    "frozen": "tasks encoders fit recipe types distributed paths",
    "tune": "studies heads frozen tasks encoders data maps train fit runs recipe transfer types distributed paths",
    "compare": "metrics tune transfer runs",
    "divisions": "compare tune transfer runs",
    "paper": "",
    "cells": "compare paper metrics transfer runs recipe paths",
    "grid": "cells heads paper transfer recipe",
    "tables": "cells grid paper",
    "scaling": "metrics",
    "html": "",
    "parameters": "",
    "jobs": "recipe runs transfer paths",
    "costs": "jobs recipe runs paths",
    "lists": "tables recipe transfer",
    "cluster": "jobs recipe runs paths",
    "batch": "cluster costs lists jobs parameters recipe html paths",
    "__init__": "train maps grounding probing tune runs recipe transfer",  # lazily
}

ONLY = {  # package: the only places that may import it
    "papermill": "mg3d/batch.py",
    "submitit": "mg3d/cluster.py",
    "nbconvert": "mg3d/html.py",
    "transformers": "mg3d/encoders/text.py mg3d/text.py",
    "monai": "mg3d/encoders/ mg3d/decoders.py mg3d/losses.py mg3d/tasks/segment.py mg3d/metrics/",
    "nibabel": "mg3d/data/ widgets/volume.py",
    "pydicom": "mg3d/data/",
    "matplotlib": "widgets/ mg3d/html.py",
    "plotly": "widgets/",
    "ipywidgets": "widgets/",
    "anywidget": "widgets/",
    "ipyniivue": "widgets/",
    "napari": "widgets/",
    "widgets": "widgets/",
    "mg3d": "mg3d/",  # a view gets arrays, never models
    "IPython": "",
    "notebooks": "",
}


def imports(file: str) -> set[str]:
    """Every name that a file imports, in full: `from mg3d.types import Batch` is mg3d.types.Batch."""
    found = set()
    for node in ast.walk(ast.parse((ROOT / file).read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno}: a relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def part(name: str) -> str:
    """The part of mg3d that a file or an imported name belongs to."""
    return name.removesuffix(".py").replace("/", ".").split(".")[1]


@pytest.mark.parametrize("file", [f for f in FILES if f.startswith("mg3d/")])
def test_a_part_imports_only_what_its_arrows_allow(file):
    here = part(file)
    assert here in ARROWS, f"{file}: give the new part a row in ARROWS"
    known = {part(name) for name in imports(file) if name.startswith("mg3d.")}
    assert known - {here} <= set(ARROWS[here].split()), f"{file} may import {ARROWS[here] or 'no other part'}"


@pytest.mark.parametrize("file", FILES)
def test_a_package_is_imported_only_where_it_belongs(file):
    for package in {name.split(".")[0] for name in imports(file)} & ONLY.keys():
        places = ONLY[package].split()
        assert any(file == p or (p.endswith("/") and file.startswith(p)) for p in places), f"{file} imports {package}"


@pytest.mark.parametrize("file", [f for f in FILES if f.startswith("mg3d/objectives/")])
def test_an_objective_knows_the_contract_of_encoders_and_no_other_objective(file):
    contract = {n.name for n in _top("mg3d/encoders/__init__.py") if isinstance(n, (ast.ClassDef, ast.FunctionDef))}
    used = {name.removeprefix("mg3d.encoders.") for name in imports(file) if name.startswith("mg3d.encoders")}
    assert used <= contract
    methods = {f for f in FILES if f.startswith("mg3d/objectives/") and _objectives(f)}
    others = {f.removesuffix(".py").replace("/", ".") for f in methods - {file}}
    known = {name.rsplit(".", 1)[0] for name in imports(file)} | imports(file)
    assert file.endswith("__init__.py") or not known & others


def _top(file: str) -> list[ast.stmt]:
    return ast.parse((ROOT / file).read_text()).body


def _objectives(file: str) -> list[str]:
    """Names of the objectives that a file defines."""
    classes = [n for n in _top(file) if isinstance(n, ast.ClassDef)]
    return [c.name for c in classes if any(isinstance(b, ast.Name) and b.id == "Objective" for b in c.bases)]


@pytest.mark.parametrize("file", FILES)
def test_files_and_functions_are_small_and_public_things_are_explained(file):
    text = (ROOT / file).read_text()
    assert len(text.splitlines()) <= 300
    assert Path(file).stem not in ("utils", "helpers", "common", "base")
    assert "from __future__ import annotations" not in text
    tree = ast.parse(text)
    assert ast.get_docstring(tree), f"{file}: a module needs a docstring"
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            assert node.end_lineno - node.lineno < 50, f"{file}:{node.lineno}: {node.name} is long"
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{file}:{node.lineno}: {node.name} needs a docstring"


@pytest.mark.parametrize(
    ("package", "unwanted"),
    [
        ("mg3d", "torch monai transformers pandas matplotlib papermill"),
        ("mg3d.recipe", "torch monai transformers pandas matplotlib"),
        ("mg3d.train", "monai transformers sklearn matplotlib"),
        ("widgets.slices", "mg3d torch plotly ipywidgets napari"),
    ],
)
def test_importing_is_cheap(package, unwanted):
    code = f"import sys, {package}; print(*[m for m in {unwanted.split()} if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert run.stdout.split() == []
