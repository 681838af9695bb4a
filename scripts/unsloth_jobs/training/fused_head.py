"""Log-probabilities of each token without the logits of a whole batch: TRL's fused LM head."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .masks import IGNORE


def add_fused_head(model: Any, temperature: float = 1.0, outputs: tuple[str, ...] = ("log_probs", "mean_logits")) -> None:
    """TRL's fused LM head, which its trainers of DPO, KTO and GRPO add by themselves. temperature: logits are divided by it."""
    from trl.trainer.utils import add_fused_lm_head

    add_fused_lm_head(model.get_base_model(), temperature=temperature, outputs=outputs)


def fused_outputs(model: Any, batch: Mapping[str, Any]) -> Any:
    """What the fused head says of a batch (padding.padded), whose labels are the tokens that completion_mask marks."""
    return model(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        labels=batch["input_ids"].masked_fill(batch["completion_mask"] == 0, IGNORE),
        use_cache=False,
        fused_lm_head=True,
    )


def compute_head_without_gpu() -> None:
    """TRL's fused head is a kernel for GPUs; Unsloth brings one for processors, and without Unsloth this is it."""
    from trl.trainer import utils

    utils._ChunkedLogProbFunction = WholeLogProbs


class WholeLogProbs:
    """What TRL's kernel computes of each token, from all its logits at once."""

    @staticmethod
    def apply(hidden, weight, bias, labels, temperature, chunk_size, softcap, scale, outputs):
        import torch

        logits = torch.nn.functional.linear(hidden, weight, bias).float() * scale
        logits = (softcap * torch.tanh(logits / softcap) if softcap else logits) / temperature
        all_log_probs = logits.log_softmax(-1)
        probabilities = all_log_probs.exp()
        values = {
            "log_probs": all_log_probs.gather(-1, labels[:, None])[:, 0],
            "entropy": -(probabilities * all_log_probs).sum(-1),
            "log_sum_sq_probs": probabilities.square().sum(-1).log(),
            "mean_logits": logits.mean(-1),
            "is_top1": logits.argmax(-1) == labels,
        }
        return tuple(value if name in (*outputs, "log_probs") else None for name, value in values.items())
