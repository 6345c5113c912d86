"""Data-parallel training: k workers do what one worker does with the same global batch.

Every worker (a rank) sends its own contiguous share of each batch through the network. The outputs
are gathered, so that every rank has h (n, B) of the whole batch with the gradient of its own rows;
every rank then evaluates the method's loss on the whole batch and back-propagates what flows
through its own rows. The sum of the ranks' gradients is the gradient of the loss, whatever the
loss does with the batch. No method knows of it.

Inside a network two things join the images of a batch. Batch normalisation takes the statistics
of the global batch, merged in rank order. Random numbers (dropout, stochastic depth) are drawn for
the global batch, of which each rank takes its own rows. Whether a network can be divided like this
is tried out before training, see :meth:`Group.verify`.

Sums over ranks are taken in rank order, and never by the network library's own reduction, whose
order depends on where the ranks run: the result is a function of the number of workers alone.
"""

from __future__ import annotations

import copy
import hashlib
import socket
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch._C._distributed_c10d import Store, TCPStore
from torch.autograd.function import once_differentiable
from torch.distributed import distributed_c10d
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from retrieval import streams
from retrieval.errors import InputError

TIMEOUT = timedelta(minutes=30)
"""How long a rank waits for the others before it gives up. A rank that fails or dies is noticed at
once, by other means; this is for one that hangs."""

_BUCKET = 1 << 25
"""Bytes of gradients that are summed at a time."""

PROBE_IMAGES = 2
"""Images for each rank when a network is tried out."""

_PROBE_TOLERANCE = 1e-6
"""Largest difference of outputs in float64, relative to their size, that is rounding."""


class Disconnected(ConnectionError):
    """The other ranks cannot be reached: one has failed, and it is that one that knows why."""


class WorkersDisagree(RuntimeError):
    """Ranks hold different parameters or memory, which must be equal to the last bit."""


