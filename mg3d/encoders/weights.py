"""Read a checkpoint of any common layout into a module, all of it or not at all.

The field's commonest silent failure is a load that matches nothing (`strict=False`, a prefix too many) and a training
that then starts from random weights. Here the prefix is found, coverage is checked, and shapes must agree, before the
first tensor is touched; the report says what happened.
"""

import pickle
import re
from argparse import Namespace
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

WRAPPERS = ("state_dict", "model", "network_weights", "net", "student")  # dictionaries that hold the tensors
WRAPS = re.compile(r"^(module\.|_orig_mod\.)+")  # what DataParallel and torch.compile put in front of every name


@dataclass(frozen=True)
class Loaded:
    """What a load did, in names of the module's tensors."""

    prefix: str  # what the file's names have in front of the module's
    matched: tuple[str, ...]
    missing: tuple[str, ...]  # in the module, not in the file: these keep their values
    unexpected: tuple[str, ...]  # in the file behind the prefix, not in the module: ignored

    @property
    def fraction(self) -> float:
        """Share of the module's tensors that the file gave."""
        return len(self.matched) / max(1, len(self.matched) + len(self.missing))


def read_tensors(path: Path | str) -> dict[str, Tensor]:
    """The tensors of a file by name: safetensors, or a PyTorch file, unwrapped and without `module.`.

    PyTorch files are read without running anything that they contain. Raises FileNotFoundError; ValueError for a file
    that is damaged, that wants to create objects other than tensors, or that holds no tensors by name.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no weights at {path}")
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)
    inner: Any = content
    while isinstance(inner, Mapping) and not any(isinstance(v, Tensor) for v in inner.values()):
        inner = next((inner[w] for w in WRAPPERS if isinstance(inner.get(w), Mapping)), None)
    if inner is None:
        raise ValueError(f"{path} holds no tensors by name, neither itself nor under {', '.join(WRAPPERS)}")
    tensors = {name: value for name, value in inner.items() if isinstance(name, str) and isinstance(value, Tensor)}
    bare = {WRAPS.sub("", name): value for name, value in tensors.items()}
    return bare if len(bare) == len(tensors) else tensors


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or no safetensors file: {error}") from error


def _read_pickle(path: Path) -> Mapping:
    try:
        with torch.serialization.safe_globals([Namespace]):  # plain arguments, which some trainings stored
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        wanted = re.search(r"GLOBAL (\S+)", str(error))
        if not wanted:
            raise ValueError(f"{path} is damaged or no PyTorch file: {_reason(error)}") from error
        raise ValueError(
            f"refused to read {path}: besides tensors it contains {wanted[1]}, and creating that could run foreign "
            "code. If you trust its source, save its tensors alone as a .safetensors file and read that"
        ) from error
    except (RuntimeError, EOFError, OSError, LookupError, ValueError) as error:
        raise ValueError(f"{path} is damaged or no PyTorch file: {_reason(error)}") from error
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} holds a {type(content).__name__}, not tensors by name")
    return content


def _reason(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def find_prefix(wanted: set[str], found: Mapping[str, Tensor]) -> str:
    """The prefix behind which most of the wanted names are found; none at all wins a tie.

    Raises ValueError when two other prefixes fit equally well, as those of a student and its teacher do.
    """
    prefixes: Counter[str] = Counter()
    for name in found:
        cuts = [0, *(i + 1 for i, letter in enumerate(name) if letter == ".")]
        prefixes.update(name[:i] for i in cuts if name[i:] in wanted)
    if not prefixes:
        return ""
    most = max(prefixes.values())
    best = sorted(prefix for prefix, count in prefixes.items() if count == most)
    if len(best) > 1 and best[0]:
        raise ValueError(f"the file holds these weights {len(best)} times; choose with prefix= one of {best}")
    return best[0]


def load_weights(
    module: nn.Module, source: Path | str | Mapping[str, Tensor], *, prefix: str | None = None, at_least: float = 1.0
) -> Loaded:
    """Copy a file's tensors (or those of a dictionary, already renamed) into a module.

    Without a `prefix` the file's is found. Tensors are cast to the module's precision. Raises ValueError, and leaves
    the module as it was, when less than `at_least` of its tensors are found or when a shape differs.
    """
    origin = "the given tensors" if isinstance(source, Mapping) else str(source)
    found = source if isinstance(source, Mapping) else read_tensors(source)
    own = module.state_dict()
    prefix = find_prefix(set(own), found) if prefix is None else prefix
    given = {name.removeprefix(prefix): value for name, value in found.items() if name.startswith(prefix)}
    loaded = Loaded(
        prefix,
        matched=tuple(n for n in own if n in given),
        missing=tuple(n for n in own if n not in given),
        unexpected=tuple(n for n in given if n not in own),
    )
    if loaded.fraction < at_least or not loaded.matched:
        raise ValueError(
            f"{origin} gives {len(loaded.matched)} of {len(own)} tensors of {type(module).__name__} behind the prefix "
            f"{prefix!r}; missing: {_first(loaded.missing)}; the file has: {_first(tuple(found))}"
        )
    wrong = [
        f"{n} {tuple(given[n].shape)} for {tuple(own[n].shape)}"
        for n in loaded.matched
        if given[n].shape != own[n].shape
    ]
    if wrong:
        raise ValueError(f"{origin} has other shapes than {type(module).__name__}: {_first(tuple(wrong))}")
    module.load_state_dict({n: given[n] for n in loaded.matched}, strict=False)
    return loaded


def _first(names: tuple[str, ...], count: int = 3) -> str:
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return (", ".join(names[:count]) or "nothing") + more
