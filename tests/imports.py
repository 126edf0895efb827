"""Who may import whom, as docs/design.md has it, and what a file imports, read from the source.

Imports in functions and those for type checkers alone count as well.
"""

import ast
from pathlib import Path

from dnnlib import ROOT
from docs import sizes

PACKAGES = sizes.PACKAGES

# Package -> the packages, or rooms of them, that it may import besides itself.
LEGAL = {
    "dnnlib": set(),
    "torch_utils": {"dnnlib"},
    "gaussian": {"dnnlib", "torch_utils"},
    "training": {"dnnlib", "torch_utils", "gaussian"},
    "metrics": {
        "dnnlib", "torch_utils", "gaussian",
        "training.dataset", "training.images", "training.measure",
    },
}  # fmt: skip

# The rooms of training/, lowest first. A module imports its own room and those on earlier lines. Names without a module
# yet keep the places of rooms to come.
FLOORS = (
    ("morphable",),
    ("records", "images", "losses", "augment", "averages", "data"),
    ("published.restricted_pickle", "published.state_dicts", "published.eg3d"),
    ("networks", "published.gallery", "published.pickle_file"),
    ("control", "fields", "published.discriminator", "published.module_files"),
    ("samples",),
    ("families.inspection",),
    ("families.base",),
    ("families.options", "families.adversarial_config", "families.in_parts", "families.posed", "families.swapping"),
    ("families.adversarial",),
    ("families.blurred",),
    ("families.anchored",),
    ("families.*",),  # a room for each family; one imports another only as FAMILY_PAIRS says
    ("families",),  # the registry: training/families/__init__.py alone
    ("config",),
    ("presets",),
    ("dataset", "step"),
    ("visualization", "meshes"),
    ("published.records",),
    ("checkpoint",),
    ("runs",),
    ("safety",),
    ("training_loop",),
    ("measure", "replay", "inversion", "viewer"),
    ("comparison",),
)
FAMILY_PAIRS = {("cgof", "pigan")}
EMPTY = {"training", "training.published"}  # packages whose __init__.py imports nothing


def module_of(path: Path, root: Path) -> str:
    return ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")


def imported_modules(path: Path) -> set[str]:
    """Dotted names of everything that a file imports, at any depth; `from a import b` gives a and a.b."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute here"
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def ours(path: Path) -> set[str]:
    """What a file imports of our packages, as far as modules go: `from training import dataset` is training.dataset."""
    names = {name for name in imported_modules(path) if name.split(".")[0] in PACKAGES}
    modules = {name for name in names if _exists(name)}
    kept = {name for name in modules if not any(other.startswith(name + ".") for other in modules)}
    return kept | {name for name in names - modules if not any(name.startswith(m + ".") for m in modules)}


def _exists(name: str) -> bool:
    place = ROOT.joinpath(*name.split("."))
    return place.with_suffix(".py").exists() or (place / "__init__.py").exists()


def violations(path: Path, package: str, relative: str) -> list[str]:
    legal = LEGAL[package] | {package}

    def allowed(name: str) -> bool:
        return any(name == room or name.startswith(room + ".") for room in legal)

    return [f"{relative} imports {name}" for name in sorted(ours(path)) if not allowed(name)]


# ---------------------------------------------------------------- rooms of training/


def room_of(module: str) -> tuple[int, str]:
    """The floor of a module of training/, and the name of its room. Fails for one that has no place."""
    name = module.removeprefix("training.")
    parts = name.split(".")
    if parts[0] == "families" and len(parts) > 1:
        special = ".".join(parts[:2])
        family = special not in {room for floor in FLOORS for room in floor}
        return _floor("families.*" if family else special), special
    for length in (2, 1):  # a longer name beats a shorter one
        room = ".".join(parts[:length])
        if (floor := _floor(room)) >= 0:
            return floor, room
    raise AssertionError(f"{module} has no place in the order of docs/design.md")


def _floor(room: str) -> int:
    return next((i for i, floor in enumerate(FLOORS) if room in floor), -1)


def upward(module: str, imported: str) -> bool:
    """Whether an import of one module of training/ by another runs against the order."""
    if imported in EMPTY:
        return False
    (floor, room), (below, other) = room_of(module), room_of(imported)
    pair = (room.removeprefix("families."), other.removeprefix("families."))
    return room != other and below >= floor and pair not in FAMILY_PAIRS


def inner_violations(path: Path, module: str) -> list[str]:
    found = sorted(name for name in ours(path) if name.split(".")[0] == "training")
    return [f"{module} imports {name}" for name in found if upward(module, name)]
