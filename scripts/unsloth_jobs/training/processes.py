"""Several processes, one a GPU, that train together: which of them this is, and what they agree on.

Each sees its own GPU alone, and so do the libraries in it: it trains as on a machine with one GPU. Rows are dealt out by
Passes, gradients are added up by StepTrainer, and whatever could differ is agreed on here. In a run of one process none of this
does anything.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

from .report import SILENT

Answered = TypeVar("Answered")

STUCK = timedelta(minutes=30)  # GPUs that wait for each other so long never meet
FOR_EVER = timedelta(days=7)  # while the first process pushes, the others wait: only its end ends that
OF_LAUNCHER = (
    "RANK",
    "LOCAL_RANK",
    "WORLD_SIZE",
    "LOCAL_WORLD_SIZE",
    "GROUP_RANK",
    "GROUP_WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
)


@dataclass
class Peers:
    """number: of this process, from 0; group: that waits without a time-out, on the processors."""

    number: int = 0
    count: int = 1
    group: Any = None


PEERS = Peers()


def process_number() -> int:
    return PEERS.number


def process_count() -> int:
    return PEERS.count


def is_first() -> bool:
    """Whether this process speaks for all: it prints, saves and pushes."""
    return PEERS.number == 0


def join_peers() -> bool:
    """Join the processes that torchrun started beside this one; whether there are any. Before torch is used."""
    count, number = (int(os.environ.get(name, default)) for name, default in (("WORLD_SIZE", "1"), ("RANK", "0")))
    if count == 1:
        return False
    see_one_gpu(int(os.environ.get("LOCAL_RANK", number)))
    if number:
        os.environ[SILENT] = "1"
    import torch
    import torch.distributed as dist

    on_gpu = torch.cuda.is_available()
    device = {"device_id": torch.device("cuda", 0)} if on_gpu else {}
    dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo", timeout=STUCK, **device)
    PEERS.number, PEERS.count, PEERS.group = number, count, dist.new_group(backend="gloo", timeout=FOR_EVER)
    for name in OF_LAUNCHER:
        os.environ.pop(name, None)  # else each library would divide rows and add gradients up in a way of its own
    return True


def see_one_gpu(place: int) -> None:
    """Hide all GPUs but one from this process, and from the libraries that it will import."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible != "":
        listed = visible.split(",") if visible else [str(place)]
        os.environ["CUDA_VISIBLE_DEVICES"] = listed[place % len(listed)]


def from_first(action: Callable[[], Answered]) -> Answered:
    """What the action returns in the first process, in all: for what one alone may do, and for what could differ."""
    if PEERS.count == 1:
        return action()
    import torch.distributed as dist

    box: list[Any] = [action() if is_first() else None]
    dist.broadcast_object_list(box, src=0, group=PEERS.group)
    return box[0]


def from_all(own: list[Answered]) -> list[Answered]:
    """The lists of all processes, one after the other."""
    if PEERS.count == 1:
        return own
    import torch.distributed as dist

    boxes: list[Any] = [None] * PEERS.count
    dist.all_gather_object(boxes, own, group=PEERS.group)
    return [one for box in boxes for one in box]


def greatest(value: int) -> int:
    """The greatest of all processes' values."""
    if PEERS.count == 1:
        return value
    import torch
    import torch.distributed as dist

    found = torch.tensor(value)
    dist.all_reduce(found, op=dist.ReduceOp.MAX, group=PEERS.group)
    return int(found)


def add_up(value: Any) -> Any:
    """A tensor's sum over all processes, on its own device; in one process the tensor itself."""
    if PEERS.count > 1:
        import torch.distributed as dist

        dist.all_reduce(value)
    return value


def add_gradients(parameters: list[Any], loss: Any, share: float = 1.0) -> Any:
    """Each gradient becomes the sum of all processes' ones, in one message; the sum of their losses is returned.

    share: what all sums are multiplied by; 1 / processes makes means of them.
    """
    import torch

    trained = [one for one in parameters if one.requires_grad]
    found = [torch.zeros_like(one) if one.grad is None else one.grad for one in trained]
    whole = add_up(torch.cat([loss.reshape(1).float(), *(one.reshape(-1).float() for one in found)])) * share
    at = 1
    for parameter, gradient in zip(trained, found, strict=True):
        parameter.grad = gradient.copy_(whole[at : at + gradient.numel()].view_as(gradient))
        at += gradient.numel()
    return whole[0]


def share_weights(model: Any) -> None:
    """The trained weights of the first process, in all."""
    if PEERS.count > 1:
        import torch.distributed as dist

        for one in model.parameters():
            if one.requires_grad:
                dist.broadcast(one.data, src=0)


def wait_for_peers() -> None:
    greatest(0)


def leave_peers() -> None:
    """Once training is over: the first goes on alone, and the others end."""
    if PEERS.count == 1:
        return
    import torch.distributed as dist

    wait_for_peers()
    dist.destroy_process_group()
    PEERS.count = 1
