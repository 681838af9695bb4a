"""The losses that preferences can be learned by, and what each needs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Loss(NamedTuple):
    """trainer: of TRL's, by the name of its method; beta: its usual strength; reference: whether each step also asks the
    model that training starts from; paired: whether it compares two answers, or takes answers one by one.
    """

    trainer: str
    beta: float
    reference: bool = True
    paired: bool = True

    @property
    def sequences(self) -> int:
        """Sequences of a row that are learned from."""
        return 2 if self.paired else 1

    @property
    def smallest(self) -> int:
        """Rows in a forward pass at least: KTO estimates its KL from the answers to the other questions in it."""
        return 1 if self.paired else 2


LOSSES: Mapping[str, Loss] = {
    "sigmoid": Loss("dpo", 0.1),
    "ipo": Loss("dpo", 0.1),
    "hinge": Loss("dpo", 0.1),
    "apo_zero": Loss("dpo", 0.1),
    "apo_down": Loss("dpo", 0.1),
    "orpo": Loss("orpo", 0.1, reference=False),
    "simpo": Loss("cpo", 2.0, reference=False),
    "kto": Loss("kto", 0.1, paired=False),
}
