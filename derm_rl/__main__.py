"""Command line: ``derm-rl reproduce``, ``presets``, ``figures``, ``fetch``, ``captions``."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup


class _OneLine(TyperGroup):
    """What a user can mend is one line, not a traceback; so is Ctrl-C."""

    def invoke(self, ctx: Any) -> Any:
        from derm_rl.errors import mendable

        try:
            return super().invoke(ctx)
        except Exception as error:
            if (line := mendable(error)) is None:
                raise
            typer.echo(f"derm-rl: {line}", err=True)
            raise typer.Exit(getattr(error, "exit_status", 1)) from None
        except KeyboardInterrupt:
            typer.echo("derm-rl: interrupted; the same command continues", err=True)
            raise typer.Exit(130) from None


app = typer.Typer(
    cls=_OneLine,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="Reproduce RL4Med-DDPO (fine-tune, align with DDPO, measure, draw) and DermaSynth "
    "(image-text pairs, checked and reviewed). "
    "**Research only; not for diagnosis.**",
)


@app.callback()
def _masked() -> None:
    from derm_rl.masking import guard

    guard()


Preset = Annotated[
    str, typer.Option("--preset", "-p", help="Settings to use: see `derm-rl presets`.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a setting, e.g. ddpo.epochs=3."),
]
DataRoot = Annotated[
    Path | None, typer.Option("--data-root", metavar="DIR", help="Folder of the real images.")
]


def _config(
    preset: str,
    overrides: list[str] | None = None,
    data_root: Path | None = None,
    real_images: bool = True,
):
    """The checked preset, with its images if ``real_images``."""
    from derm_rl.config import check_data_root, load

    config = load(preset, tuple(overrides or ()), data_root)
    if real_images:
        check_data_root(config)
    return config


@app.command()
def reproduce(
    preset: Preset = "demo",
    only: Annotated[
        str | None, typer.Option(metavar="STAGE", help="Run this stage alone, e.g. 03.")
    ] = None,
    start: Annotated[
        str | None, typer.Option("--from", metavar="STAGE", help="Rerun this stage and all after.")
    ] = None,
    overrides: Overrides = None,
    data_root: DataRoot = None,
    jobs: Annotated[int, typer.Option(min=1, help="Independent stages to run at once.")] = 1,
) -> None:
    """Run the notebooks of a preset, in order, and draw its figures.

    A stage whose notebook, code, settings and inputs have not changed is skipped.

    Examples:

        derm-rl reproduce

        derm-rl reproduce --preset ham10000 --data-root ~/HAM10000

        derm-rl reproduce --from 04 --set ddpo.epochs=60
    """
    from derm_rl.reproduce import run

    run(_config(preset, overrides, data_root), only=only, start=start, jobs=jobs)


@app.command()
def presets(
    show: Annotated[
        str | None, typer.Option(metavar="PRESET", help="Every setting of one preset.")
    ] = None,
) -> None:
    """List the presets, or show all settings of one with their meaning."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from derm_rl import config

    table = Table(box=None, pad_edge=False)
    if show is None:
        table.add_column("preset", style="bold")
        table.add_column("what it is for")
        for name, description in config.presets().items():
            table.add_row(escape(name), escape(description))
    else:
        for column in ("setting", "value", "meaning"):
            table.add_column(column)
        for key, value, meaning in config.describe(_config(show, real_images=False)):
            table.add_row(key, escape(str(value)), escape(meaning))
    Console().print(table)


@app.command()
def figures(
    preset: Preset = "demo", overrides: Overrides = None, data_root: DataRoot = None
) -> None:
    """Redraw the figures of a preset from its finished stages, without training anything."""
    from derm_rl.figures.redraw import redraw

    for path in redraw(_config(preset, overrides, data_root)):
        typer.echo(path)


