"""Many processes, one run: who they are, which rows and which part of the model each holds, and how they add up.

A job is a grid of `data` x `tensor` ranks, started by torchrun. Along `data` each rank has its own rows of the batch;
along `tensor` ranks share the rows and split each layer's heads and feed-forward (Shoeybi et al. 2019,
arXiv:1909.08053, section 3). Two ways along `data`:

    ddp   every rank holds the whole model; gradients are summed while the backward pass still runs
    fsdp  every rank holds a share of each weight, gradient and moment (Rajbhandari et al. 2020, arXiv:1910.02054, as
          torch's `fully_shard`); a block is put together just before it is needed

Gradients are summed and not averaged: the loss is divided by the whole batch's tokens before (loss.py), so every rank's
share is already in its right proportion, whatever the padding. That is also why ddp is not torch's own class, which
averages, and which counts on one backward pass where ours has one for every share of the logits and one for the stacks.
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, cast

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from deepnarrow.errors import UserError, nearest
from deepnarrow.model import noise
from deepnarrow.model.t5 import T5, Block, Stack
from deepnarrow.shapes import Shape
from deepnarrow.text.batches import Batch
from deepnarrow.train import optim
from deepnarrow.train.interrupt import Interrupted

if TYPE_CHECKING:  # seconds of imports, which a run of one process does without
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.fsdp import FSDPModule

KINDS = ("ddp", "fsdp")
TIMEOUT = timedelta(minutes=15)  # a rank that is waited for longer than this counts as dead
GRACE = 5.0  # seconds that the ranks beside a dead one leave torchrun to find the dead one first
BUCKET = 25 * 2**20  # bytes of gradients summed at once
Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class Execution:
    """How a run is carried out. Nothing here changes a weight by more than rounding, so each start may choose anew."""

    parallel: str = "ddp"
    tensor_parallel: int = 1  # ranks that split each layer between them
    loaders: int = 1  # threads that make batches ahead of their use
    async_save: bool = False  # checkpoints are written while training goes on

    def __post_init__(self) -> None:
        if self.parallel not in KINDS:
            raise UserError(f"unknown parallel {self.parallel!r}; {nearest(self.parallel, KINDS)}")
        for name in ("tensor_parallel", "loaders"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, not {getattr(self, name)}")


class Rows(NamedTuple):
    """Where a rank's rows stand among those of all ranks."""

    first: int
    total: int


