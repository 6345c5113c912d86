"""The process that decodes blocks of a store: lines of JSON in, lines of JSON out.

Started by ``retrieval.images.build``, by nothing else. The first line says what to open; each
other line names a block. It ends with its input.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any


def main() -> None:
    """Serve until the input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # What a library prints must not come between the answers.
    answers = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)

    def tell(answer: dict[str, Any]) -> None:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    order = json.loads(sys.stdin.readline())
    try:
        _serve(order, tell)
    except BrokenPipeError:  # nobody listens any more
        os._exit(1)


def _serve(order: dict[str, Any], tell: Any) -> None:
    from retrieval.datasets import open_dataset
    from retrieval.images.build import Layout, MixedSizesError, decode_block

    try:
        dataset = open_dataset(order["dataset"], home=Path(order["home"]))
        same = dataset.index().fingerprint == order["fingerprint"]
    except Exception:  # whoever asks then decodes by itself, and meets the error there
        same = False
    if not same:
        tell({"ready": False})
        return
    common = order["layout"]["common"]
    layout = Layout(**{**order["layout"], "common": None if common is None else tuple(common)})
    file = os.open(order["pixels"], os.O_WRONLY)
    with dataset.open_decoder() as decode:
        tell({"ready": True})
        for line in sys.stdin:
            block = json.loads(line)["block"]
            try:
                done = decode_block(decode, layout, block, file)
            except MixedSizesError:
                tell({"mixed": True})
            except OSError as error:
                tell({"errno": error.errno or 0})
            except Exception as error:
                tell({"failed": f"{type(error).__name__}: {error}"})
            else:
                tell({"crc": done.crc, "errors": done.errors})
