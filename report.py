"""Makes one page about a run."""

from __future__ import annotations

from pathlib import Path

import click

from dnnlib.command import CONTEXT, version
from training.runs.report import build_report


@click.command(context_settings=CONTEXT)
@click.argument("run", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--out", metavar="HTML", type=click.Path(path_type=Path), show_default="RUN/report.html", help="the page")
@version
def main(run: Path, out: Path | None) -> None:
    """Write the curves, pictures and configuration of the run folder RUN as one HTML page that needs no other file."""
    out = out or run / "report.html"
    try:
        out.write_text(build_report(run), encoding="utf-8")
    except (ValueError, OSError) as error:
        raise click.ClickException(str(error)) from error
    click.echo(out)


if __name__ == "__main__":
    main()
