"""What the ranks of tests/methods/test_parallel.py do: four processes, started once.

Each experiment runs with one worker in the first process, and with two and four workers in as many
of them. What came out, and how far apart it is, goes into a file of the first process.
"""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from timm.layers import BatchNormAct2d, DropPath
from torch import nn

from methods import parallel
from methods.base import METHODS, Schedule, Task, build_method
from methods.centers import make_centers
from methods.networks import HashNetwork, build_network, hash_head, parameter_groups
from methods.pairs import SideSpec
from methods.recipe import Recipe
from methods.training import Learner, LiveTeacher, Trainer, TrainingData, encode
from retrieval.augmentation import Augmentation, Views
from retrieval.errors import InputError
from retrieval.streams import torch_stream

RANKS = 4
N, BITS, CLASSES, SIZE = 26, 16, 5, 8
"""26 images in batches of 8: three steps an epoch, and two images left over."""

VARIANTS = {
    "csch released code": ("csch", {"instance": "released_code"}),
    "csch contrastive": ("csch", {"instance": "contr_sg"}),
    "csch bce": ("csch", {"center_loss": "bce"}),
    "csch caq": ("csch", {"quantizer": {"name": "caq", "mode": "replace"}}),
    "csq mlp3 dropout in the head": ("csq", {"head": "mlp3_tanh", "distill_target": "binary"}),
    "orthohash arc": ("orthohash", {"kind": "arc", "quant_weight": 0.1}),
    "daph with centers": ("daph", {"center_weight": 1.0}),
    "daph caq": ("daph", {"quantizer": {"name": "caq"}}),
    "mdsh after its change": ("mdsh", {"epoch_change": 1}),
    "mdsh no bank": ("mdsh", {"beta": 0.0}),
    "aml_contr tuples": ("aml_contr", {"form": "tuples"}),
    "aml_contr per type": ("aml_contr", {"reduce": "per_type"}),
    "ssp of csq": ("ssp", {"teacher": "csq", "subspaces": 2}),
}
RECIPE = {"epochs": 2, "batch_size": 8, "lr_backbone": 1e-2, "lr_head": 1e-2}
QUICK = {"adsq": {"label_hidden": 64}}


def cases() -> dict[str, tuple[str, dict, bool]]:
    """Return name -> (method, hyperparameters, multi-label) of every training that is compared."""
    found = {}
    for name in METHODS.names():
        for multi in (False, True):
            found[f"{name} {'multi' if multi else 'single'}"] = (name, QUICK.get(name, {}), multi)
    found |= {title: (name, params, False) for title, (name, params) in VARIANTS.items()}
    return found


def stages_of(name: str, params: dict, multi: bool) -> list[str]:
    """Return the stages of a method; "live" is both sides of one that can be replayed.

    That is trained with the defaults only, since its two losses are those of the two stages.
    """
    method = make_method(name, params, multi)
    if method.schedule is Schedule.JOINT:
        return ["joint"]
    own = ["gallery"] if method.gallery_method() is method else []
    default = params == QUICK.get(name, {})
    beside = ["live"] if method.schedule is Schedule.SIMULTANEOUS and default else []
    return [*own, "query", *beside]


def make_method(name, params, multi):
    task = Task(bits=BITS, n_classes=CLASSES, n_train=N, multi_label=multi)
    return build_method(name, params, task)


# ---- a small world -------------------------------------------------------------------


