"""Prints the interfaces of the packages as docs/design.md shows them: signatures, fields and first docstring lines.

    python -m docs.interfaces            prints them
    python -m docs.interfaces --write    puts them into docs/design.md

They are read from the source, so that nothing is imported. A class shows its fields, with the comments beside them,
and its public methods.
"""

from __future__ import annotations

import ast
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass

from dnnlib import ROOT

WIDTH = 120
DESIGN = ROOT / "docs" / "design.md"
BEGIN, END = "<!-- written by python -m docs.interfaces --write -->", "<!-- end of what is written -->"

# Heading -> modules, each with the names to show; () shows all public ones.
SEAMS: dict[str, dict[str, tuple[str, ...]]] = {
    "Scenes and cameras": {
        "gaussian/scene.py": (),
        "gaussian/gaussians.py": ("Gaussians",),
        "gaussian/cameras.py": ("Cameras",),
        "gaussian/geometry.py": ("Geometry",),
        "gaussian/rendering.py": ("Rendering", "render", "resolve_backend"),
        "gaussian/ply.py": ("save_ply", "load_ply"),
        "gaussian/export/__init__.py": ("save_splats",),
    },
    "What a family gives": {
        "training/families/base.py": (),
        "training/networks/base.py": (),
        "training/families/inspection.py": ("Inspection", "Inspect", "inspect_splats", "changed_look"),
        "training/families/__init__.py": (),
        "training/records.py": (),
    },
    "What a run is made of": {
        "training/config.py": ("TrainingConfig", "settable"),
        "training/presets.py": (),
        "training/samples.py": (),
        "torch_utils/random.py": ("uniform", "normal", "integers", "permutation", "EpochOrder", "Draws"),
        "training/losses.py": (),
        "training/step.py": (),
        "training/training_loop.py": (),
    },
    "Data and checkpoints": {
        "training/dataset.py": (),
        "training/images.py": (),
        "training/checkpoint.py": (),
    },
    "Metrics": {
        "metrics/results.py": ("MetricSpec", "MetricResult"),
        "metrics/registry.py": (
            "parse_metric", "needs_detector", "larger_is_better", "check_detectors", "compute_metric",
            "load_on_all_ranks",
        ),
        "metrics/evaluator.py": (),
        "metrics/generators.py": (),
        "metrics/result_files.py": (),
    },
}  # fmt: skip

Function = ast.FunctionDef | ast.AsyncFunctionDef


def interfaces() -> str:
    """Returns all interfaces as Markdown."""
    parts = []
    for heading, modules in SEAMS.items():
        parts.append(f"### {heading}\n")
        for path, names in modules.items():
            parts.append(f"`{path}`\n\n```python\n{module_interface(path, names)}\n```\n")
    return "\n".join(parts)


def module_interface(path: str, names: tuple[str, ...] = ()) -> str:
    """Returns the interface of a module as a stub. Raises ValueError for a name that is not in it."""
    source = Source((ROOT / path).read_text())
    public = {node.name: node for node in source.tree.body if isinstance(node, Function | ast.ClassDef)}
    if missing := set(names) - set(public):
        raise ValueError(f"{path} has no {', '.join(sorted(missing))}")
    chosen = names or [name for name in public if not name.startswith("_")]
    return "\n\n".join("\n".join(source.stub(public[name])) for name in chosen)


