"""Every bad input gets its one line, as docs/bad-input.md has it."""

import os
from pathlib import Path

import pytest

from tests.bad_input import table
from tests.bad_input.case import Answer, Case, Place, check, empty, run_as_process, run_in_process
from training.data.synthetic.synthesize import synthesize_heads

CASES = table.all_cases()
WRITE = "WRITE_BAD_INPUT" in os.environ  # write the page instead of comparing with it; needs one process (no -n)
answers: dict[str, str] = {}


@pytest.fixture(scope="module")
def good(tmp_path_factory, checkpoint_path) -> tuple[Path, Path]:
    """A good set of 8 images of 32 px and a good checkpoint."""
    root = tmp_path_factory.mktemp("good") / "heads"
    return synthesize_heads(root, 8, 32, seed=0, workers=1).images, checkpoint_path


@pytest.fixture
def place(good, tmp_path, monkeypatch) -> Place:
    monkeypatch.setenv("SPLATGAN_CACHE_DIR", str(tmp_path / "cache"))
    for name in ("SPLATGAN_DETECTOR", "SPLATGAN_DETECTOR_VGG"):
        monkeypatch.delenv(name, raising=False)
    own = empty(tmp_path / "case")
    monkeypatch.chdir(own)
    return Place(own, *good)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_in_process(case, place):
    message = check(case, place, run_in_process)
    if WRITE:
        answers[case.name] = message
    else:
        wanted = table.row(case, message)
        assert wanted in table.FILE.read_text().splitlines(), f"docs/bad-input.md lacks {wanted}; see tests/bad_input"


@pytest.mark.parametrize("case", [c for c in CASES if c.real], ids=lambda case: case.name)
def test_as_a_process(case, place):
    message = check(case, place, run_as_process)
    assert WRITE or table.row(case, message) in table.FILE.read_text().splitlines()


def test_the_page_lists_these_cases():
    names = [case.name for case in CASES]
    assert len(set(names)) == len(names), "names must be unique"
    if WRITE:
        table.FILE.write_text(table.render(answers))
    lines = table.FILE.read_text().splitlines()
    listed = [line.split(" | ")[0].removeprefix("| ").removesuffix(" *") for line in lines if " | `" in line]
    assert listed == names, "docs/bad-input.md lists other cases; see tests/bad_input"


@pytest.mark.parametrize(
    ("stderr", "exit_code", "writes"),
    [
        ("Error: no such thing: --data\n", 0, None),
        ("Traceback (most recent call last):\nError: no such thing: --data\n", 1, None),
        ("Error: no such thing: --data\nand more\n", 1, None),
        ("Error: no such thing: --data\nError: no such thing: --data\n", 1, None),
        ("no such thing: --data\n", 1, None),
        ("Error: something else: --data\n", 1, None),
        ("Error: no such thing: --data" + "x" * 500, 1, None),
        ("Error: no such thing: --data: [Errno 2] No such file\n", 1, None),
        ("Error: no such thing: --data (KeyError: 105)\n", 1, None),
        ("Error: no such thing: --data (101)\n", 1, None),
        ("Error: there is no such thing\n", 1, None),
        ("Error: no such thing: --data\n", 1, "left.txt"),
        ("Error: no such thing: --data\n", 1, "kept.txt"),
    ],
)
def test_the_check_itself_can_fail(place, stderr, exit_code, writes):
    """A check that cannot fail would make the whole page worthless."""
    case = Case("x", "train", (), "no such thing", make=lambda p: (p.tmp / "kept.txt").write_text("old"))

    def run(case: Case, place: Place) -> Answer:
        if writes:
            (place.tmp / writes).write_text("new")
        return Answer(exit_code, stderr)

    with pytest.raises(AssertionError):
        check(case, place, run)


def test_the_check_passes_what_is_right(place):
    case = Case("x", "train", ("--data={DATA}",), "no such thing")
    assert check(case, place, lambda c, p: Answer(1, "Error: no such thing: --data\n")) == "no such thing: --data"