@dataclass
class Ranks:
    """This process among those of its job. The usual value is a job of one."""

    rank: int = 0
    size: int = 1
    tensor_size: int = 1
    sharded: bool = False  # parameters are DTensors
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    mesh: "DeviceMesh | None" = None
    saving: Any = None  # a group of its own for checkpoints, which are written beside training
    _reducer: "Reducer | None" = None

    @property
    def first(self) -> bool:
        return self.rank == 0

    @property
    def data_size(self) -> int:
        return self.size // self.tensor_size

    @property
    def data_rank(self) -> int:
        return self.rank // self.tensor_size

    @property
    def tensor_rank(self) -> int:
        return self.rank % self.tensor_size

    def share(self, batch: Batch) -> tuple[Batch, Rows]:
        """This rank's rows of a batch: the same number for every rank, made up with empty rows behind the last."""
        if self.data_size == 1:
            return batch, Rows(0, len(batch.inputs))
        return share(batch, self.data_rank, self.data_size)

    def lay_out(self, model: T5, *, fsdp: bool) -> None:
        """Bring the model to this rank's device, in this rank's parts. Before the optimizer is built."""
        if self.mesh is None:
            model.to(self.device)
            return
        if self.tensor_size > 1:
            split_layers(model, self.mesh["tensor"])
        if fsdp:
            shard(model, self.mesh["data"])
        else:
            model.to(self.device)
            self._reducer = Reducer(model, self.mesh["data"].get_group())
        self.sharded = fsdp or self.tensor_size > 1

    def noise(self, rows: Rows) -> AbstractContextManager[None]:
        """Draw the dropout that a job of one would, and keep what falls on this rank."""
        if self.size == 1:
            return nullcontext()
        return noise.part(first=rows.first, rows=rows.total, place=self.tensor_rank, places=self.tensor_size)

    @contextmanager
    def last_part(self) -> Iterator[None]:
        """Around the last backward pass of a step: then every rank has the gradient of the whole batch."""
        if self._reducer is None:
            yield
            return
        with self._reducer.listening():
            yield
        self._reducer.finish()

    def totals(self, nll: Tensor, model: nn.Module, flag: bool) -> tuple[float, float, bool]:
        """The loss summed over all rows, the length of the gradient, and whether any rank raises its flag."""
        if self.size == 1:
            loss, norm = torch.stack([nll, optim.gradient_norm(model)]).tolist()
            return loss, norm, flag
        square = self.gradient_square(model)
        mine = [nll.double() / self.tensor_size, square, square.new_tensor(float(flag))]
        loss, square_sum, flags = self.sum(torch.stack(mine)).tolist()
        return loss, square_sum**0.5, flags > 0

    def scale_gradients(self, model: nn.Module, factor: float) -> None:
        torch._foreach_mul_([local(p.grad) for p in model.parameters() if p.grad is not None], factor)

    def gradient_square(self, model: nn.Module) -> Tensor:
        """This rank's part of the squared length of the gradient, float64: over all ranks they add up to the whole."""
        if not self.sharded:
            return optim.gradient_norm(model).double().square() / self.size
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        lengths = torch.stack(torch._foreach_norm([local(gradient) for gradient in gradients]))
        copies = torch.tensor([self.copies(gradient) for gradient in gradients], device=lengths.device)
        return (lengths.double().square() / copies).sum()

    def copies(self, tensor: Tensor) -> int:
        """How many ranks hold the same numbers as this one."""
        if not is_split(tensor):
            return self.size
        mesh, placements = tensor.device_mesh, tensor.placements  # type: ignore[attr-defined]
        shares = [mesh.size(axis) for axis, placement in enumerate(placements) if placement.is_shard()]
        return self.size // int(np.prod(shares, dtype=int))

    def settle(self, optimizer: Optimizer) -> None:
        """After a step: states of another size than their parameter are whole on every rank.

        As `like` lays them out for a run that goes on; sums over other parts would round otherwise.
        """
        if not self.sharded:
            return
        for parameter, state in optimizer.state.items():
            for key, tensor in state.items():
                smaller = is_split(tensor) and tensor.shape != parameter.shape
                if smaller and not all(placement.is_replicate() for placement in tensor.placements):
                    state[key] = like(full(tensor), parameter)

    def put_away(self, model: nn.Module) -> None:
        """Take apart again what a forward pass without a backward pass left whole."""
        if hasattr(model, "reshard"):
            cast("FSDPModule", model).reshard()

    def sum(self, values: Tensor) -> Tensor:
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def any(self, flag: bool) -> bool:
        """Whether it is so on any rank."""
        if self.size == 1:
            return flag
        return bool(self.sum(torch.tensor(float(flag))) > 0)

    def wait(self) -> None:
        """Until all ranks are here."""
        self.any(False)

    def first_says(self, work: Callable[[], Result]) -> Result:
        """Do `work` on rank 0 alone; every rank gets its result. Where it fails, rank 0 tells, and the others end."""
        if self.size == 1:
            return work()
        said: list[Any] = [None, False]
        failure: BaseException | None = None
        if self.first:
            try:
                said = [work(), True]
            except BaseException as error:
                failure = error
        dist.broadcast_object_list(said, src=0, device=torch.device("cpu"))
        if failure is not None:
            raise failure
        if not said[1]:
            raise SystemExit(2)
        return cast(Result, said[0])

    @contextmanager
    def first_holds(self, manager: AbstractContextManager[None]) -> Iterator[None]:
        """Rank 0 enters, for all of them."""
        self.first_says(manager.__enter__)
        try:
            yield
        finally:
            if self.first:
                manager.__exit__(None, None, None)

    def together(self, error: UserError) -> BaseException:
        """An error that every rank has found: rank 0 tells it, the others just end."""
        return error if self.first else SystemExit(2)

    def whole(self, model: T5, device: torch.device, *, first_only: bool = False) -> T5 | None:
        """A plain copy of the whole model, in evaluation mode, on every rank or on rank 0 alone."""
        state = {}
        for name, tensor in model.state_dict().items():
            together = full(tensor)
            if self.first or not first_only:
                state[name] = together.to(device, copy=True)
        if not state:
            return None
        with torch.device("meta"):
            copy = T5(model.shape, dropout=model.dropout)
        copy.load_state_dict(state, assign=True)
        return copy.eval()