@dataclass(frozen=True)
class Source:
    """Holds a module's text."""

    text: str

    @property
    def tree(self) -> ast.Module:
        """Returns the parsed module."""
        return ast.parse(self.text)

    def stub(self, node: Function | ast.ClassDef) -> Iterator[str]:
        """Yields the lines that show a class or a function."""
        if isinstance(node, Function):
            yield from self._function(node, "")
            return
        bases = [ast.unparse(base) for base in node.bases]
        bases += [f"{keyword.arg}={ast.unparse(keyword.value)}" for keyword in node.keywords]
        yield from _with_comment(f"class {node.name}{_in_brackets(bases)}:", self._first_words(node), "")
        for statement in node.body:
            if isinstance(statement, ast.AnnAssign) and not ast.unparse(statement.target).startswith("_"):
                yield from _with_comment(f"    {ast.unparse(statement)}", self._comment(statement), "    ")
            elif isinstance(statement, Function) and _is_shown(statement, node):
                yield from self._function(statement, "    ")

    def _function(self, node: Function, indent: str) -> Iterator[str]:
        """Yields the lines of a function; those of a property are like a field's."""
        returns = "" if node.returns is None else ast.unparse(node.returns)
        if any(ast.unparse(decorator) == "property" for decorator in node.decorator_list):
            yield from _with_comment(f"{indent}{node.name}: {returns}", self._first_words(node), indent)
            return
        arguments = [argument for argument in _arguments(node.args) if argument != "self"]
        line = f"{indent}def {node.name}("
        for i, argument in enumerate(arguments):
            piece = f"{argument}{', ' if i + 1 < len(arguments) else ''}"
            if len(line + piece.rstrip()) > WIDTH:
                yield line.rstrip()
                line = f"{indent}        "
            line += piece
        end = f") -> {returns}" if returns else ")"
        if len(line + end) > WIDTH:
            yield line
            line = indent
        yield from _with_comment(line + end, self._first_words(node), indent)

    def _first_words(self, node: Function | ast.ClassDef) -> str:
        """Returns the first paragraph of a docstring as one line, or else the comment behind a function of one line."""
        words = " ".join((ast.get_docstring(node) or "").partition("\n\n")[0].split())
        in_one_line = isinstance(node, Function) and node.body[-1].end_lineno == node.lineno
        return words or (self._comment(node) if in_one_line else "")

    def _comment(self, statement: ast.stmt) -> str:
        """Returns the comment behind a statement, on its last line."""
        assert statement.end_lineno is not None and statement.end_col_offset is not None
        line = self.text.splitlines()[statement.end_lineno - 1].encode()[statement.end_col_offset :].decode()
        return line.partition("# ")[2]


def _is_shown(method: Function, owner: ast.ClassDef) -> bool:
    """Tells whether a method is public, or makes or calls an object that has no fields."""
    has_fields = any(isinstance(statement, ast.AnnAssign) for statement in owner.body)
    return not method.name.startswith("_") or (method.name in ("__init__", "__call__") and not has_fields)


def _in_brackets(bases: list[str]) -> str:
    return f"({', '.join(bases)})" if bases else ""


def _with_comment(line: str, comment: str, indent: str) -> Iterator[str]:
    """Yields a line with a comment behind it, or below it and further in where it is too long for that."""
    if len(line) + 4 + len(comment) <= WIDTH:
        yield f"{line}  # {comment}" if comment else line
        return
    yield line
    below = f"{indent}    # "
    yield from textwrap.wrap(comment, WIDTH, initial_indent=below, subsequent_indent=below, break_on_hyphens=False)


def _arguments(arguments: ast.arguments) -> list[str]:
    """Returns the parameters with their types and defaults."""
    positional = [*arguments.posonlyargs, *arguments.args]
    defaults = [None] * (len(positional) - len(arguments.defaults)) + list(arguments.defaults)
    found = [_argument(a, d) for a, d in zip(positional, defaults, strict=True)]
    if arguments.posonlyargs:
        found.insert(len(arguments.posonlyargs), "/")
    if arguments.vararg is not None:
        found.append(f"*{_argument(arguments.vararg, None)}")
    elif arguments.kwonlyargs:
        found.append("*")
    found += [_argument(a, d) for a, d in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)]
    if arguments.kwarg is not None:
        found.append(f"**{_argument(arguments.kwarg, None)}")
    return found


def _argument(argument: ast.arg, default: ast.expr | None) -> str:
    kind = "" if argument.annotation is None else f": {ast.unparse(argument.annotation)}"
    value = "" if default is None else f" = {ast.unparse(default)}" if kind else f"={ast.unparse(default)}"
    return argument.arg + kind + value


def written() -> str:
    """Returns docs/design.md with the interfaces as they are. Raises ValueError if it has no place for them."""
    before, begin, rest = DESIGN.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{DESIGN} lacks the lines {BEGIN!r} and {END!r}")
    return f"{before}{BEGIN}\n\n{interfaces()}\n{END}{after}"


if __name__ == "__main__":
    if "--write" in sys.argv[1:]:
        DESIGN.write_text(written())
    else:
        print(interfaces())
