"""Gives the tests of families the families, and a data set."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.families import ball, specks, told
from tests.families.runs import keep_small
from training.data.synthetic.synthesize import synthesize_heads
from training.families import FAMILIES, register


@pytest.fixture(scope="package", autouse=True)
def families() -> Iterator[None]:
    """The families of these tests, known while the tests run."""
    before = dict(FAMILIES)
    with pytest.MonkeyPatch.context() as patch:
        keep_small(patch)
        for family in (ball.FAMILY, specks.FAMILY, told.FAMILY):
            register(family)
        yield
    FAMILIES.clear()
    FAMILIES.update(before)


@pytest.fixture(scope="package")
def heads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 images of 32 px."""
    root = tmp_path_factory.mktemp("heads")
    synthesize_heads(root / "set", 24, 32, seed=0)
    return root / "set" / "32"
