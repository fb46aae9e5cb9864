"""Where things are kept, and how a file is written so that it is there whole or not at all.

    MG3D_HOME (default: the folder mg3d in the user's home)
        data/  cache/  runs/  weights/

The folders are made when something is written into them, not when they are asked for.
"""

import errno
import os
import secrets
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

TEMPORARY = ".tmp"  # suffix of a file that is being written; a killed process may leave one, nothing ever reads it
_FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}


def home() -> Path:
    """The folder that holds everything: $MG3D_HOME, read at each call, else ~/mg3d."""
    set_by_user = os.environ.get("MG3D_HOME")
    return Path(set_by_user).expanduser().absolute() if set_by_user else Path.home() / "mg3d"


def data() -> Path:
    """Corpora: the phantom's, and those that the user puts there."""
    return home() / "data"


def cache() -> Path:
    """What can be computed again: prepared volumes, text features."""
    return home() / "cache"


def runs() -> Path:
    """One folder a run."""
    return home() / "runs"


def weights() -> Path:
    """Weights of others: text encoders, foundation models."""
    return home() / "weights"


def write_atomic(path: Path | str, content: bytes | Callable[[BinaryIO], object]) -> Path:
    """Write a file so that a reader, a kill or a power cut sees the old one or the new one, never a part.

    `content` is the bytes, or a function that writes them into an open binary file. Missing folders are made. Returns
    the path. Raises OSError; for a full disk or quota its message says so and how to go on. On any error the old file
    stays as it was and nothing is left beside it.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}{TEMPORARY}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("xb") as file:
            if callable(content):
                content(file)
            else:
                file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno in _FULL:
            raise OSError(error.errno, _full(path)) from error
        raise
    _sync_folder(path.parent)
    return path


def _full(path: Path) -> str:
    """What to say when the disk of `path` is full."""
    with suppress(OSError):
        free = shutil.disk_usage(path.parent).free
        return f"{path}: no space left on its disk ({free / 1e6:,.0f} MB free); make room there or move MG3D_HOME"
    return f"{path}: no space left on its disk; make room there or move MG3D_HOME"


def _sync_folder(folder: Path) -> None:
    """Make a rename outlive a power cut, on systems that can open a folder (Windows cannot, and needs it not)."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
