"""A run of a scale of one's own in a home of its own: what the tests of finished runs begin with."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mg3d import SCALES, Recipe, Run, pretrain
from mg3d.recipe import Scale


@contextmanager
def trained(home: Path, scale: Scale, **fields) -> Iterator[Run]:
    """A finished run of scale "tinier" with the untrained text encoder; the scale and the home last as long."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MG3D_HOME", str(home))
        patch.setitem(SCALES, "tinier", scale)
        yield pretrain(Recipe(scale="tinier", text="tiny", **fields))
