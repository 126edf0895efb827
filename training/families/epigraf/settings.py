"""Reads settings out of the configuration objects that published EpiGRAF files carry, which are inert data here.

A network holds its part of the run's tree (OmegaConf): a node has "_content", names to nodes, or "_val"; "_parent"
leads to the root. A value "${a.b}" stands for another one, named from the root.
"""

from __future__ import annotations

import re
from typing import Any

from training.published.restricted_pickle import Instance

MAX_HOPS = 32  # nodes on the way to a value
_REFERENCE = re.compile(r"\$\{([A-Za-z_][\w.]*)\}")


class Settings:
    """Looks values up in a tree of stored nodes."""

    def __init__(self, root: Any):
        self.root = root if isinstance(root, Instance) else None

    def get(self, path: str, default: Any, *kinds: type) -> Any:
        """Returns the value at a path of names "a.b" if it is there and of one of the types, else the default.

        bool is an int only where it is asked for.
        """
        found = self._find(path)
        legal = isinstance(found, kinds) and (bool in kinds or not isinstance(found, bool))
        return found if legal else default

    def _find(self, path: str) -> Any:
        node: Any = self.root
        names = path.split(".")
        for _ in range(MAX_HOPS):
            if isinstance(node, Instance) and "_val" in node.state:
                node = node.state["_val"]
            reference = _REFERENCE.fullmatch(node) if isinstance(node, str) else None
            if reference:
                node, names = _top(self.root), reference[1].split(".") + names
                continue
            if not names:
                return None if isinstance(node, Instance) else node
            content = node.state.get("_content") if isinstance(node, Instance) else None
            node = content.get(names.pop(0)) if isinstance(content, dict) else None
            if node is None:
                return None
        return None


def _top(node: Any) -> Any:
    for _ in range(MAX_HOPS):
        parent = node.state.get("_parent") if isinstance(node, Instance) else None
        if not isinstance(parent, Instance):
            return node
        node = parent
    return None
