"""Lays a comparison out as a table: a row per system, the best value of each metric marked, quoted figures below."""

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


def build_table(comparison: dict[str, Any]) -> Table:
    """Lays out the record of comparison.json."""
    metrics, systems = comparison["metrics"], comparison["systems"]
    entries = (comparison["quoted"] or {}).get("entries", [])
    known = {metric["name"] for metric in metrics}
    extra = list(dict.fromkeys(name for entry in entries for name in entry["values"] if name not in known))
    table = Table(
        [
            Column("system", "", number=False),
            Column("family", "", number=False),
            Column("kimg", "thousands of real images seen"),
            *(_metric_column(metric) for metric in metrics),
            *(Column(f"{name} (quoted)", "from papers") for name in extra),
            Column("parameters", "of the generator"),
            Column("scene", "size of a scene", number=False),
            Column("ms/image", "from a latent, one at a time"),
            Column("ms/view", "one more view of a finished scene"),
            Column("checkpoint", "size of the file"),
        ]
    )
    best = {metric["name"]: _best(metric, systems) for metric in metrics}
    several = len(comparison["protocol"]["background"]) > 1
    for system in systems:
        table.rows.append(_system_row(table, system, metrics, best, len(extra), several))
    for entry in entries:
        names = [*(metric["name"] for metric in metrics), *extra]
        table.rows.append(_quoted_row(table, entry, names, comparison["quoted"].get("about", "")))
    return table


def _metric_column(metric: dict[str, Any]) -> Column:
    return Column(f"{metric['name']} {'↑' if metric['larger_is_better'] else '↓'}", metric["meaning"])


def _value(system: dict[str, Any], name: str) -> float | None:
    """Returns a measured value; None where there is none."""
    return system["results"][name].get("results", {}).get(name)


def _best(metric: dict[str, Any], systems: Sequence[dict[str, Any]]) -> float | None:
    """Returns the best value of a metric; None with fewer than two to choose from."""
    values = [value for system in systems if (value := _value(system, metric["name"])) is not None]
    if len(values) < 2:
        return None
    return max(values) if metric["larger_is_better"] else min(values)


def _system_row(
    table: Table,
    system: dict[str, Any],
    metrics: Sequence[dict[str, Any]],
    best: dict[str, float | None],
    blanks: int,  # columns of quoted figures alone
    several: bool,  # backgrounds in the comparison
) -> Row:
    notes = []
    if not system["data_known"]:
        notes.append(table.note("the file does not say which data the network was trained on"))
    if several:
        notes.append(table.note(f"reals and fakes over {system['background']}"))
    return Row(
        [
            Cell(system["name"], notes=tuple(notes)),
            Cell(f"{system['family']} ({system['preset']})"),
            Cell(NONE if system["kimg"] is None else f"{system['kimg']:,.4g}"),
            *(_metric_cell(table, system, metric["name"], best[metric["name"]]) for metric in metrics),
            *(Cell() for _ in range(blanks)),
            Cell(short_count(system["parameters"])),
            Cell(system["scene"]),
            Cell(f"{1000 * system['sec_per_image']:,.3g}"),
            Cell(f"{1000 * system['sec_per_view']:,.3g}"),
            Cell(dnnlib.format_bytes(system["checkpoint_bytes"])),
        ]
    )


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
    return Row([title, Cell(), Cell(), *values, *(Cell() for _ in range(5))], quoted=True)


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