@app.command()
def fetch(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="E.g. pad_ufes_20.")],
    to: Annotated[
        Path | None, typer.Option("--to", metavar="DIR", help="Folder to fetch into.")
    ] = None,
    accept_licence: Annotated[
        bool, typer.Option("--accept-licence", help="Do not ask, for scripts.")
    ] = False,
    registry: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Addresses and checksums (YAML) of your own."),
    ] = None,
) -> None:
    """Download an open-access source, or say what to get from where.

    Files that are there and right are not fetched again.

    Examples:

        derm-rl fetch pad_ufes_20

        derm-rl fetch pad_ufes_20 --to ~/PAD-UFES-20 --registry mirror.yaml
    """
    from derm_rl import paths
    from derm_rl.data import fetch as downloads

    known = downloads.read_registry(registry or downloads.REGISTRY)
    about, listing = downloads.select(source, known)
    folder = to or paths.RUNS / "sources" / about.name
    typer.echo(downloads.terms(about))
    if about.name == "phantom":
        typer.echo("Nothing to fetch: its images are drawn when they are looked at.")
        return
    if not listing.files:
        if registry:
            raise downloads.FetchError(f"{registry}: no files of {about.name} are listed")
        typer.echo(downloads.instructions(about, listing, folder))
        raise typer.Exit(1)
    if not accept_licence:
        typer.confirm(f"Do you accept the licence, {about.licence}?", abort=True)
    done = downloads.fetch(listing, folder)
    new = sum(state == "fetched" for state in done.values())
    typer.echo(f"{new} files fetched, {len(done) - new} were there: {folder}")


captions = typer.Typer(
    no_args_is_help=True,
    help="Image-text pairs beside the notebooks: what asking would cost, batch files, ledgers.",
)
app.add_typer(captions, name="captions")


@captions.command()
def estimate(
    preset: Preset = "demo",
    overrides: Overrides = None,
    data_root: DataRoot = None,
    price: Annotated[
        tuple[float, float] | None,
        typer.Option(metavar="IN OUT", help="US dollars per million input and output tokens."),
    ] = None,
) -> None:
    """Requests, tokens and cost of a preset's pairs, without asking anything.

    Example:

        derm-rl captions estimate --set captions.teacher=openai:gpt-4o
    """
    from derm_rl.captions import pairs

    config = _config(preset, overrides, data_root, real_images=False)
    typer.echo(f"{config.captions.teacher}: {pairs.dry_run(config, price)}")


@captions.command("write-batch")
def write_batch(
    to: Annotated[Path, typer.Argument(metavar="FILE", help="E.g. batch/requests.jsonl.")],
    preset: Preset = "demo",
    overrides: Overrides = None,
    data_root: DataRoot = None,
) -> None:
    """Write the unanswered requests as files in OpenAI's batch format, for `vllm run-batch` too.

    Of a conversation only the next turn can be written: read the results, then write again.
    """
    from derm_rl.captions import batch, pairs

    config = _config(preset, overrides, data_root, real_images=False)
    with pairs.opened(config) as (teacher, asked, ledger):
        files = batch.write_requests(teacher, asked, ledger, to)
    typer.echo("\n".join(map(str, files)) or "every request is answered: nothing to write")


@captions.command("read-batch")
def read_batch(
    results: Annotated[list[Path], typer.Argument(metavar="RESULTS…", help="Result files.")],
    requests: Annotated[
        list[Path], typer.Option(metavar="FILE", help="What write-batch wrote; repeatable.")
    ],
    preset: Preset = "demo",
    overrides: Overrides = None,
) -> None:
    """Store results of batches in the ledger; then `derm-rl reproduce --only 09` uses them."""
    from derm_rl.captions import batch, pairs
    from derm_rl.captions.ledger import Ledger

    config = _config(preset, overrides, real_images=False)
    with Ledger(pairs.ledger_path(config)) as ledger:
        typer.echo(batch.read_results(results, ledger, requests, pairs.provider(config)))


@captions.command("merge-ledgers")
def merge_ledgers(
    others: Annotated[list[Path], typer.Argument(metavar="LEDGER…", help="Shards to add.")],
    preset: Preset = "demo",
) -> None:
    """Add the answers of other machines' ledgers to a preset's own."""
    from derm_rl.captions import pairs
    from derm_rl.captions.ledger import merge

    typer.echo(merge(pairs.ledger_path(_config(preset, real_images=False)), *others))


def main() -> None:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends its notebooks, as Ctrl-C does
    app()


if __name__ == "__main__":
    main()