class Group:
    """The workers that train one stage together; this base class is one worker alone.

    Attributes:
        rank: this worker's number, from 0.
        size: the number of workers.
    """

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this is the worker that writes and reports."""
        return self.rank == 0

    def share(self, batch: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return this rank's part of a global batch: the ranks' parts in order are the batch."""
        return batch

    @contextmanager
    def spread(self, *, draws: bool = True) -> Iterator[None]:
        """Let the forward pass inside be that of a share of the global batch.

        Args:
            draws: whether it may draw random numbers, as :meth:`verify` says; watching for them
                takes as long as a fifth of a small network's pass.
        """
        yield

    def gather(self, h: Tensor) -> Tensor:
        """Return the outputs (n, B) of the global batch from this rank's (n / k, B).

        Gradients reach this rank's own rows only.
        """
        return h

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace every gradient by its sum over the ranks."""

    def deal(self, items: Sequence[int]) -> list[int]:
        """Return the items that fall to this rank, dealt out one by one."""
        return list(items)

    def collect(self, blocks: list[NDArray[np.float32]]) -> list[NDArray[np.float32]]:
        """Return the blocks that the ranks made of the items dealt to them, in their order."""
        return blocks

    def broadcast(self, tensors: dict[str, Tensor] | None) -> dict[str, Tensor] | None:
        """Return what rank 0 gave, on every rank."""
        return tensors

    def verify(self, network: nn.Module, images: Tensor, side: str) -> bool:
        """Refuse a network whose training pass cannot be divided over the workers.

        Args:
            network: of either side; neither its weights nor its statistics change.
            images: (2 k, 3, S, S), k workers, the same on every rank.
            side: for the message.

        Returns:
            Whether the pass draws random numbers.

        Raises:
            InputError: a divided pass differs from a whole one, or draws random numbers in a way
                that cannot be divided.
        """
        return True

    def agree(self, tensors: Mapping[str, Tensor]) -> None:
        """Check that all ranks hold the same bits.

        Raises:
            WorkersDisagree: names the first tensor that differs, and the rank.
        """


ALONE = Group()
"""One worker."""


class Workers(Group):
    """Several ranks, connected by ``torch.distributed``.

    Args:
        rank: this worker's number.
        size: the number of workers, at least 2.
        device: where tensors travel from: "cpu" with gloo, the GPU with nccl.
        process_group: the ranks' connection; None is the default one.
    """

    def __init__(
        self,
        rank: int,
        size: int,
        device: str = "cpu",
        process_group: dist.ProcessGroup | None = None,
    ) -> None:
        self.rank = rank
        self.size = size
        self._device = device
        self._processes = process_group

    # ---- batches -------------------------------------------------------------------------

    def share(self, batch: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return this rank's part of a global batch: the ranks' parts in order are the batch."""
        each, left = divmod(len(batch), self.size)
        if left:
            raise ValueError(f"{len(batch)} images cannot be divided over {self.size} workers")
        return batch[self.rank * each : (self.rank + 1) * each]

    @contextmanager
    def spread(self, *, draws: bool = True) -> Iterator[None]:
        """Let the forward pass inside be that of a share of the global batch.

        Args:
            draws: whether it may draw random numbers.

        Raises:
            RuntimeError: it drew some although it does not.
        """
        with _GlobalStatistics(self), _GlobalDraws(self.rank, self.size) if draws else _no_draws():
            yield

    def gather(self, h: Tensor) -> Tensor:
        """Return the outputs (n, B) of the global batch from this rank's (n / k, B)."""
        parts = list(self.all(h).unbind())
        parts[self.rank] = h
        return torch.cat(parts)

    # ---- sums and exchanges --------------------------------------------------------------

    def all(self, mine: Tensor) -> Tensor:
        """Return (k, ...) what each rank gave, in rank order, without gradient."""
        sent = mine.detach().to(self._device).contiguous()
        received = sent.new_empty((self.size * sent.numel(),))
        with _connected():
            dist.all_gather_into_tensor(received, sent.reshape(-1), group=self._processes)
        return received.view(self.size, *mine.shape).to(mine.device)

    def sum(self, mine: Tensor) -> Tensor:
        """Return the sum over the ranks, added in rank order."""
        return _in_order(self.all(mine))

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace every gradient by its sum over the ranks, added in rank order."""
        for bucket in _buckets([p.grad for p in parameters if p.grad is not None]):
            flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
            total = self._sum_flat(flat)
            sizes = [gradient.numel() for gradient in bucket]
            for gradient, part in zip(bucket, torch.split(total, sizes), strict=True):
                gradient.copy_(part.view_as(gradient))

    def _sum_flat(self, flat: Tensor) -> Tensor:
        """Sum a vector: each rank adds up one part of it, and all get all parts."""
        n = flat.numel()
        padded = F.pad(flat, (0, -n % self.size)).to(self._device)
        received = torch.empty_like(padded)
        with _connected():
            dist.all_to_all_single(received, padded, group=self._processes)
        mine = _in_order(received.view(self.size, -1))
        with _connected():
            dist.all_gather_into_tensor(padded, mine, group=self._processes)
        return padded[:n].to(flat.device)

    def deal(self, items: Sequence[int]) -> list[int]:
        """Return the items that fall to this rank, dealt out one by one."""
        return list(items[self.rank :: self.size])

    def collect(self, blocks: list[NDArray[np.float32]]) -> list[NDArray[np.float32]]:
        """Return the blocks that the ranks made of the items dealt to them, in their order."""
        width = blocks[0].shape[1] if blocks else 0
        sizes = [len(block) for block in blocks]
        most = self.all(torch.tensor([len(blocks), max(sizes, default=0), width])).amax(dim=0)
        rounds, longest, width = (int(value) for value in most)
        lengths = torch.zeros(rounds, dtype=torch.int64)
        values = torch.zeros(rounds, longest, width)
        for place, block in enumerate(blocks):
            lengths[place] = len(block)
            values[place, : len(block)] = torch.from_numpy(block)
        by_rank, filled = self.all(values), self.all(lengths)
        return [
            by_rank[rank, place, : filled[rank, place]].numpy()
            for place in range(rounds)
            for rank in range(self.size)
            if filled[rank, place]
        ]

    def broadcast(self, tensors: dict[str, Tensor] | None) -> dict[str, Tensor] | None:
        """Return what rank 0 gave, on every rank and on the CPU."""
        from safetensors.torch import load, save

        packed = b""
        if self.leads and tensors is not None:
            packed = save({name: t.detach().cpu().contiguous() for name, t in tensors.items()})
        length = torch.tensor([len(packed)], device=self._device)
        with _connected():
            dist.broadcast(length, group_src=0, group=self._processes)
        if not int(length):
            return None
        sent = np.frombuffer(packed or bytes(int(length)), dtype=np.uint8).copy()
        travelling = torch.from_numpy(sent).to(self._device)
        with _connected():
            dist.broadcast(travelling, group_src=0, group=self._processes)
        received: dict[str, Tensor] = load(travelling.cpu().numpy().tobytes())
        return received

    # ---- checks --------------------------------------------------------------------------

    def verify(self, network: nn.Module, images: Tensor, side: str) -> bool:
        """Refuse a network whose training pass cannot be divided over the workers.

        The pass is made twice in float64 with half of everything dropped: divided, and whole as
        one worker makes it. Outputs and statistics must agree but for rounding.
        """
        divided, whole = (copy.deepcopy(network).double().train() for _ in range(2))
        mine = self.share(np.arange(len(images)))
        try:
            with torch.no_grad():
                shared = _GlobalDraws(self.rank, self.size, 0.5)
                with streams.torch_stream(0, "probe"), _GlobalStatistics(self), shared:
                    h = divided(images[mine].double())
                found = {"its outputs": self.gather(h), **dict(divided.named_buffers())}
                with streams.torch_stream(0, "probe"), _GlobalDraws(0, 1, 0.5):
                    h = whole(images.double())
                expected = {"its outputs": h, **dict(whole.named_buffers())}
        except _CannotDivide as error:
            raise self._refusal(side, str(error)) from None
        for name, value in expected.items():
            scale = float(value.double().abs().max()) if value.numel() else 0.0
            difference = (found[name].double() - value.double()).abs()
            if value.numel() and not float(difference.max()) <= _PROBE_TOLERANCE * max(scale, 1.0):
                raise self._refusal(
                    side, f"{name} would differ by {float(difference.max()):.2g} from one worker's"
                )
        return shared.used

    def _refusal(self, side: str, why: str) -> InputError:
        return InputError(
            f"the {side} network cannot be trained by several workers: {why}",
            key="train.workers",
            value=self.size,
            hint="set workers: 1 for this side, or take another backbone or other drop rates",
        )

    def agree(self, tensors: Mapping[str, Tensor]) -> None:
        """Check that all ranks hold the same bits."""
        digests = torch.tensor([_digest(tensor) for tensor in tensors.values()])
        everyone = self.all(digests)
        differs = everyone != everyone[0]
        if bool(differs.any()):
            place = int(differs.any(dim=0).nonzero()[0])
            rank = int(differs[:, place].nonzero()[0])
            raise WorkersDisagree(
                f"worker {rank + 1} of {self.size} holds other values of "
                f"{list(tensors)[place]!r} than worker 1, and {int(differs.any(dim=0).sum())} of "
                f"{len(tensors)} tensors differ; do all workers have the same hardware and "
                "software?"
            )


def _in_order(parts: Tensor) -> Tensor:
    """Return the sum over the first dimension, added from first to last."""
    total = parts[0].clone()
    for part in parts[1:]:
        total += part
    return total


def _buckets(gradients: list[Tensor]) -> Iterator[list[Tensor]]:
    """Yield the gradients in groups of one type and of limited size."""
    bucket: list[Tensor] = []
    size = 0
    for gradient in gradients:
        more = gradient.numel() * gradient.element_size()
        if bucket and (bucket[0].dtype != gradient.dtype or size + more > _BUCKET):
            yield bucket
            bucket, size = [], 0
        bucket.append(gradient)
        size += more
    if bucket:
        yield bucket


def _digest(tensor: Tensor) -> int:
    """Return 64 bits of the SHA-256 of a tensor's bytes."""
    values = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return int.from_bytes(
        hashlib.sha256(values.numpy().tobytes()).digest()[:8], "little", signed=True
    )