class Data(TrainingData):
    """The training split with labels of the outputs' type, as losses are given in the contract."""

    def __init__(self, multi: bool, dtype: torch.dtype) -> None:
        rng = np.random.default_rng(11)
        labels = rng.permutation(np.arange(N) % CLASSES)
        if multi:
            labels = np.maximum(np.eye(CLASSES)[labels], rng.integers(0, 2, (N, CLASSES)))
            labels[np.arange(N), rng.integers(0, CLASSES, N)] = 0
            labels[labels.sum(axis=1) == 0, 0] = 1
            labels = labels.astype(np.uint8)
        images = rng.integers(0, 256, (N, SIZE, SIZE, 3), dtype=np.uint8)
        views = Views(images, SIZE, Augmentation(), 0)
        super().__init__(views, np.arange(N), labels, n_classes=CLASSES, bits=BITS, seed=0)
        self.dtype = dtype

    def batch(self, positions, epoch, phase="both"):
        """Return the batch in this world's type."""
        found = super().batch(positions, epoch, phase)
        labels, ties = found.labels.to(self.dtype), found.tie_bits.to(self.dtype)
        return replace(found, labels=labels, tie_bits=ties)


class Residual(nn.Module):
    """A block with stochastic depth, dropout, and timm's and torch's batch normalisation."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inside = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.Dropout2d(0.2),
        )
        self.path = DropPath(0.3)

    def forward(self, x):
        return x + self.path(self.inside(x))


def network(side: str, head: str, dtype: torch.dtype) -> HashNetwork:
    width = {"query": 6, "gallery": 8}[side]
    with torch_stream(0, side, "init"):
        backbone = nn.Sequential(
            nn.Conv2d(3, width, 3, stride=2, bias=False),
            BatchNormAct2d(width),
            Residual(width),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Dropout(0.2),
        )
        layers = hash_head(head, width, BITS)
    grey = (0.5, 0.5, 0.5)
    return HashNetwork(backbone, layers, grey, grey, SIZE).to(dtype).train()


def train(case, stage, group, dtype=torch.float64, **changes):
    """Train a stage; return its tensors and what its epochs reported."""
    name, params, multi = case
    method = make_method(name, params, multi)
    recipe = Recipe(**{**RECIPE, **changes})
    data = Data(multi, dtype)
    gallery_method = method.gallery_method()
    spec = gallery_method.centers()
    state = {}
    if spec is not None:
        state = {"centers": torch.from_numpy(make_centers(CLASSES, BITS, spec, 0)[0]).to(dtype)}

    def learner(side, momentum=None):
        built = network(side, method.head, dtype)
        groups = parameter_groups(built)
        steps = data.steps(recipe.batch_size)
        return Learner(
            side,
            built,
            groups,
            recipe,
            steps_per_epoch=steps,
            seed=0,
            momentum=momentum,
            group=group,
        )

    if stage == "gallery":
        trainer = Trainer(
            gallery_method, data, gallery=learner("gallery", method.momentum), state=state
        )
    elif stage in ("joint", "live"):
        trainer = Trainer(
            method,
            data,
            query=learner("query"),
            gallery=learner("gallery", method.momentum),
            state=state,
        )
    else:
        frozen = network("gallery", gallery_method.head, dtype)
        embeddings = None
        if method.reads_embeddings:
            embeddings = np.random.default_rng(2).normal(size=(N, BITS)).astype(np.float32)
        source = LiveTeacher(frozen, method.recording, group=group)
        trainer = Trainer(
            method, data, query=learner("query"), source=source, state=state, embeddings=embeddings
        )
    reports = [report.metrics for report in trainer.run()]
    return trainer.tensors(), reports


def distance(one, other) -> dict[str, float]:
    """Return the largest differences, relative to each tensor's size where that is above 1."""
    tensors, reports = one
    others, other_reports = other
    assert tensors.keys() == others.keys()
    found = {"parameters": 0.0, "statistics": 0.0, "memory": 0.0, "losses": 0.0}
    for name, value in tensors.items():
        a, b = value.double(), others[name].double()
        kind = "statistics" if "running" in name or "tracked" in name else "parameters"
        kind = "memory" if name.startswith("state.") else kind
        if a.numel():
            scale = max(1.0, float(a.abs().max()))
            found[kind] = max(found[kind], float((a - b).abs().max()) / scale)
    for epoch, other_epoch in zip(reports, other_reports, strict=True):
        assert epoch.keys() == other_epoch.keys()
        for name, value in epoch.items():
            gap = abs(value - other_epoch[name]) / max(1.0, abs(value))
            found["losses"] = max(found["losses"], gap)
    return found


