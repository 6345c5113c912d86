"""``asymbench demo``: a page on this machine where an image finds others."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import click

from orchestrator.command_line import interrupt
from orchestrator.use_commands import device_option, gallery_of, open_named
from retrieval.errors import InputError

if TYPE_CHECKING:
    from orchestrator.serving.trained import Device


@click.command()
@click.argument("trials", nargs=-1, required=True, metavar="TRIAL [TRIAL2]")
@click.option(
    "--index",
    "folders",
    multiple=True,
    help="A folder of `asymbench index`; one for both trials, or one each. Default: the study's.",
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Where to listen.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=0, show_default=True, help="0: any free."
)
@device_option
def demo(
    trials: tuple[str, ...], folders: tuple[str, ...], host: str, port: int, device: Device
) -> None:
    """Serve a page where one drops an image and sees what is found.

    Of one TRIAL it shows the answers of its query network and of its gallery network next to each
    other; of two, those of both query networks. Each with distances, codes and the time it took.
    Ctrl-C ends it.
    """
    from cluster.resources import visible_cpus
    from orchestrator.serving.demo import Queries, panels
    from orchestrator.serving.server import Demo, address_of, listen, serve

    if len(trials) > 2:
        raise InputError("one trial, or two", key="TRIAL", value=trials[2])
    if len(folders) > 1 and len(folders) != len(trials):
        raise InputError(
            f"one for all, or one for each of the trials; {len(folders)} are given", key="--index"
        )
    each = list(folders or (None,))
    each *= len(trials) // len(each)
    signal.signal(signal.SIGTERM, interrupt)
    with listen(host, port) as listening:
        opened = [open_named(trial, device) for trial in trials]
        galleries = [
            gallery_of(trained, folder) for trained, folder in zip(opened, each, strict=True)
        ]
        shown = panels(opened, galleries, threads=visible_cpus())
        app = Demo(shown, Queries(opened[0]), host)
        try:
            app.warm_up()
            click.echo(f"{address_of(listening)}  (Ctrl-C ends)")
            serve(app.app(), listening)
        finally:
            app.close()