@contextmanager
def _connected() -> Iterator[None]:
    """Turn what a broken connection raises, which has no class of its own, into one that has."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise Disconnected(f"the other workers cannot be reached: {error}") from error


# ---- batch normalisation -----------------------------------------------------------------


class _GlobalStatistics(TorchFunctionMode):
    """Gives every batch normalisation inside the statistics of the global batch.

    torch's and timm's layers all come through one function. What is changed is that function's
    call and no module, so that copies, names and files of a network are what they were.
    """

    def __init__(self, group: Workers) -> None:
        super().__init__()
        self._group = group

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is F.batch_norm:
            return self._batch_norm(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _batch_norm(
        self,
        input: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor:
        if not training:
            return F.batch_norm(
                input, running_mean, running_var, weight, bias, False, momentum, eps
            )
        mean, squares, count = self._statistics(input.detach())
        if running_mean is not None and running_var is not None:
            running_mean.lerp_(mean.to(running_mean.dtype), momentum)
            running_var.lerp_((squares / (count - 1)).to(running_var.dtype), momentum)
        normalised: Tensor = _BatchNorm.apply(
            input, weight, bias, mean, squares / count, count, eps, self._group
        )
        return normalised

    def _statistics(self, x: Tensor) -> tuple[Tensor, Tensor, int]:
        """Return mean, centred sum of squares (both (C,)) and number of the global values.

        The ranks' shares are equal, so that the mean of their means is the mean; the squares are
        merged as in Chan, Golub and LeVeque (1979), without cancellation.
        """
        each = x.numel() // x.shape[1]
        # What torch's own layers take, without running statistics to update: ten times as fast on
        # a CPU as var_mean.
        mean, variance = torch.batch_norm_update_stats(_precise(x), None, None, 0.0)
        means, variances = self._group.all(torch.stack([mean, variance])).unbind(dim=1)
        mean = _in_order(means) / self._group.size
        squares = each * _in_order(variances + (means - mean).square())
        return mean, squares, each * self._group.size


class _BatchNorm(torch.autograd.Function):
    """(x - mean) / sqrt(variance + eps) * weight + bias, where mean and variance are global.

    The gradient of x has the sums over the global batch that its mean and variance have; those of
    weight and bias are this rank's part, as of any parameter.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor,
        variance: Tensor,
        count: int,
        eps: float,
        group: Workers,
    ) -> Tensor:
        ctx.save_for_backward(x, weight, mean, (variance + eps).rsqrt())
        ctx.count, ctx.group = count, group
        return F.batch_norm(x, mean, variance, weight, bias, False, 0.0, eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, inverse = ctx.saved_tensors
        dims, shape = _all_but_channels(x), (1, -1) + (1,) * (x.ndim - 2)
        centred = _precise(x) - mean.view(shape)
        precise = _precise(gradient)
        sums = torch.stack([precise.sum(dims), (precise * centred).sum(dims)])
        total = ctx.group.sum(sums) / ctx.count
        scale = inverse if weight is None else inverse * weight
        slope = total[1] * inverse.square()
        dx = (precise - total[0].view(shape)).addcmul_(centred, slope.view(shape), value=-1)
        dx.mul_(scale.view(shape))
        d_weight = (sums[1] * inverse).to(weight.dtype) if weight is not None else None
        d_bias = sums[0].to(weight.dtype) if weight is not None else None
        return dx.to(x.dtype), d_weight, d_bias, None, None, None, None, None


def _all_but_channels(x: Tensor) -> list[int]:
    return [0, *range(2, x.ndim)]


def _precise(x: Tensor) -> Tensor:
    """Return x in at least float32, as torch's own batch normalisation computes."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


# ---- random numbers ----------------------------------------------------------------------

_ATEN = torch.ops.aten
_FILLS = {
    _ATEN.bernoulli_.float: True,
    _ATEN.uniform_.default: False,
    _ATEN.normal_.default: False,
    _ATEN.exponential_.default: False,
}
"""Operations that fill a tensor with random numbers -> whether the first argument is the
probability of keeping. Dropout, its variants and stochastic depth come down to the first."""


class _CannotDivide(RuntimeError):
    """A random operation whose share of the global draw is not known."""


class _GlobalDraws(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Makes every random draw inside that of the global batch, and takes this rank's rows.

    The generator goes through the same states as with one worker. A tensor of random numbers must
    have the images in its first dimension (with anything behind them in it, such as windows); that
    it does is what :meth:`Group.verify` finds out.

    Args:
        rank, size: of the group.
        keep: replaces the probabilities of keeping, where it is given.

    Attributes:
        used: whether there was any draw.
    """

    def __init__(self, rank: int, size: int, keep: float | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.used = False
        self._rank = rank
        self._size = size
        self._keep = keep

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded not in func.tags or _without_dropout(func, args):
            return func(*args, **kwargs)
        self.used = True
        if func in _FILLS:
            target, *rest = args
            if _FILLS[func] and self._keep is not None:
                rest = [self._keep]
            whole = self._global(target)
            return target.copy_(self._rows(func(whole, *rest, **kwargs)))
        if func is _ATEN.native_dropout.default:  # the fused form on a GPU
            x, rate, train = args
            rate = rate if self._keep is None else 1 - self._keep
            ones = self._global(x).fill_(1)
            mask = self._rows(func(ones, rate, train)[1]).clone()
            return x * mask * (1 / (1 - rate)), mask
        raise _CannotDivide(f"it draws random numbers with {func}")

    def _global(self, share: Tensor) -> Tensor:
        """Return a tensor of the global batch, laid out in memory as ``share`` is."""
        if share.ndim == 0:
            raise _CannotDivide("it draws one random number for the whole batch")
        order = sorted(range(share.ndim), key=lambda dim: -share.stride()[dim])
        shape = [share.shape[0] * self._size, *share.shape[1:]]
        dense = share.new_empty([shape[dim] for dim in order])
        return dense.permute(*np.argsort(order).tolist())

    def _rows(self, whole: Tensor) -> Tensor:
        each = len(whole) // self._size
        return whole[self._rank * each : (self._rank + 1) * each]


@contextmanager
def _no_draws() -> Iterator[None]:
    """Check that nothing inside draws random numbers, by the state of the generators."""
    before = _generators()
    yield
    if any(not torch.equal(a, b) for a, b in zip(before, _generators(), strict=True)):
        raise RuntimeError(
            "the network drew random numbers in training, but none when it was tried out; "
            "set train.workers: 1"
        )


def _generators() -> list[Tensor]:
    cuda = [torch.cuda.get_rng_state()] if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    return [torch.get_rng_state(), *cuda]


def _without_dropout(func: Any, args: tuple[Any, ...]) -> bool:
    """Whether this is fused attention that drops nothing; it could, so it counts as random."""
    for place, argument in enumerate(func._schema.arguments):
        if argument.name == "dropout_p":
            given = args[place] if place < len(args) else argument.default_value
            return bool(given == 0)
    return False


# ---- connecting --------------------------------------------------------------------------


def listen(host: str, size: int) -> TCPStore:
    """Open the meeting point of a group on a free port, as rank 0.

    Args:
        host: the address under which the other ranks reach this one; nothing listens elsewhere.
        size: the number of ranks.
    """
    listener = socket.create_server((host, 0))
    port = listener.getsockname()[1]
    return TCPStore(
        host,
        port,
        size,
        is_master=True,
        wait_for_workers=False,
        timeout=TIMEOUT,
        master_listen_fd=listener.detach(),
    )


def arrived(store: Store, size: int) -> bool:
    """Whether all other ranks have come to the meeting point, so that none waits in vain."""
    return bool(store.check([f"device/{rank}" for rank in range(1, size)]))


def reach(address: str, size: int) -> TCPStore:
    """Return the meeting point that rank 0 has opened at ``address``, "host:port"."""
    host, _, port = address.rpartition(":")
    with _connected():
        return TCPStore(host, int(port), size, is_master=False, timeout=TIMEOUT)


@contextmanager
def joined(
    store: Store,
    rank: int,
    size: int,
    device: str,
    *,
    timeout: timedelta = TIMEOUT,
) -> Iterator[Workers]:
    """Connect this process with the other ranks, for as long as the context lasts.

    GPUs talk through nccl, unless ranks share one, which nccl refuses: they, and CPUs, talk
    through gloo.

    Args:
        store: where the ranks meet.
        rank: of this process.
        size: the number of ranks.
        device: "cpu" or "cuda", the current one.
        timeout: how long an exchange may take.

    Raises:
        InputError: some ranks have a GPU and some have none.
        Disconnected: the other ranks did not come.
    """
    with _connected():
        store.set(f"device/{rank}", _name(device))
        names = [store.get(f"device/{other}").decode() for other in range(size)]
    if len({name == "cpu" for name in names}) > 1:
        raise InputError(
            f"{names.count('cpu')} of {size} workers of one stage have no GPU",
            key="train.workers",
            value=size,
        )
    nccl = device == "cuda" and len(set(names)) == size
    with _connected():
        dist.init_process_group(
            "nccl" if nccl else "gloo", store=store, rank=rank, world_size=size, timeout=timeout
        )
    with ExitStack() as stack:
        stack.callback(_leave)
        yield Workers(rank, size, "cuda" if nccl else "cpu")


def abort() -> None:
    """Free this process' main thread from waiting for ranks that will not come.

    gloo notices by itself that a connection is gone; nccl would wait for its timeout.
    """
    if dist.is_initialized() and dist.get_backend() == "nccl":
        distributed_c10d._abort_process_group()


def _leave() -> None:
    if dist.is_initialized():  # an aborted group is gone already
        dist.destroy_process_group()


def _name(device: str) -> str:
    """Return "cpu", or what no other GPU is called."""
    return "cpu" if device == "cpu" else str(torch.cuda.get_device_properties().uuid)
