"""Plans without datasets: as many trials as asked for, that share galleries and centers."""

from orchestrator.plan import Plan, Stage, Trial
from orchestrator.store import StageStore, digest


def synthetic_plan(trials: int, *, share: int = 4, study: str = "synthetic") -> Plan:
    """Return a plan in which ``share`` trials, that differ in gamma, have a gallery in common.

    Every second group of trials has a centers stage of its own before the gallery.
    """
    plan = Plan(study)
    for number in range(trials):
        group, gamma = divmod(number, share)
        stages: dict[str, str] = {}
        if group % 2:
            stages["centers"] = _add(plan, "centers", f"csq · 16 bit · d · s{group}", group, {})
        inputs = dict(stages)
        stages["gallery"] = _add(plan, "gallery", f"csch · rn50 · d · s{group}", group, inputs)
        label = f"csch gamma={gamma} · v3s→rn50 · 16 bit · d · s{group}"
        inputs = {"gallery": stages["gallery"]}
        stages["query"] = _add(plan, "query", label, [group, gamma], inputs)
        inputs = {"query": stages["query"], "gallery": stages["gallery"]}
        stages["metrics"] = _add(plan, "metrics", label, [group, gamma], inputs)
        plan.add(
            Trial(
                id=stages["metrics"],
                method="csch",
                dataset="d",
                pair="v3s→rn50",
                bits=16,
                seed=group,
                params={"gamma": gamma},
                setting=f"gamma={gamma}",
                query_backbone="q",
                gallery_backbone="g",
                protocol="p",
                at="all",
                stages=stages,
            )
        )
    return plan


def _add(plan: Plan, kind, label: str, number, inputs: dict[str, str]) -> str:
    identity = {"kind": kind, "number": number, "inputs": inputs}
    stage_id = digest(identity)
    if stage_id not in plan.stages:
        setup = {"threads": 1, "recipe": {}}
        plan.stages[stage_id] = Stage(
            stage_id, kind, identity, inputs, setup, None, f"{kind} {label}", (0, 0)
        )
    return stage_id


def finish(store: StageStore, stage: Stage, seconds: float = 3.0) -> None:
    """Put a finished stage without files into the store."""
    with store.lease(stage.id):
        store.commit(stage.id, stage.kind, stage.identity, {}, {"seconds": seconds})
