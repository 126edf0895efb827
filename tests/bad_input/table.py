"""docs/bad-input.md: every case with its command and its answer."""

from __future__ import annotations

import importlib
import pkgutil

import tests.bad_input
from tests.bad_input.case import ROOT, Case

FILE = ROOT / "docs" / "bad-input.md"
HEAD = """# Bad input

What the scripts answer to wrong input: one line on stderr and a failing exit code (1, or 2 for a flag that click itself
refuses), nothing that was there before changed, and no traceback. The tests run every line of this page and write it
(`tests/bad_input`). DATA is a good image folder, NETWORK a good checkpoint, TMP the folder where the case's own input
lies; the first column says what is bad about it. Cases with a * also run as processes of their own.

A wrong value is named by its option, a wrong file by its path.
"""


def areas() -> dict[str, list[Case]]:
    """Cases by the heading of their area, in the order of the modules' names."""
    names = sorted(m.name for m in pkgutil.iter_modules(tests.bad_input.__path__) if m.name.startswith("cases_"))
    found = {}
    for name in names:
        module = importlib.import_module(f"tests.bad_input.{name}")
        assert module.__doc__ is not None, f"{name}.py: its docstring is the heading of the area"
        found[module.__doc__.splitlines()[0].rstrip(".")] = list(module.CASES)
    return found


def all_cases() -> list[Case]:
    return [case for cases in areas().values() for case in cases]


def row(case: Case, message: str) -> str:
    cells = (case.name + (" *" if case.real else ""), f"`{case.command}`", message)
    return f"| {' | '.join(_cell(c) for c in cells)} |"


def render(messages: dict[str, str]) -> str:
    """The whole page, from the answer to each case by its name."""
    parts = [HEAD]
    for title, cases in areas().items():
        parts += [f"\n## {title}\n\n| what is bad | command | answer |\n|---|---|---|\n"]
        parts += [row(case, messages[case.name]) + "\n" for case in cases]
    return "".join(parts)


def _cell(text: str) -> str:
    """One cell: bars would end it, control characters and very long arguments would spoil the page."""
    text = "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text).replace("|", "\\|")
    return text if len(text) <= 500 else f"{text[:240]} ... {text[-240:]}"
