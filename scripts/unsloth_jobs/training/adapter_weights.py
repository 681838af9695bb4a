"""The weights of the adapter in memory: taken out of the model, and put back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any


def trained_weights(model: Any) -> dict[str, Any]:
    """A copy of each weight that is trained, by its name, in the memory of the processor."""
    return {name: value.detach().cpu().clone() for name, value in model.named_parameters() if value.requires_grad}


def set_weights(model: Any, weights: Mapping[str, Any]) -> None:
    import torch

    with torch.no_grad():
        for name, value in model.named_parameters():
            if name in weights:
                value.copy_(weights[name])


@contextmanager
def as_it_began(model: Any, began: Mapping[str, Any]) -> Iterator[None]:
    """The model that training started from: with the adapter that it went on from, or, where there was none, bare.

    began: the adapter's weights at that time; {} where there was none.
    """
    if not began:
        with model.disable_adapter():
            yield
        return
    tuned = {name: value.detach().cpu().clone() for name, value in model.named_parameters() if name in began}
    set_weights(model, began)
    try:
        yield
    finally:
        set_weights(model, tuned)