# ---- groups that are wrong in one way each ----------------------------------------------


class Unchecked(parallel.Workers):
    """Trains on when the checks would not let it."""

    def verify(self, network, images, side):
        return True

    def agree(self, tensors):
        pass


class LocalStatistics(Unchecked):
    """Normalises each share by itself."""

    def spread(self, *, draws=True):
        return parallel._GlobalDraws(self.rank, self.size)


class LocalDraws(Unchecked):
    """Draws dropout for each share alone."""

    def spread(self, *, draws=True):
        return parallel._GlobalStatistics(self)


class LocalLoss(Unchecked):
    """Evaluates the loss without the other shares' outputs."""

    def gather(self, h):
        rows = [torch.zeros_like(h)] * self.size
        rows[self.rank] = h
        return torch.cat(rows)


class Averaged(Unchecked):
    """Averages gradients, as is done where each rank's loss is a mean of its own share."""

    def sum_gradients(self, parameters):
        kept = list(parameters)
        super().sum_gradients(kept)
        for parameter in kept:
            if parameter.grad is not None:
                parameter.grad /= self.size


class Drifting(parallel.Workers):
    """Steps further on the last rank."""

    def sum_gradients(self, parameters):
        kept = list(parameters)
        super().sum_gradients(kept)
        if self.rank == self.size - 1:
            for parameter in kept:
                if parameter.grad is not None:
                    parameter.grad *= 1 + 1e-9


WRONG = {
    "statistics of each share": LocalStatistics,
    "dropout of each share": LocalDraws,
    "loss without the other shares": LocalLoss,
    "averaged gradients": Averaged,
}


# ---- networks that cannot be divided --------------------------------------------------


class Noise(nn.Module):
    def forward(self, x):
        return x + torch.randn(x.shape) if self.training else x


class BatchMean(nn.Module):
    def forward(self, x):
        return x - x.mean(dim=0, keepdim=True)


class DropAcross(nn.Module):
    """Dropout of a tensor that has the images in its second dimension."""

    def forward(self, x):
        return F.dropout(x.t().contiguous(), 0.1, self.training).t()


class BatchBuffer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x):
        if self.training:
            self.seen += x.detach().mean()
        return x


class OneDraw(nn.Module):
    """One random number for the whole batch."""

    def forward(self, x):
        return x * torch.empty(()).uniform_(0.5, 1.5) if self.training else x


UNDIVIDABLE = {
    "noise": Noise,
    "batch mean": BatchMean,
    "dropout across": DropAcross,
    "batch buffer": BatchBuffer,
    "one draw": OneDraw,
}

BACKBONES = (
    "test_byobnet",
    "test_convnext",
    "test_efficientnet",
    "test_efficientnet_evos",
    "test_efficientnet_gn",
    "test_mambaout",
    "test_nfnet",
    "test_resnet",
    "test_vit",
    "mobilenetv3_small_100",
    "mobilevit_xxs",
)


# ---- batch normalisation and random draws by themselves ---------------------------------


def norms():
    """Return layers of batch normalisation, and the inputs of a batch of 8 for each."""
    rng = torch.Generator().manual_seed(5)

    def drawn(*shape):
        return torch.randn(*shape, generator=rng, dtype=torch.float64) * 3 + 1

    last = drawn(8, 3, 4, 4).contiguous(memory_format=torch.channels_last)
    return {
        "1d": (nn.BatchNorm1d(6), drawn(8, 6)),
        "1d sequences": (nn.BatchNorm1d(6), drawn(8, 6, 3)),
        "2d": (nn.BatchNorm2d(3), drawn(8, 3, 4, 4)),
        "2d channels last": (nn.BatchNorm2d(3), last),
        "3d": (nn.BatchNorm3d(3), drawn(8, 3, 2, 2, 2)),
        "timm with activation": (BatchNormAct2d(3), drawn(8, 3, 4, 4)),
        "cumulative average": (nn.BatchNorm2d(3, momentum=None), drawn(8, 3, 4, 4)),
        "not affine": (nn.BatchNorm2d(3, affine=False), drawn(8, 3, 4, 4)),
        "not tracked": (nn.BatchNorm2d(3, track_running_stats=False), drawn(8, 3, 4, 4)),
        "eval": (nn.BatchNorm2d(3).eval(), drawn(8, 3, 4, 4)),
    }


