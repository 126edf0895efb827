"""Builds HTML pages that need no other file: their style, sections, pictures and tables of values."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Iterable
from typing import Any

STYLE = """
:root{color-scheme:light dark;--ink:#222;--soft:#777;--paper:#fff;--grid:#e4e4e4}
@media(prefers-color-scheme:dark){:root{--ink:#ddd;--soft:#999;--paper:#16181c;--grid:#333}}
body{font:15px/1.45 system-ui,sans-serif;color:var(--ink);background:var(--paper);
  max-width:1440px;margin:2em auto;padding:0 1em}
.charts{display:grid;grid-template-columns:repeat(auto-fill,minmax(400px,1fr));gap:1.2em 1.6em}
figure{margin:0}figcaption{font-weight:600}svg{width:100%}svg text{font-size:11px;fill:var(--soft)}
.grid{stroke:var(--grid)}
.line{fill:none;stroke:var(--c);stroke-width:1.6}.band{fill:var(--c);opacity:.18}.dot{fill:var(--c)}
.key{font-size:13px;display:flex;flex-wrap:wrap;gap:.2em 1em}

.key i{display:inline-block;
  width:.8em;height:.8em;margin-right:.4em;background:var(--c)}
.s0{--c:#0072b2}.s1{--c:#d55e00}
.s2{--c:#009e73}.s3{--c:#cc79a7}
.s4{--c:#e69f00}.s5{--c:#56b4e9}.s6{--c:#8c6bb1}.s7{--c:#888}
img{max-width:100%}
.fakes{display:grid;grid-template-columns:repeat(auto-fill,minmax(420px,1fr));gap:1em}.fakes img{width:100%}
table{border-collapse:collapse;font-size:13px}
td{padding:.1em 1em .1em 0;vertical-align:top;border-bottom:1px solid var(--grid)}
"""


def page(title: str, sections: Iterable[str], style: str = "") -> str:
    """Returns a whole page. title: plain text; style: CSS besides `STYLE`."""
    head = f"<meta charset=utf-8><meta name=viewport content='width=device-width'><title>{html.escape(title)}</title>"
    body = "".join(sections)
    return f"<!doctype html><html lang=en><head>{head}<style>{STYLE}{style}</style></head><body>{body}</body></html>"


def section(title: str, content: str) -> str:
    """Puts a heading over HTML; nothing over nothing."""
    return f"<h2>{html.escape(title)}</h2>{content}" if content else ""


def grid(figures: Iterable[str]) -> str:
    """Lays figures side by side, as many as the window has room for; nothing if there is none."""
    content = "".join(figures)
    return f"<div class=charts>{content}</div>" if content else ""


def picture(png: bytes, name: str) -> str:
    """Returns a figure of a PNG under its name, which is plain text."""
    name, data = html.escape(name), base64.b64encode(png).decode()
    return f'<figure><figcaption>{name}</figcaption><img alt="{name}" src="data:image/png;base64,{data}"></figure>'


def value_table(record: dict[str, Any]) -> str:
    """Returns a table with a row for each value of a nested record."""
    rows = (f"<tr><td>{html.escape(name)}<td>{html.escape(json.dumps(value))}" for name, value in _flat(record))
    return f"<table>{''.join(rows)}</table>"


def _flat(value: Any, name: str = "") -> Iterable[tuple[str, Any]]:
    """Yields names and values of nested records: "objective.gamma", "stages[1].batch"; lists of plain values stay."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _flat(inner, f"{name}.{key}" if name else key)
    elif isinstance(value, list) and any(isinstance(inner, dict) for inner in value):
        for i, inner in enumerate(value):
            yield from _flat(inner, f"{name}[{i}]")
    else:
        yield name, value
