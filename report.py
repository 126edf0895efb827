"""Makes one page about a run."""

from __future__ import annotations

from pathlib import Path

import click

import dnnlib
from dnnlib.command import CONTEXT, in_a_folder, version
from training.runs.report import build_report


@click.command(context_settings=CONTEXT)
@click.argument("run", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--out", metavar="HTML", type=click.Path(dir_okay=False, path_type=Path), callback=in_a_folder,
              show_default="RUN/report.html", help="the page")  # fmt: skip
@version
def main(run: Path, out: Path | None) -> None:
    """Write the curves, pictures and configuration of the run folder RUN as one HTML page that needs no other file."""
    out = out or run / "report.html"
    try:
        out.write_text(build_report(run), encoding="utf-8")
    except (ValueError, OSError) as error:
        raise click.ClickException(dnnlib.format_error(error)) from error
    click.echo(out)


if __name__ == "__main__":
    main()