def normalise(layer, x, group):
    """Run a layer on a share, twice; return outputs, gradients and statistics of the whole."""
    layer = layer.double()
    for p in layer.parameters():
        p.data = torch.linspace(0.5, 2, p.numel(), dtype=torch.float64)
    mine = torch.from_numpy(group.share(np.arange(len(x))))
    share = x[mine].clone(memory_format=torch.preserve_format).requires_grad_()
    for _ in range(2):
        with group.spread():
            y = layer(share)
    weights = torch.linspace(-1, 1, x.numel(), dtype=torch.float64).view(x.shape)
    (group.gather(y) * weights).sum().backward()
    group.sum_gradients(layer.parameters())
    found = {"y": group.gather(y.detach()), "dx": group.gather(share.grad)}
    found["layout"] = torch.tensor(y.stride()[1:])
    found |= {f"d_{name}": p.grad for name, p in layer.named_parameters()}
    return found | dict(layer.state_dict())


def attention(x):
    q = x.view(len(x), 2, 4, 8)
    return F.scaled_dot_product_attention(q, q, q, dropout_p=0.3)


DRAWS = {
    "dropout": lambda x: F.dropout(x, 0.3),
    "dropout of images": lambda x: F.dropout(x.view(-1, 4, 4, 4), 0.3),
    "dropout channels last": lambda x: F.dropout(
        x.view(-1, 4, 4, 4).contiguous(memory_format=torch.channels_last), 0.3
    ),
    "dropout of windows": lambda x: F.dropout(x.view(-1, 16), 0.3),
    "dropout of channels": lambda x: F.dropout2d(x.view(-1, 4, 4, 4), 0.3),
    "fused dropout of a GPU": lambda x: torch.native_dropout(x, 0.3, True)[0],
    "alpha dropout": lambda x: F.alpha_dropout(x, 0.3, training=True),
    "stochastic depth": lambda x: DropPath(0.3)(x),
    "attention": attention,
    "uniform": lambda x: x * torch.empty_like(x).uniform_(),
    "normal": lambda x: x + torch.empty_like(x).normal_(),
    "exponential": lambda x: x + torch.empty_like(x).exponential_(),
}


def draw(operation, group):
    x = torch.arange(8 * 64, dtype=torch.float32).view(8, 64) + 1
    mine = torch.from_numpy(group.share(np.arange(8)))
    with torch_stream(3, "draw"), group.spread():
        first = operation(x[mine])
        second = operation(x[mine])  # the generator went on as with one worker
    return {"first": group.gather(first), "second": group.gather(second)}


# ---- the experiments --------------------------------------------------------------------


def compare_trainings(groups, told):
    """Compare every method's stages between numbers of workers; its variants with two alone.

    By SGD, which carries rounding on as it is. Adam and RMSprop divide it by its own size where
    the gradient is 0 but for rounding, as that of a bias is that the loss cannot see (RKD), or
    that a batch normalisation takes away again (MDSH): two runs with one worker are then as far
    apart as one and two workers.
    """
    for title, case in cases().items():
        few = groups if title.endswith("single") else {k: g for k, g in groups.items() if k < 4}
        for stage in stages_of(*case):
            results = each(
                few,
                lambda g, c=case, s=stage: train(c, s, g, clip_norm=0.5, optimizer="sgd"),
            )
            told[f"{title} / {stage}"] = gaps(results)


