"""What a query network costs, for searches that trade it against mAP; measured once a study."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from methods.pairs import SideSpec
from orchestrator.store import digest, read_json, write_json


def query_cost(name: str, side: SideSpec, bits: int, head: str, folder: Path) -> float:
    """Return one cost of a query network with a hash head.

    Args:
        name: "query_flops" (of one image, a multiply-add counting 2), "query_parameters", or
            "query_latency" (milliseconds, the median of a forward pass of one image in float32 on
            one thread of this machine's processor).
        side: of the query.
        bits: code length B.
        head: the hash head.
        folder: where measured costs are kept, so that a study has one value of each.
    """
    given = {"side": side.identity(), "bits": bits, "head": head}
    path = folder / "query_costs" / f"{digest(given)[:24]}.json"
    costs: dict[str, Any] = read_json(path) or {}
    if name not in costs:
        costs |= (
            _latency(side, bits, head) if name == "query_latency" else _sizes(side, bits, head)
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, costs)
    return float(costs[name])


def _sizes(side: SideSpec, bits: int, head: str) -> dict[str, float]:
    from methods.efficiency import build_encoder, encoder_cost

    cost = encoder_cost(build_encoder(side, head, bits, "query"), side.size)  # type: ignore[arg-type]
    return {"query_flops": float(cost.flops), "query_parameters": float(cost.parameters)}


def _latency(side: SideSpec, bits: int, head: str) -> dict[str, float]:
    from methods.efficiency import build_encoder, time_network

    network = build_encoder(side, head, bits, "query")  # type: ignore[arg-type]
    timing, _ = time_network(network, (3, side.size, side.size), 1)
    return {"query_latency": round(1e3 * timing.median, 4)}