@contextmanager
def ranks(execution: Execution, device: torch.device) -> Iterator[Ranks]:
    """The job this process belongs to: torchrun's, which it tells in environment variables, or one of its own."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size % execution.tensor_parallel:
        raise UserError(
            f"--tensor-parallel {execution.tensor_parallel} does not divide the {size} "
            f"process{'es' if size > 1 else ''} of this job; start them with torchrun --nproc-per-node N"
        )
    if size == 1:
        yield Ranks(device=device)
        return
    rank = int(os.environ["RANK"])
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    own = not dist.is_initialized()
    if own:
        join(device, rank, size)
    from torch.distributed.device_mesh import init_device_mesh

    try:
        tensor = execution.tensor_parallel
        mesh = init_device_mesh(device.type, (size // tensor, tensor), mesh_dim_names=("data", "tensor"))
        saving = dist.new_group(backend="gloo", timeout=TIMEOUT)
        yield Ranks(rank=rank, size=size, tensor_size=tensor, device=device, mesh=mesh, saving=saving)
    except Exception as error:
        tell(error, rank, size)
        raise
    except Interrupted:  # all ranks, together
        if own:
            dist.destroy_process_group()
        raise
    else:
        if own:
            dist.destroy_process_group()


def join(device: torch.device, rank: int, size: int) -> None:
    """Meet the other ranks: over gloo, and over NCCL for what is on a GPU.

    torchrun keeps one store through all of its restarts. Under the same keys a restarted rank would find the addresses
    of dead ones and wait for them, so that each start has keys of its own.
    """
    backend = "gloo" if device.type == "cpu" else "cpu:gloo,cuda:nccl"
    store = next(dist.rendezvous("env://", rank, size, timeout=TIMEOUT))[0]
    store = dist.PrefixStore(f"start-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    on_gpu = device if device.type == "cuda" else None
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=TIMEOUT, device_id=on_gpu)


def tell(error: Exception, rank: int, size: int) -> None:
    """One line with the rank that failed and why; for torchrun, too, which ends the others.

    The ranks beside a dead one fail in their next exchange with it. They wait a little, so that torchrun finds the
    dead one first and names that.
    """
    if isinstance(error, UserError):
        return  # told by the command line
    said = " ".join(f"{type(error).__name__}: {error}".split())
    if lost(error):
        print_line(f"rank {rank} of {size} stops: another rank is gone ({said[:200]})")
        time.sleep(GRACE)
        return
    from torch.distributed.elastic.multiprocessing.errors import get_error_handler

    print_line(f"rank {rank} of {size} failed: {said}")
    if "TORCHELASTIC_ERROR_FILE" in os.environ:
        get_error_handler().record_exception(error)


def lost(error: BaseException) -> bool:
    """Whether this is what is seen of another rank's end."""
    return isinstance(error, dist.DistError) or "gloo" in str(error) or "onnection closed by peer" in str(error)


def print_line(line: str) -> None:
    os.write(2, f"deepnarrow: {line}\n".encode())  # in one piece, whatever the other ranks print


