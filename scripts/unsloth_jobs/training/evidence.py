"""Evidence: what training changed, measured on held-out rows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .adapter_weights import as_it_began
from .early_stopping import BestAdapter, perplexity
from .evaluation import Answering, Evaluation, evaluate_contenders, write_answers
from .generation import Answer, answer_all, answer_limit
from .question_set import QuestionSet
from .questions import Question
from .report import emit
from .settings import TrainingSettings

ANSWERS = 3  # of base and tuned model, that are shown
ANSWER_TOKENS = 128  # of each, where answers are shown and not graded
ANSWERS_FILE = "answers.jsonl"


def last_loss(trainer: Any) -> float:
    return next(entry["loss"] for entry in reversed(trainer.state.log_history) if "loss" in entry)


def final_loss(trainer: Any, best: BestAdapter) -> float | None:
    """Held-out loss of the adapter that was saved, measured now unless training ended on an evaluation; None if it fails.

    The event `held_out` tells the loss of each batch of held-out rows: runs are compared by these.
    """
    step = best.step if best.weights else trainer.state.global_step
    loss = best.loss if best.weights else loss_at(step, trainer)
    if parts := trainer.parts_at.get(step):
        emit("held_out", step=step, losses=[round(one, 5) for one, _ in parts], weights=[weight for _, weight in parts])
    return loss


def loss_at(step: int, trainer: Any) -> float | None:
    last: dict[str, Any] = next((entry for entry in reversed(trainer.state.log_history) if "eval_loss" in entry), {})
    return last["eval_loss"] if last.get("step") == step else trainer.evaluate().get("eval_loss")


def losses_of(base: float | None, tuned: float | None) -> dict[str, float | None]:
    """Losses in nats per token and their perplexities, by name; None where nothing was held out."""
    losses = {"base_loss": base, "tuned_loss": tuned}
    perplexities = {"base_perplexity": base, "tuned_perplexity": tuned}
    return losses | {name: None if loss is None else round(perplexity(loss), 4) for name, loss in perplexities.items()}


def show_evidence(
    model: Any,
    tokenizer: Any,
    chosen: QuestionSet,
    settings: TrainingSettings,
    seconds: float,
    began: Mapping[str, Any] | None = None,
    limit: int | None = None,
    known: Sequence[Answer | None] = (),
) -> tuple[Evaluation | None, list[dict[str, str]]]:
    """The grades of base and tuned model, and the first answers of both, as events. A failure is a warning: the result is safe.

    None without a grader, or where nothing could be answered. seconds: that are left for it. began: the weights of the
    adapter that training went on from, which is the base then. limit: tokens of an answer (None: as the references are); known: what the base has answered already, question by question.
    """
    evaluation, samples = None, []
    try:
        prepare_for_inference(model, settings.backend)
        if chosen.grader and chosen.questions:
            limit = limit or answer_limit((question.reference for question in chosen.questions), tokenizer)
            contenders = base_and_tuned(model, tokenizer, limit, began)
            if known:
                remembered = {id(question): answer for question, answer in zip(chosen.questions, known, strict=True)}
                contenders["base"] = lambda questions, until: [remembered[id(question)] for question in questions]
            evaluation = evaluate_contenders(contenders, chosen, chosen.grader, min(settings.grading_seconds, seconds))
            if evaluation:
                emit("graded", **evaluation.as_event())
                emit("scores", **evaluation.as_scores())
                if settings.card_samples:  # pushed with the card
                    write_answers(evaluation, Path(settings.save_local) / ANSWERS_FILE)
            else:
                emit("warning", code="no_grading", message="The time did not suffice to answer a question.")
        samples = samples_of(evaluation) if evaluation else sample_answers(model, tokenizer, chosen.questions[:ANSWERS], began)
        for sample in samples:
            emit("sample", **sample)
    except Exception as error:
        emit("warning", code="sample_failed", message=f"{type(error).__name__}: {error}")
    return evaluation, samples


def base_and_tuned(
    model: Any, tokenizer: Any, max_new_tokens: int, began: Mapping[str, Any] | None = None
) -> dict[str, Answering]:
    """The model that training started from, and what it has become."""

    def as_tuned(questions: Sequence[Question], until: float) -> list[Answer | None]:
        return answer_all(model, tokenizer, questions, max_new_tokens, until)

    def as_base(questions: Sequence[Question], until: float) -> list[Answer | None]:
        with as_it_began(model, began or {}):
            return as_tuned(questions, until)

    return {"base": as_base, "tuned": as_tuned}


def prepare_for_inference(model: Any, backend: str) -> None:
    if backend == "unsloth":
        from unsloth import FastLanguageModel

        FastLanguageModel.for_inference(model)
    else:
        model.gradient_checkpointing_disable()
        model.eval()


def sample_answers(
    model: Any, tokenizer: Any, questions: Sequence[Question], began: Mapping[str, Any] | None = None
) -> list[dict[str, str]]:
    """Some questions, with the answers of base and tuned model."""
    answering = base_and_tuned(model, tokenizer, ANSWER_TOKENS, began)
    base, tuned = (answer(questions, math.inf) for answer in answering.values())
    return [
        as_sample(question, said, learned)
        for question, said, learned in zip(questions, base, tuned, strict=True)
        if said and learned
    ]


def samples_of(evaluation: Evaluation) -> list[dict[str, str]]:
    return [as_sample(*one) for one in zip(evaluation.questions[:ANSWERS], *evaluation.answers.values(), strict=False)]


def as_sample(question: Question, base: Answer, tuned: Answer) -> dict[str, str]:
    return {"prompt": question.asked, "base": base.text, "tuned": tuned.text, "reference": question.reference}


def draw_losses(
    history: list[dict[str, Any]],
    base_loss: float | None,
    kept_step: int | None,
    path: Path,
    what: str = "loss (nats per token)",
) -> bool:
    """Whether the picture of the loss over the steps could be drawn. A failure is a warning: the result is safe."""
    training = [(entry["step"], entry["loss"]) for entry in history if "loss" in entry]
    # The base model was measured before the trainer's history began.
    held_out = [(0, base_loss)] if base_loss is not None else []
    held_out += [(entry["step"], entry["eval_loss"]) for entry in history if "eval_loss" in entry and entry["step"]]
    try:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(7, 3.5), dpi=100, layout="constrained")
        axes = figure.add_subplot(xlabel="step", ylabel=what)
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
