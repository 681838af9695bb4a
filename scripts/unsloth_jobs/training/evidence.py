"""Evidence: what training changed, measured on held-out rows."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from .early_stopping import BestAdapter, perplexity
from .masks import IGNORE
from .report import emit

ANSWERS = 3  # held-out questions that base and tuned model answer
ANSWER_TOKENS = 128


def last_loss(trainer: Any) -> float:
    return next(entry["loss"] for entry in reversed(trainer.state.log_history) if "loss" in entry)


def final_loss(trainer: Any, best: BestAdapter) -> float | None:
    """Held-out loss of the adapter that was saved, measured now unless training ended on an evaluation; None if it fails."""
    if best.weights:
        return best.loss
    last: dict[str, Any] = next((entry for entry in reversed(trainer.state.log_history) if "eval_loss" in entry), {})
    return last["eval_loss"] if last.get("step") == trainer.state.global_step else trainer.evaluate().get("eval_loss")


def losses_of(base: float | None, tuned: float | None) -> dict[str, float | None]:
    """Losses in nats per token and their perplexities, by name; None where nothing was held out."""
    losses = {"base_loss": base, "tuned_loss": tuned}
    perplexities = {"base_perplexity": base, "tuned_perplexity": tuned}
    return losses | {name: None if loss is None else round(perplexity(loss), 4) for name, loss in perplexities.items()}


def compare_answers(model: Any, tokenizer: Any, example: Mapping[str, Any]) -> dict[str, str] | None:
    """One held-out question answered by the base model and by the tuned one, greedily. None for rows of plain text."""
    import torch

    learned = [label != IGNORE for label in example["labels"]]
    start = len(learned) - learned[::-1].index(True)  # of the last answer, going back from its end
    while start and learned[start - 1]:
        start -= 1
    if not start or example["input_ids"][:start] == [tokenizer.bos_token_id]:
        return None
    prompt = torch.tensor([example["input_ids"][:start]], device=model.device)

    def answer() -> str:
        with torch.no_grad():
            output = model.generate(
                input_ids=prompt,
                attention_mask=torch.ones_like(prompt),
                max_new_tokens=ANSWER_TOKENS,
                do_sample=False,
                pad_token_id=tokenizer.pad_token_id,
            )
        return tokenizer.decode(output[0, prompt.shape[1] :], skip_special_tokens=True).strip()

    with model.disable_adapter():
        base = answer()
    return {
        "prompt": tokenizer.decode(prompt[0], skip_special_tokens=True).strip(),
        "base": base,
        "tuned": answer(),
        "reference": tokenizer.decode(example["input_ids"][start:], skip_special_tokens=True).strip(),
    }


def show_answers(model: Any, tokenizer: Any, rows: Iterable[Mapping[str, Any]], backend: str) -> list[dict[str, str]]:
    """compare_answers for the first ANSWERS questions, each as an event. A failure is a warning: the result is safe."""
    answers: list[dict[str, str]] = []
    compared = (compare_answers(model, tokenizer, row) for row in rows)
    try:
        if backend == "unsloth":
            from unsloth import FastLanguageModel

            FastLanguageModel.for_inference(model)
        else:
            model.gradient_checkpointing_disable()
            model.eval()
        for answer in itertools.islice(filter(None, compared), ANSWERS):
            emit("sample", **answer)
            answers.append(answer)
    except Exception as error:
        emit("warning", code="sample_failed", message=f"{type(error).__name__}: {error}")
    return answers


def draw_losses(history: list[dict[str, Any]], base_loss: float | None, kept_step: int | None, path: Path) -> bool:
    """Whether the picture of the loss over the steps could be drawn. A failure is a warning: the result is safe."""
    training = [(entry["step"], entry["loss"]) for entry in history if "loss" in entry]
    # The base model was measured before the trainer's history began.
    held_out = [(0, base_loss)] if base_loss is not None else []
    held_out += [(entry["step"], entry["eval_loss"]) for entry in history if "eval_loss" in entry and entry["step"]]
    try:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(7, 3.5), dpi=100, layout="constrained")
        axes = figure.add_subplot(xlabel="step", ylabel="loss (nats per token)")
        axes.plot(*zip(*training, strict=True), color="tab:blue", alpha=0.5, label="training batches")
        if held_out:
            axes.plot(*zip(*held_out, strict=True), color="tab:orange", marker="o", label="held-out rows")
        if kept_step is not None:
            axes.axvline(kept_step, color="gray", linestyle=":", label=f"kept: step {kept_step}")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
        figure.savefig(path)
    except Exception as error:
        emit("warning", code="picture_failed", message=f"{type(error).__name__}: {error}")
        return False
    return True
