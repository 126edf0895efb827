"""Lays a comparison out as tables with a row per system: the metrics, with the best values marked, and the sizes."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import dnnlib

NONE = "—"


@dataclass(frozen=True)
class Column:
    """Heads a column."""

    title: str
    meaning: str = ""  # in a few words
    number: bool = True  # stands to the right


@dataclass(frozen=True)
class Cell:
    """Holds what stands in a cell, as plain text."""

    text: str = NONE
    best: bool = False
    notes: tuple[int, ...] = ()  # numbers of notes below the table


@dataclass(frozen=True)
class Row:
    """Holds the cells of a system."""

    cells: list[Cell]
    quoted: bool = False


@dataclass
class Table:
    """Holds a comparison in cells."""

    columns: list[Column]
    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def note(self, text: str) -> int:
        """Returns the number of a note, 1 for the first; equal texts have one number."""
        if text not in self.notes:
            self.notes.append(text)
        return self.notes.index(text) + 1


def quality_table(comparison: dict[str, Any]) -> Table:
    """Lays out the metrics, and the quoted figures below, from the record of comparison.json."""
    metrics, systems, quoted = comparison["metrics"], comparison["systems"], comparison["quoted"] or {}
    entries = quoted.get("entries", [])
    names = [metric["name"] for metric in metrics]
    extra = list(dict.fromkeys(name for entry in entries for name in entry["values"] if name not in names))
    table = Table(
        [
            Column("system", number=False),
            Column("kimg", "thousands of real images seen"),
            *(Column(f"{m['name']} {arrow(m)}", m["meaning"]) for m in metrics),
            *(Column(f"{name} (quoted)", "from papers") for name in extra),
        ]
    )
    best = {metric["name"]: _best(metric, systems) for metric in metrics}
    several = len(comparison["protocol"]["background"]) > 1
    for system in systems:
        cells = [_metric_cell(table, system, name, best[name]) for name in names]
        kimg = Cell() if system["kimg"] is None else Cell(_thousands(system["kimg"]))
        table.rows.append(Row([_title(table, system, several), kimg, *cells, *(Cell() for _ in extra)]))
    for entry in entries:
        table.rows.append(_quoted_row(table, entry, [*names, *extra], quoted.get("about", "")))
    return table


def size_table(comparison: dict[str, Any]) -> Table:
    """Lays out what each system is and costs, from the record of comparison.json."""
    table = Table(
        [
            Column("system", number=False),
            Column("family and preset", number=False),
            Column("scene", number=False),
            Column("parameters", "of the generator"),
            Column("checkpoint", "size of the file"),
            Column("ms/image", "from a latent, one at a time"),
            Column("ms/view", "one more view of a finished scene"),
        ]
    )
    for system in comparison["systems"]:
        texts = [
            system["name"],
            f"{system['family']}, {system['preset']}",
            system["scene"],
            short_count(system["parameters"]),
            dnnlib.format_bytes(system["checkpoint_bytes"]),
            f"{1000 * system['sec_per_image']:,.3g}",
            f"{1000 * system['sec_per_view']:,.3g}",
        ]
        table.rows.append(Row([Cell(text) for text in texts]))
    return table


def arrow(metric: dict[str, Any]) -> str:
    """Points to where a metric gets better."""
    return "↑" if metric["larger_is_better"] else "↓"


def _value(system: dict[str, Any], name: str) -> float | None:
    """Returns a measured value; None where there is none."""
    return system["results"][name].get("results", {}).get(name)


def _best(metric: dict[str, Any], systems: Sequence[dict[str, Any]]) -> float | None:
    """Returns the best value of a metric; None where there is no choice."""
    values = [value for system in systems if (value := _value(system, metric["name"])) is not None]
    if len(set(values)) < 2:
        return None
    return max(values) if metric["larger_is_better"] else min(values)


def _title(table: Table, system: dict[str, Any], several: bool) -> Cell:
    """Names a system. several: there is more than one background in the comparison."""
    notes = []
    if not system["data_known"]:
        notes.append(table.note("the file does not say which data the network was trained on"))
    if several:
        notes.append(table.note(f"reals and fakes over {system['background']}"))
    return Cell(system["name"], notes=tuple(notes))


def _metric_cell(table: Table, system: dict[str, Any], name: str, best: float | None) -> Cell:
    record, value = system["results"][name], _value(system, name)
    if value is None:
        return Cell(notes=(table.note(f"{name} of {system['name']}: {record['unavailable']}"),))
    notes = (table.note(f"{name}: {record['note']}"),) if "note" in record else ()
    return Cell(f"{value:.4g}", value == best, notes)


def _quoted_row(table: Table, entry: dict[str, Any], names: Sequence[str], about: str) -> Row:
    note = table.note(f"quoted, not measured here: {entry['source']}" + (f". {about}" if about else ""))
    values = [Cell(f"{entry['values'][name]:.4g}") if name in entry["values"] else Cell() for name in names]
    title = Cell(f"{entry['system']}, {entry['data']} (quoted)", notes=(note,))
    return Row([title, Cell(), *values], quoted=True)


def _thousands(kimg: float) -> str:
    return f"{kimg:,.0f}" if kimg >= 100 else f"{kimg:.3g}"


def short_count(count: int) -> str:
    """Formats a number of parameters: "950", "12.3 k", "4.51 M"."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return str(count)


def to_markdown(table: Table) -> str:
    """Returns the table and its notes as Markdown; quoted rows are italic, best values bold."""
    lines = [
        "| " + " | ".join(_escape(column.title) for column in table.columns) + " |",
        "|" + "|".join("---:" if column.number else "---" for column in table.columns) + "|",
    ]
    for row in table.rows:
        cells = []
        for cell in row.cells:
            text = _escape(cell.text)
            text = f"**{text}**" if cell.best else f"*{text}*" if row.quoted and cell.text != NONE else text
            cells.append(text + "".join(f" [{number}]" for number in cell.notes))
        lines.append("| " + " | ".join(cells) + " |")
    notes = [f"{number}. {_escape(note)}" for number, note in enumerate(table.notes, 1)]
    return "\n".join([*lines, *(["", *notes] if notes else []), ""])


def _escape(text: str) -> str:
    """Keeps plain text from being taken for a mark of Markdown."""
    for mark in ("\\", "|", "*", "_", "`", "<", "["):
        text = text.replace(mark, f"\\{mark}")
    return " ".join(text.split())


def to_html(table: Table) -> str:
    """Returns the table and its notes as HTML."""
    head = "".join(
        f"<th{' class=n' if c.number else ''}>{html.escape(c.title)}<small>{html.escape(c.meaning)}</small>"
        for c in table.columns
    )
    body = []
    for row in table.rows:
        cells = []
        for cell, column in zip(row.cells, table.columns, strict=True):
            text = html.escape(cell.text)
            marks = "".join(f"<sup>{number}</sup>" for number in cell.notes)
            cells.append(f"<td{' class=n' if column.number else ''}>{f'<b>{text}</b>' if cell.best else text}{marks}")
        body.append(f"<tr{' class=quoted' if row.quoted else ''}>{''.join(cells)}")
    notes = "".join(f"<li>{html.escape(note)}" for note in table.notes)
    below = f"<ol class=notes>{notes}</ol>" if notes else ""
    return f"<div class=wide><table class=comparison><tr>{head}{''.join(body)}</table></div>{below}"