def compare_optimizers(groups, told):
    """Compare the optimisers, and float32 under the one that does not magnify rounding."""
    case = ("csch", {}, False)
    for optimizer in ("adam", "adamw", "sgd", "rmsprop"):
        results = each(groups, lambda g, o=optimizer: train(case, "gallery", g, optimizer=o))
        told[optimizer] = gaps(results)
    for name, stage in (("rkd", "query"), ("csch", "gallery"), ("daph", "joint")):
        results = each(
            groups,
            lambda g, n=name, s=stage: train(
                (n, {}, False), s, g, dtype=torch.float32, optimizer="sgd"
            ),
        )
        told[f"float32 {name}"] = gaps(results)


def compare_wrong(groups, told):
    """Train with groups that are wrong in one way."""
    for name, stage in (("rkd", "query"), ("daph", "joint")):
        alone = train((name, {}, False), stage, parallel.ALONE) if 1 in groups else None
        for title, kind in WRONG.items():
            if 2 in groups:
                two = groups[2]
                wrong = kind(two.rank, 2, process_group=two._processes)
                found = train((name, {}, False), stage, wrong)
                if alone is not None:
                    told[f"{name}: {title}"] = distance(alone, found)["parameters"]


def compare_encoding(groups, told):
    """Encode with whole blocks dealt to the ranks."""
    built = network("query", "fc_bn", torch.float32)
    views = Data(False, torch.float32).views
    for n in (N, 21, 8, 3):
        results = each(
            groups, lambda g, n=n: encode(built, views, np.arange(n), batch_size=4, group=g)
        )
        if 1 in groups:
            told[str(n)] = [results[k].tobytes() == results[1].tobytes() for k in results]


def compare_norms(groups, told):
    """Compare batch normalisation with torch's own."""
    for title in norms():
        results = each(groups, lambda g, t=title: normalise(*norms()[t], g))
        if 1 in groups:
            told[title] = {
                str(k): max(
                    float((results[1][key].double() - results[k][key].double()).abs().max())
                    for key in results[1]
                )
                for k in results
            }
            told[title]["layouts"] = [results[k]["layout"].tolist() for k in results]
    shifted = torch.randn(8, 1, 4, 4, generator=torch.Generator().manual_seed(1)) * 0.01 + 1000

    def offset(group):
        layer = nn.BatchNorm2d(1, momentum=1.0)
        with group.spread():
            layer(shifted[torch.from_numpy(group.share(np.arange(8)))])
        return float(layer.running_var)

    results = each(groups, offset)
    told["offset"] = {str(k): v for k, v in results.items()}
    told["offset"]["exact"] = float(shifted.double().var())


def compare_draws(groups, told):
    """Compare random draws with those of one worker, to the last bit."""
    for title, operation in DRAWS.items():
        results = each(groups, lambda g, o=operation: draw(o, g))
        if 1 in groups:
            told[title] = [
                all(torch.equal(results[k][key], results[1][key]) for key in results[1])
                for k in results
            ]


def add_up(groups, told):
    """Add numbers of which every order has another sum."""
    values = [1e16, 1.0, -1e16, 1.0]
    if 4 in groups:
        four = groups[4]
        mine = torch.tensor([values[four.rank]] * 7, dtype=torch.float64)
        told["sum"] = four.sum(mine).tolist()
        parameters = [nn.Parameter(torch.zeros(n, dtype=torch.float64)) for n in (7, 1, 2)]
        parameters.append(nn.Parameter(torch.zeros(3)))  # of another type
        for place, parameter in enumerate(parameters):
            parameter.grad = torch.full_like(parameter, values[four.rank] * (place + 1))
        parameters.append(nn.Parameter(torch.zeros(2)))  # without gradient
        four.sum_gradients(parameters)
        told["gradients"] = [None if p.grad is None else p.grad.tolist() for p in parameters]
        given = {"a": torch.arange(3), "b": torch.tensor(2.5, dtype=torch.float64)}
        received = four.broadcast(given if four.leads else None)
        told["received"] = {k: [v.tolist(), str(v.dtype)] for k, v in received.items()}
        told["nothing"] = four.broadcast(None)
        agreed = four.all(torch.tensor([float(torch.equal(received["a"], given["a"]))]))
        told["received by all"] = agreed.flatten().tolist()
        told["shares"] = four.all(torch.from_numpy(four.share(np.arange(8)))).tolist()


