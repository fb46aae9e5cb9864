"""The parameters of a notebook: names and types of what its first cell assigns, and a strict look at what is given."""

import ast
import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def parameters_of(notebook: Path) -> dict[str, type]:
    """Names and types of what the cell tagged `parameters` assigns."""
    import nbformat

    found: dict[str, type] = {}
    for cell in nbformat.read(notebook, as_version=4).cells:
        if "parameters" in cell.metadata.get("tags", ()):
            for node in ast.parse(cell.source).body:
                target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
                if isinstance(target, ast.Name):
                    found[target.id] = type(ast.literal_eval(node.value))  # type: ignore[attr-defined]
    return found


def check(notebook: Path, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters with the types of the notebook's own; ValueError, listing the valid names, for an unknown one."""
    if not notebook.is_file():
        raise FileNotFoundError(f"{notebook}: no such notebook")
    known = parameters_of(notebook)
    for name in parameters:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            raise ValueError(f"{notebook}: unknown parameter {name!r}{hint}; valid: {', '.join(known) or 'none'}")
    return {name: _typed(value, known[name]) for name, value in parameters.items()}


def _typed(value: Any, kind: type) -> Any:
    """A word of the command line as bool, int or float where the notebook has one; what is none stays as it is."""
    if not isinstance(value, str) or kind is str:
        return value
    if kind is bool:
        return {"true": True, "false": False}.get(value.lower(), value)
    try:
        return kind(value)
    except ValueError:
        return value  # the notebook's own check names the field
