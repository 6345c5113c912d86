"""The command ``export``: a trained network as files that run elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from orchestrator.command_line import EXIT_FAILED, Choice, check_home, echo_json, json_option

if TYPE_CHECKING:
    from orchestrator.serving.export import Exported, NotEqualError


@click.command()
@click.argument("trial", metavar="TRIAL")
@click.option(
    "--format",
    "form",
    type=Choice("format", ["onnx", "torchscript", "safetensors"]),
    default="onnx",
    show_default=True,
    help="onnx runs anywhere; safetensors is for timm; torchscript is deprecated by torch.",
)
@click.option(
    "--side",
    type=Choice("side", ["query", "gallery"]),
    default="query",
    show_default=True,
    help="Which network of the pair.",
)
@click.option(
    "--input",
    "kind",
    type=Choice("input", ["pixels", "tensor"]),
    help="pixels: uint8 images of any size, resized by the network. tensor: float32 images of the "
    "network's size in [0, 1].  [default: pixels; tensor for safetensors]",
)
@click.option("--int8", is_flag=True, help="Also quantize the query network to 8-bit integers.")
@click.option(
    "--images",
    metavar="PATH",
    help="Check on these images, a folder, zip or file, not on test queries.",
)
@click.option(
    "--count",
    type=click.IntRange(1, 1_000_000),
    default=1000,
    show_default=True,
    help="Images to check on, at most.",
)
@click.option(
    "--tolerance",
    type=click.FloatRange(0, 1),
    default=1e-5,
    show_default=True,
    help="Outputs nearer to zero than this may change sign.",
)
@click.option("--no-check", is_flag=True, help="Do not compare the codes with torch's.")
@click.option(
    "--threads",
    type=click.IntRange(1, 256),
    default=1,
    show_default=True,
    help="CPU threads where speed is compared.",
)
@click.option("-o", "--output", metavar="FOLDER", help="Where to.  [default: export-TRIAL-...]")
@click.option("--force", is_flag=True, help="Write into a folder that holds other things.")
@json_option
def export(
    trial: str,
    form: str,
    side: str,
    kind: str | None,
    int8: bool,
    images: str | None,
    count: int,
    tolerance: float,
    no_check: bool,
    threads: int,
    output: str | None,
    force: bool,
    as_json: bool,
) -> None:
    """Export a trained network, and check that it gives the same codes.

    TRIAL is the id of a finished trial, its first digits, or its label; STUDY:TRIAL looks in one
    study. The codes of what was exported are compared with torch's on real images; where they
    differ by more than rounding it is removed again, and the exit code is 1.
    """
    from orchestrator.serving.export import NotEqualError, Wanted, default_folder
    from orchestrator.serving.export import export as run
    from orchestrator.session import home_folder

    check_home(home_folder())
    wanted = Wanted(
        format=form,  # type: ignore[arg-type]
        side=side,  # type: ignore[arg-type]
        input=kind or ("tensor" if form == "safetensors" else "pixels"),  # type: ignore[arg-type]
        int8=int8,
        check=not no_check,
        images=images,
        count=count,
        tolerance=tolerance,
        threads=threads,
    )
    wanted.refuse()

    from orchestrator.serving.trained import open_trial

    opened = open_trial(None, trial)
    target = Path(output).expanduser() if output else default_folder(opened, wanted)
    try:
        done = run(opened, wanted, target, force=force, say=_say)
    except NotEqualError as error:
        _tell_difference(error, as_json)
        raise SystemExit(EXIT_FAILED) from None
    if as_json:
        echo_json(done.to_json())
    else:
        click.echo("\n".join(_lines(done)))
    if done.speed is not None and done.machine["warning"]:
        click.echo(f"warning: {done.machine['warning']}", err=True)


def _say(line: str) -> None:
    click.echo(line, err=True)


def _tell_difference(error: NotEqualError, as_json: bool) -> None:
    if as_json:
        echo_json({"folder": None, "check": error.parity.to_json()})
    parity = error.parity
    click.echo(
        f"asymbench: the exported network does not give the same codes, and was removed:\n"
        f"    {parity.text()}",
        err=True,
    )
    if parity.rounding:
        click.echo(
            "    if sums of outputs this large may round so, allow it with --tolerance", err=True
        )


def _lines(done: Exported) -> list[str]:
    """Return what people are told."""
    sizes = ", ".join(f"{name} {size / 1e6:.2f} MB" for name, size in done.bytes.items())
    lines = [f"exported {done.folder}", f"files    {sizes}"]
    if done.parity is None:
        lines.append("check    not done")
    else:
        lines.append(f"check    {done.config['check']['on']}: {done.parity.text()}")
    if done.speed is not None:
        lines += _speed(done)
    if done.int8 is not None:
        lines += _int8(done.int8)
    return lines


def _speed(done: Exported) -> list[str]:
    from orchestrator.serving.parity_speed import milliseconds

    assert done.speed is not None
    speed, form = done.speed, done.config["format"]
    ratio = speed.torch.median / speed.exported.median
    threads = f"{speed.threads} thread{'s' if speed.threads > 1 else ''}"
    lines = [
        f"speed    one image, {threads}, median (5 %-95 %)",
        f"         torch {milliseconds(speed.torch)}",
        f"         {form} {milliseconds(speed.exported)}, {ratio:.1f} times as fast",
    ]
    if speed.int8 is not None:
        ratio = speed.exported.median / speed.int8.median
        full, small = list(done.bytes.values())[:2]
        lines += [
            f"         int8 {milliseconds(speed.int8)}, {ratio:.1f} times as fast as {form}",
            f"int8     {full / small:.1f} times smaller",
        ]
    return lines


def _int8(int8: dict[str, Any]) -> list[str]:
    share = int8["flipped"] / int8["bits"]
    images = f"{int8['images_differing']:,} of {int8['images']:,} images"
    lines = [f"flips    {int8['flipped']:,} of {int8['bits']:,} bits ({share:.2%}), in {images}"]
    for split, note in (("validation", ""), ("test", " (reported only, chooses nothing)")):
        score = int8["map"][split]
        if score is not None:
            before, after = score["before"], score["after"]
            lines.append(
                f"mAP      {split} queries: {before:.4f} before, {after:.4f} after"
                f" ({after - before:+.4f}){note}"
            )
    return lines