def refuse(groups, told):
    """Try out networks, those of timm and those that cannot be divided."""
    if 2 not in groups:
        return
    two = groups[2]
    images = torch.rand(4, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(2))
    for title, kind in UNDIVIDABLE.items():
        built = network("query", "fc_bn", torch.float32)
        built.backbone.append(kind())
        before = {k: v.clone() for k, v in built.state_dict().items()}
        try:
            two.verify(built, images, "query")
            told[title] = "accepted"
        except InputError as error:
            told[title] = str(error)
        assert all(torch.equal(before[k], v) for k, v in built.state_dict().items())
    for name in BACKBONES:
        spec = SideSpec(backbone=name, size=32, drop_rate=0.2, drop_path_rate=0.2)
        built = build_network(spec, "fc_bn", BITS, 0, "query")
        pictures = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(2))
        told[name] = two.verify(built, pictures, "query")
        spec = SideSpec(backbone=name, size=32)
        told[f"{name} without"] = two.verify(
            build_network(spec, "fc_bn", BITS, 0, "query"), pictures, "query"
        )


def drift(groups, told):
    """Train with a rank that steps a little further than the others."""
    if 4 in groups:
        four = groups[4]
        wrong = Drifting(four.rank, 4, process_group=four._processes)
        try:
            train(("csch", {}, False), "gallery", wrong)
            told["raised"] = ""
        except parallel.WorkersDisagree as error:
            told["raised"] = str(error)
        raised = four.all(torch.tensor([float(bool(told["raised"]))]))
        told["raised by all"] = raised.flatten().tolist()


EXPERIMENTS = {
    f.__name__: f
    for f in (
        add_up,
        compare_norms,
        compare_draws,
        compare_encoding,
        compare_trainings,
        compare_optimizers,
        compare_wrong,
        refuse,
        drift,
    )
}


def each(groups, work):
    """Do some work with every number of workers that this process belongs to."""
    return {size: work(group) for size, group in groups.items()}


def gaps(results):
    """Return the distances of each number of workers from one, in the first process."""
    if 1 not in results:
        return None
    return {str(k): distance(results[1], found) for k, found in results.items() if k > 1}


def run(rank: int, address: str, folder: str) -> None:
    """Do all experiments as one of the ranks."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    store = parallel.reach(address, RANKS) if rank else _MEETING[0]
    short = timedelta(minutes=15)  # a rank waits for one that has nothing but a busy core
    with parallel.joined(store, rank, RANKS, "cpu", timeout=short) as four:
        pair = torch.distributed.new_group([0, 1], timeout=short)
        groups = {1: parallel.ALONE} if rank == 0 else {}
        if rank < 2:
            groups[2] = parallel.Workers(rank, 2, process_group=pair)
        groups[4] = four
        for name, experiment in EXPERIMENTS.items():
            told = {}
            experiment(groups, told)
            if rank == 0:
                (Path(folder) / f"{name}.json").write_text(json.dumps(told))


_MEETING = []
"""The first process' end of the meeting point."""


def run_first(folder: str) -> None:
    """Do all experiments as the first rank, and start the others."""
    from cluster.peers import start_peers

    meeting = parallel.listen("127.0.0.1", RANKS)
    _MEETING.append(meeting)
    address = f"127.0.0.1:{meeting.port}"
    given = [{"rank": r, "address": address, "folder": folder} for r in range(1, RANKS)]
    with start_peers("tests.methods.ranks:run", given) as peers:
        while not parallel.arrived(meeting, RANKS):
            peers.check()
        try:
            run(0, address, folder)
        except parallel.Disconnected:
            peers.check()
            raise