def share(batch: Batch, rank: int, size: int) -> tuple[Batch, Rows]:
    """Consecutive rows, as many for each rank; empty ones behind the last where they do not come out even.

    >>> mine, rows = share(Batch(np.array([[1], [2], [3]]), np.array([[4], [5], [6]])), rank=1, size=2)
    >>> mine.inputs.tolist(), mine.targets.tolist(), rows
    ([[3], [0]], [[6], [0]], Rows(first=2, total=3))
    """
    total = len(batch.inputs)
    each = -(-total // size)

    def mine(array: np.ndarray | None) -> np.ndarray | None:
        if array is None:
            return None
        rows = array[rank * each : (rank + 1) * each]
        return np.pad(rows, ((0, each - len(rows)), (0, 0)))

    return Batch(*(mine(array) for array in batch)), Rows(rank * each, total)  # type: ignore[arg-type]


def check_divides(shape: Shape, ranks: int) -> None:
    """Tensor parallelism gives each rank whole heads and an equal part of the feed-forward.

    >>> from deepnarrow.shapes import parse
    >>> check_divides(parse("tiny-nh4-kh1"), 2)
    Traceback (most recent call last):
    deepnarrow.errors.UserError: --tensor-parallel 2 gives each rank whole heads, but kv_heads is 1, no multiple of it
    """
    counts = {"num_heads": shape.num_heads, "kv_heads": shape.kv_heads or shape.num_heads, "d_ff": shape.d_ff}
    for name, count in counts.items():
        if count % ranks:
            what = "an equal part of the feed-forward" if name == "d_ff" else "whole heads"
            raise UserError(
                f"--tensor-parallel {ranks} gives each rank {what}, but {name} is {count}, no multiple of it"
            )


def split_layers(model: T5, mesh: "DeviceMesh") -> None:
    """Each rank gets its heads of every attention and of the position tables, and its part of every feed-forward.

    The embedding, the output matrix and the norms are on every rank, whole: they see the same numbers everywhere.
    """
    from torch.distributed.tensor import Shard, distribute_tensor
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    plan: dict[str, Any] = {}
    for name in ("self_attention", "cross_attention"):
        plan |= {f"{name}.{part}": ColwiseParallel() for part in ("query", "key", "value")}
        plan |= {f"{name}.output": RowwiseParallel()}
    plan |= {f"feed_forward.{part}": ColwiseParallel() for part in ("wi", "wi_0", "wi_1")}
    plan |= {"feed_forward.wo": RowwiseParallel()}
    for stack in stacks(model):
        table = distribute_tensor(stack.position.table.detach(), mesh, [Shard(1)])
        stack.position.table = nn.Parameter(table)
        for block in stack.blocks:
            there = {name: style for name, style in plan.items() if has(block, name)}
            parallelize_module(block, mesh, there)
            for name in ("self_attention", "cross_attention"):
                if hasattr(block, name):
                    attention = getattr(block, name)
                    attention.heads //= mesh.size()
                    attention.kv_heads //= mesh.size()


def shard(model: T5, mesh: "DeviceMesh") -> None:
    """Every block is a unit of its own; what is left (embedding, output, tables, last norms) stays together in a step.

    The output matrix is used outside of `hidden`, once for every share of the logits: it is whole from the forward pass
    to the end of the backward pass, so that those uses exchange nothing, and its gradient is summed once.
    """
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    units: list[nn.Module] = [block for stack in stacks(model) for block in stack.blocks]
    for unit in [*units, model]:
        fully_shard(unit, mesh=mesh, reshard_after_forward=unit is not model)
        module = cast("FSDPModule", unit)
        module.set_gradient_divide_factor(1.0)  # sums, see above
        module.set_force_sum_reduction_for_comms(True)
    register_fsdp_forward_method(model, "hidden")


def stacks(model: T5) -> list[Stack]:
    return [stack for stack in (model.encoder, model.decoder) if stack is not None]


def has(module: nn.Module, name: str) -> bool:
    """Whether there is such a submodule; `value` is None where it is tied to the key."""
    found: Any = module
    for part in name.split("."):
        found = getattr(found, part, None)
    return isinstance(found, nn.Module)


def is_split(tensor: Tensor) -> bool:
    """Whether it is a DTensor; asked so that nothing has to be imported."""
    return hasattr(tensor, "to_local")


def local(tensor: Tensor) -> Tensor:
    """What of it is on this rank; not a copy."""
    return cast(Any, tensor)._local_tensor if is_split(tensor) else tensor


def full(tensor: Tensor) -> Tensor:
    """All of it, on every rank."""
    return (cast(Any, tensor).full_tensor() if is_split(tensor) else tensor).detach()


def like(whole: Tensor, model: Tensor) -> Tensor:
    """This rank's part of a tensor that every rank holds whole, laid out as `model` is where the sizes agree.

    What has another size, such as the means that Adafactor keeps, is on every rank.
    """
    whole = whole.to(model.device)
    if not is_split(model):
        return whole
    from torch.distributed.tensor import distribute_tensor

    target = cast(Any, model)
    placements = target.placements if whole.shape == model.shape else None
    return distribute_tensor(whole, target.device_mesh, placements, src_data_rank=None)


class Reducer:
    """Sums gradients over ranks in buckets, each as soon as the backward pass is through with it.

    The stacks' last backward pass visits every parameter of a block once, last block first. The embedding and the
    output matrix also gather gradients outside of it; their sum is taken at the end.
    """

    def __init__(self, model: T5, group: Any, bucket: int = BUCKET) -> None:
        self.group, self.active = group, False
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        in_blocks = [p for m in model.modules() if isinstance(m, Block) for p in m.parameters() if p.requires_grad]
        self.buckets = packed_together(list(reversed(in_blocks)), bucket)
        self.early = len(self.buckets)
        inside = {id(parameter) for parameter in in_blocks}
        rest = [parameter for parameter in trained if id(parameter) not in inside]
        self.buckets += packed_together(list(reversed(rest)), bucket)
        self.sent: list[tuple[list[Tensor], Tensor, Any]] = []
        self.missing: list[set[int]] = []
        self.home = {id(p): number for number, bucket_ in enumerate(self.buckets[: self.early]) for p in bucket_}
        for parameter in in_blocks:
            parameter.register_post_accumulate_grad_hook(self._ready)

    @contextmanager
    def listening(self) -> Iterator[None]:
        self.missing = [{id(p) for p in bucket} for bucket in self.buckets[: self.early]]
        self.active = True
        try:
            yield
        finally:
            self.active = False

    def _ready(self, parameter: Tensor) -> None:
        if not self.active:
            return
        self.missing[self.home[id(parameter)]].discard(id(parameter))
        # In the order of the buckets, which is the same on every rank.
        while len(self.sent) < self.early and not self.missing[len(self.sent)]:
            self._send()

    def _send(self) -> None:
        gradients = []
        for parameter in self.buckets[len(self.sent)]:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            gradients.append(local(parameter.grad))
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        self.sent.append((gradients, flat, dist.all_reduce(flat, group=self.group, async_op=True)))

    def finish(self) -> None:
        """Send what is left, then put all sums where the gradients were."""
        while len(self.sent) < len(self.buckets):
            self._send()
        for gradients, flat, work in self.sent:
            work.wait()
            sums = flat.split([gradient.numel() for gradient in gradients])
            torch._foreach_copy_(gradients, [s.view_as(g) for s, g in zip(sums, gradients, strict=True)])
        self.sent = []


def packed_together(parameters: Sequence[Tensor], most: int) -> list[list[Tensor]]:
    """Consecutive parameters in lists of one dtype and at most so many bytes, or of one parameter.

    >>> [len(bucket) for bucket in packed_together([torch.zeros(2), torch.zeros(2), torch.zeros(9)], 16)]
    [2, 1]
    """
    buckets: list[list[Tensor]] = []
    size = 0
    for parameter in parameters:
        bytes_ = local(parameter).numel() * parameter.element_size()
        if not buckets or size + bytes_ > most or buckets[-1][0].dtype != parameter.dtype:
            buckets.append([])
            size = 0
        buckets[-1].append(parameter)
        size += bytes_
    return buckets
