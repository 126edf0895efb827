"""Counts what docs/design.md limits: lines of files and functions, and parameters without a type.

    python -m docs.sizes

Counts the packages and the root scripts; tests, benchmarks and docs are left out.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dnnlib import ROOT

PACKAGES = ("dnnlib", "torch_utils", "gaussian", "training", "metrics")
FILE_LINES, FUNCTION_LINES, ANNOTATED_SHARE = 400, 60, 0.99

Function = ast.FunctionDef | ast.AsyncFunctionDef


def sources() -> Iterator[Path]:
    """Yields the files of the packages and the root scripts."""
    for package in PACKAGES:
        yield from sorted((ROOT / package).rglob("*.py"))
    yield from sorted(ROOT.glob("*.py"))


@dataclass(frozen=True)
class Sizes:
    """Holds the counts of some files."""

    files: dict[str, int]  # lines by path
    functions: dict[str, int]  # lines by path and name, from `def` on; of methods and nested functions too
    parameters: int  # of all functions but self, cls and those of lambdas
    bare: list[str]  # parameters without a type: path, function and name

    @property
    def annotated_share(self) -> float:
        """Returns the share of the parameters that have a type."""
        return 1 - len(self.bare) / max(self.parameters, 1)

    def over(self) -> list[str]:
        """Returns a line for everything that is over a limit."""
        lines = [f"{name}: {n} lines, at most {FILE_LINES}" for name, n in self.files.items() if n > FILE_LINES]
        for name, count in self.functions.items():
            if count > FUNCTION_LINES:
                lines.append(f"{name}: {count} lines, at most {FUNCTION_LINES}")
        if self.annotated_share < ANNOTATED_SHARE:
            lines += [f"{name}: no type" for name in self.bare]
        return lines


def count(paths: Iterator[Path] | list[Path], root: Path = ROOT) -> Sizes:
    """Counts files below `root`."""
    sizes = Sizes({}, {}, 0, [])
    parameters = 0
    for path in paths:
        text, name = path.read_text(), path.relative_to(root).as_posix()
        sizes.files[name] = len(text.splitlines())
        for function in (node for node in ast.walk(ast.parse(text)) if isinstance(node, Function)):
            where = f"{name}:{function.lineno} {function.name}"
            assert function.end_lineno is not None
            sizes.functions[where] = function.end_lineno - function.lineno + 1
            own = _parameters(function)
            parameters += len(own)
            sizes.bare.extend(f"{where}({a.arg})" for a in own if a.annotation is None)
    return Sizes(sizes.files, sizes.functions, parameters, sizes.bare)


def _parameters(function: Function) -> list[ast.arg]:
    arguments = function.args
    found = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    found += [extra for extra in (arguments.vararg, arguments.kwarg) if extra is not None]
    return [argument for argument in found if argument.arg not in ("self", "cls")]


def main() -> None:
    """Prints the counts, the largest ones, and what is over a limit."""
    sizes = count(sources())
    lines = sum(sizes.files.values())
    print(f"{len(sizes.files)} files with {lines} lines, {len(sizes.functions)} functions")
    print(f"{sizes.parameters} parameters, {sizes.annotated_share:.2%} with a type")
    for kind, counts in (("files", sizes.files), ("functions", sizes.functions)):
        print(f"Longest {kind}:")
        for name in sorted(counts, key=lambda n: -counts[n])[:5]:
            print(f"  {counts[name]:4d}  {name}")
    print("\n".join(["Over a limit:", *(f"  {line}" for line in sizes.over() or ["nothing"])]))


if __name__ == "__main__":
    main()
