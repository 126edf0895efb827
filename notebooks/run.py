"""Runs the notebooks, and keeps what they show.

    python -m notebooks.run --network=PKL --other=PKL --data=DIR

A notebook's outputs are those of its present cells: their hash is kept with them, and a test compares it.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from pathlib import Path
from typing import Any

import click
import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parent
MOST_BYTES = 400_000  # of a notebook with its outputs
TIMEOUT = 1800  # seconds of a cell


def notebooks() -> list[Path]:
    """Returns the notebooks of this folder."""
    return sorted(FOLDER.glob("*.ipynb"))


def sources_hash(notebook: Any) -> str:
    """Returns a hash of what the cells say, 16 hexadecimal digits."""
    text = "\n\n".join(f"{cell.cell_type}: {cell.source}" for cell in notebook.cells)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def executed(path: Path, folder: Path) -> Any:
    """Returns a notebook as it is after all of its cells have run in `folder`. Raises what a cell raises."""
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(notebook, timeout=TIMEOUT, kernel_name="python3", resources={"metadata": {"path": folder}})
    client.execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # times, which differ from run to run
    notebook.metadata["outputs_of"] = sources_hash(notebook)
    return notebook


@click.command()
@click.option("--network", required=True, type=click.Path(exists=True, path_type=Path), help="of the first network")
@click.option("--other", required=True, type=click.Path(exists=True, path_type=Path), help="of the second")
@click.option("--data", required=True, type=click.Path(exists=True, path_type=Path), help="that both learnt from")
def main(network: Path, other: Path, data: Path) -> None:
    """Run all notebooks, and write them with what they show."""
    asyncio.set_event_loop_policy(asyncio.DefaultEventLoopPolicy())
    for name, path in (("NETWORK", network), ("OTHER", other), ("DATA", data)):
        os.environ[f"SPLATGAN_{name}"] = str(path.resolve())
    for path in notebooks():
        nbformat.write(executed(path, FOLDER), path)
        click.echo(f"{path}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
