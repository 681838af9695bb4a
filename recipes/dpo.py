# /// script
# dependencies = [
#     "unsloth",
#     "unsloth_zoo",
#     "torch",
#     "transformers",
#     "trl",
#     "peft",
#     "datasets",
#     "accelerate",
#     "bitsandbytes",
#     "trackio",
#     "huggingface_hub",
#     "matplotlib",
#     "numpy",
#     "psutil",
#     "httpx",
#     # torch compiles for a processor with it, and names it only for newer Pythons.
#     "setuptools",
# ]
#
# [tool.uv]
# # unsloth asks for a certifi that some registries do not have yet; any release of it will do.
# override-dependencies = ["certifi"]
# ///
r"""Teach a small language model which answers are better, from pairs of them: DPO and its kin, LoRA with Unsloth.

On Hugging Face Jobs, straight from this file or from its URL:

    hf jobs uv run --flavor l4x1 --timeout 4h --secrets HF_TOKEN templates/dpo.py -- \
        --base-model LiquidAI/LFM2.5-1.2B-Instruct --dataset trl-lib/ultrafeedback_binarized \
        --output-repo you/lfm-preferred

Here, on whatever processor there is:

    uv run templates/dpo.py --base-model ./model --dataset ./pairs.jsonl --save-local ./tuned

Rows are prompt, chosen and rejected (text or turns), OpenAI's input, preferred_output and non_preferred_output, or for
--loss kto prompt, completion and label. The model is compared with the one that training starts from.

Each thing that matters is printed as one line `EVENT {"event": NAME, ...}`; NAME is one of plan, parent, data, settings, masks,
questions, coverage, batching, progress, eval, checkpoint, early_stopped, pushed, held_out, answering, graded, scores, sample, warning, done, failed. Exit
code 0: a tuned model is where the `done` event says; 1: the `failed` event says why and what to do.

torch is the CUDA 12.8 build because it runs on older drivers too: a CUDA 13 build on an older driver sees no GPU.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from unsloth_jobs.training.adapter_weights import trained_weights
from unsloth_jobs.training.attach import attach_adapter, in_full_precision
from unsloth_jobs.training.batching import (
    Batching,
    Passes,
    batchings,
    choose_batching,
    emit_batching,
    require_rows_for_all,
    rounded,
)
from unsloth_jobs.training.beginning import begin_training
from unsloth_jobs.training.callbacks import progress_callback, trackio_callback
from unsloth_jobs.training.card import card_figures, model_card
from unsloth_jobs.training.checkpoints import checkpoint_to_resume, lineage
from unsloth_jobs.training.columns import Format, detect_format
from unsloth_jobs.training.early_stopping import BestAdapter
from unsloth_jobs.training.evidence import draw_losses, final_loss, show_evidence
from unsloth_jobs.training.flags import parse_flags
from unsloth_jobs.training.fused_head import add_fused_head, compute_head_without_gpu
from unsloth_jobs.training.launch import run_on_all_gpus
from unsloth_jobs.training.masks import Example, make_renderer, segments
from unsloth_jobs.training.memory import room_for
from unsloth_jobs.training.merge import push_merged
from unsloth_jobs.training.models import load_config, load_model
from unsloth_jobs.training.outcome import count_trained_steps, emit_done
from unsloth_jobs.training.parent_files import load_tokenizer, parent_lineage
from unsloth_jobs.training.preference_card import accuracy_interval, preference_table
from unsloth_jobs.training.preference_losses import LOSSES
from unsloth_jobs.training.preference_scores import Yardstick, warn_of_displacement, warn_of_swapped
from unsloth_jobs.training.preference_tokens import digest_of, encode_preferences, require_preferences
from unsloth_jobs.training.preference_trainer import (
    keep_reference_if_trained,
    preference_options,
    preference_trainer,
    remove_reference,
)
from unsloth_jobs.training.preferences import find_preference_format
from unsloth_jobs.training.processes import from_first, is_first, leave_peers, process_count, process_number
from unsloth_jobs.training.push import push_results
from unsloth_jobs.training.question_set import choose_questions
from unsloth_jobs.training.report import Stop, emit
from unsloth_jobs.training.retry import train_with_oom_retry
from unsloth_jobs.training.run import StopSignal
from unsloth_jobs.training.setting import setting
from unsloth_jobs.training.setting_problems import training_problems
from unsloth_jobs.training.settings import TrainingSettings
from unsloth_jobs.training.settled import settle
from unsloth_jobs.training.step_timer import StepTimer
from unsloth_jobs.training.steps import Steps, effective_batch_size

METHOD = "dpo"

# ---------------------------------------------------------------------------------------------------------------
# Settings: fill them in here and above, or pass the flag of the same name.


@dataclass(frozen=True)
class Settings(TrainingSettings):
    loss: str = setting(
        "sigmoid", f"how preferences are learned: {', '.join(LOSSES)}; sigmoid is DPO, kto takes single answers"
    )
    beta: float = setting(0.0, "strength of the loss: how closely the start is kept to (0: 0.1; 2.0 for simpo)")
    simpo_gamma: float = setting(1.0, "margin that --loss simpo asks for")
    # Ten times less than for imitation, as TRL (5e-6) and Tinker (1e-5) have it for LoRA: a pair says little, and often.
    learning_rate: float = setting(1e-5, "peak learning rate")
    packing: bool = setting(False, "not for preferences: their rows are trained side by side")
    prompt_column: str = setting("", "column that holds the question, where its name is not recognised")
    chosen_column: str = setting("", "column that holds the better answer")
    rejected_column: str = setting("", "column that holds the worse answer")
    completion_column: str = setting("", "column that holds a single answer, for --loss kto")
    label_column: str = setting("", "column that says whether a single answer is good (true or false)")

    @property
    def least_sequences(self) -> int:
        """Sequences in a forward pass at least."""
        found = LOSSES.get(self.loss)
        return found.sequences * found.smallest if found else 1


# ---------------------------------------------------------------------------------------------------------------
# Your rows.


def to_preference(row: dict[str, Any]) -> dict[str, Any] | None:
    """A row of your data as a preference, where no flag describes it: fill this in in a copy. None: columns are known by name."""
    # return {"prompt": row["ticket"], "chosen": row["sent"], "rejected": row["draft"]}
    return None


def find_format(settings: Settings, columns: list[str], first: Mapping[str, Any], media: Iterable[str]) -> Format:
    """How rows are read: as to_preference says, given the first of them, or by their columns' names. Raises Stop."""
    roles = ("prompt", "chosen", "rejected", "completion", "label")
    named = {role: getattr(settings, f"{role}_column") for role in roles}
    return find_preference_format(columns, named, to_preference, first, media)


def find_test_format(settings: Any, columns: list[str], first: Mapping[str, Any], media: Iterable[str]) -> Format:
    """How the rows of --eval-dataset are read: preferences, or questions with their answers."""
    try:
        return find_format(settings, columns, first, media)
    except Stop:
        return detect_format(columns, settings.prompt_column, settings.completion_column, media)


def may_pack(settings: Settings, config: Mapping[str, Any]) -> bool:
    return False


# ---------------------------------------------------------------------------------------------------------------
# The run.


def train(settings: Settings) -> None:
    began = time.monotonic()
    start = begin_training(settings, find_format)  # what can fail for free comes first: repository, rows, their columns
    settings, parent, api, data, stop_signal = start.settings, start.parent, start.api, start.data, start.stop_signal
    train_rows, eval_rows, layout = data.train, data.held_out, data.layout

    # ---- tokens and masks; unsloth is imported before transformers, since it patches what comes after it
    if settings.backend == "unsloth":
        import unsloth  # noqa: F401
    config, settings = load_config(settings)
    settings = settle(settings, config, len(train_rows), len(eval_rows or ()))
    require_rows_for_all(settings, LOSSES[settings.loss].smallest)
    tokenizer = load_tokenizer(settings, parent)
    renderer, paired = make_renderer(tokenizer, layout), LOSSES[settings.loss].paired
    train_tokens, masks = encode_preferences(train_rows, renderer, layout, settings.max_seq_length, paired)
    require_preferences(masks)
    held_out = encode_preferences(eval_rows, renderer, layout, settings.max_seq_length, paired)[0] if eval_rows else None
    if eval_rows and not held_out:
        message = "No held-out row has answers that fit: there is no validation."
        emit("warning", code="no_evaluation", message=message)
        held_out = None
    emit("masks", **masks, digest=digest_of(renderer, layout, data.rows), **shown_pair(tokenizer, train_tokens[0]))
    chosen = choose_questions(settings, train_rows, eval_rows, tokenizer, renderer, layout, find_test_format)

    # ---- the model, and how much of it the adapter reaches
    model = load_model(settings)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token  # harmless here: labels, not the pad token, say what is learned
    loss, steps = LOSSES[settings.loss], Steps(train_tokens["length"], settings, packed=False)
    longest = rounded(max(longest_sequence(train_tokens), longest_sequence(held_out) if held_out else 0))
    # What a forward pass holds of a row is both of its answers.
    widest = replace(settings, max_seq_length=loss.sequences * longest)
    shares = loss.smallest, process_count()
    room = room_for(model, settings)
    batching, kept = from_first(lambda: choose_batching(widest, steps.spread_length, room, False, *shares))
    settings = replace(settings, gradient_checkpointing="off" if kept else "offload")
    emit_batching(settings, batching, False, longest)
    own = lineage(METHOD, settings, train_tokens, False) | parent_lineage(parent)
    checkpoint = from_first(lambda: checkpoint_to_resume(settings, api, own))
    model = attach_adapter(model, settings, parent)
    began_with = trained_weights(model) if parent else {}

    # ---- training, with the start's loss first: it is the yardstick, and it finds an evaluation that does not fit
    best, yardstick = BestAdapter(int(settings.early_stopping) if held_out else 0), Yardstick()
    weights = label_weights(masks)

    def make_trainer(batching: Batching, kept: bool) -> Any:
        shape = replace(settings, gradient_checkpointing="off" if kept else "offload"), steps, batching, weights
        return build_trainer(model, tokenizer, train_tokens, held_out, *shape, api, stop_signal, best, own, yardstick)

    trainer = make_trainer(batching, kept)
    ways = lambda: batchings(widest, steps.spread_length, False, 1, *shares)  # noqa: E731
    trainer, base_loss = train_with_oom_retry(trainer, make_trainer, checkpoint, stop_signal, kept, ways)
    leave_peers()
    if not is_first():
        return
    remove_reference(model)  # its log-probabilities of the held-out rows are known
    warn_of_swapped(yardstick.start)
    trained_steps = count_trained_steps(trainer, checkpoint)
    trainer.timer.tokens = trainer.state.epoch * masks["tokens"]  # those of earlier trainers and machines, too

    # ---- the adapter is safe before anything that is merely nice to have
    folder = Path(settings.save_local)
    best.restore(model)
    model.save_pretrained(folder, selected_adapters=["default"])
    tokenizer.save_pretrained(folder)
    push_results(api, settings, folder, stop_signal)
    stop_signal.training = False
    stop_signal.require_none(trainer.state, settings.output_repo or str(folder))
    losses = {"base_loss": base_loss, "tuned_loss": final_loss(trainer, best) if held_out else None}
    kept_step = best.step if best.weights else None
    changes = yardstick.changes(trainer.state.global_step if kept_step is None else kept_step)
    warn_of_displacement(changes)
    evaluation, answers = show_evidence(model, tokenizer, chosen, settings, stop_signal.seconds_left(), began_with)
    reached = {name: after for name, (_, after) in changes.items() if name != "loss"}
    trainer.curves.close(losses | reached | (evaluation.as_figures() if evaluation else {}), answers)
    drawn = draw_losses(trainer.state.log_history, base_loss, kept_step, folder / "loss.png", f"loss ({settings.loss})")
    figures = card_figures(settings, trainer, time.monotonic() - began)
    figures["Preferences"] = f"--loss {settings.loss}, beta {strength(settings):g}"
    table = preference_table(changes, len(held_out or ()), settings.loss)
    card = model_card(settings, losses, figures, answers, "loss.png" if drawn else None, METHOD, evaluation, table)
    (folder / "README.md").write_text(card, encoding="utf-8")
    push_results(api, settings, folder, stop_signal)
    if settings.merge_model:
        push_merged(model, tokenizer, api, settings)
    measured = {
        "loss_name": settings.loss,
        "preferences": changes,
        "reward_accuracy_interval": accuracy_interval(changes, len(held_out or ())),
        "held_out": len(held_out or ()),
    }
    emit_done(settings, trainer, masks, evaluation, parent, trained_steps, began, **losses, **measured)


# ---------------------------------------------------------------------------------------------------------------
# The trainer.


def build_trainer(
    model: Any,
    tokenizer: Any,
    train_tokens: Any,
    held_out: Any,
    settings: Settings,
    steps: Steps | None = None,
    batching: Batching | None = None,
    weights: tuple[float, float] = (1.0, 1.0),
    api: Any = None,
    stop_signal: StopSignal | None = None,
    best: BestAdapter | None = None,
    origin: Mapping[str, Any] | None = None,
    yardstick: Yardstick | None = None,
) -> Any:
    """TRL's trainer of the loss over rows as tokens (encode_preferences). The reference is the model as it is now."""
    import torch
    import transformers

    timer, curves, loss = StepTimer(), trackio_callback(), LOSSES[settings.loss]
    if settings.backend == "trl" and not torch.cuda.is_available():
        compute_head_without_gpu()
    order = steps or Steps(train_tokens["length"], settings, packed=False)
    division = batching or choose_batching(settings, order.spread_length, lambda tokens: True, False, loss.smallest)[0]
    options = preference_options(settings, division, evaluates=bool(held_out))
    trainer_class, config = preference_trainer(settings.loss, strength(settings), settings.simpo_gamma, weights, options)
    remove_reference(model)  # an earlier trainer's, which ran out of memory
    trainer = trainer_class(
        model=model,
        processing_class=tokenizer,
        args=config,
        # One row of each, for what TRL looks at while it is made: batches are made of the rows below, which are tokens.
        train_dataset=train_tokens.select(range(1)),
        eval_dataset=held_out.select(range(1)) if held_out else None,
        callbacks=[
            progress_callback(settings, api, timer, stop_signal or StopSignal(), best or BestAdapter(), origin or {}),
            curves,
        ],
    )
    if loss.reference:
        keep_reference_if_trained(model)
    else:
        add_fused_head(model)
    in_full_precision(model)  # TRL makes it bf16
    trainer.train_dataset, trainer.eval_dataset = train_tokens, held_out
    trainer.rows, trainer.held_out, trainer.yardstick = train_tokens, held_out, yardstick or Yardstick()
    trainer.filler, trainer.multiple = tokenizer.pad_token_id, 64 if torch.cuda.is_available() else 8
    trainer.timer, trainer.passes, trainer.batching, trainer.curves = (
        timer,
        Passes(order, division, False, process_number(), process_count()),
        division,
        curves,
    )
    trainer.remove_callback(transformers.PrinterCallback)  # the events say it
    return trainer


def strength(settings: Settings) -> float:
    return settings.beta or LOSSES[settings.loss].beta


def label_weights(masks: Mapping[str, Any]) -> tuple[float, float]:
    """Of desirable and undesirable answers, for KTO: the rarer kind counts as much as the other (its paper's equation 8)."""
    if "labels" not in masks:
        return 1.0, 1.0
    good, bad = masks["labels"]["desirable"], masks["labels"]["undesirable"]
    return max(bad / good, 1.0), max(good / bad, 1.0)


def longest_sequence(tokens: Any) -> int:
    return max(len(ids) for name in tokens.column_names if name.endswith("_ids") for ids in tokens[name])


def shown_pair(tokenizer: Any, row: Mapping[str, Any]) -> dict[str, Any]:
    """A row's answers as the model sees them, for the event `masks`: sample and, of a pair, sample_rejected."""
    names = ("chosen_", "rejected_") if "chosen_ids" in row else ("",)
    examples = [Example(row[f"{name or 'input_'}ids"], row[f"{name}labels"], 0, 0) for name in names]
    return dict(zip(("sample", "sample_rejected"), (segments(tokenizer, one) for one in examples), strict=False))


# ---------------------------------------------------------------------------------------------------------------
# Flags, and how the run ends.


def setting_problems(settings: Settings) -> Iterable[str]:
    yield from training_problems(settings)
    if settings.loss not in LOSSES:
        yield f"--loss is one of {', '.join(LOSSES)}, not {settings.loss}"
        return
    if settings.beta < 0 or settings.simpo_gamma < 0:
        yield "--beta and --simpo-gamma must be at least 0"
    if settings.packing:
        yield "--packing is for templates/sft.py: preferences are not packed"
    if bool(settings.chosen_column) != bool(settings.rejected_column):
        yield "--chosen-column and --rejected-column go together"
    rows = effective_batch_size(settings)
    if not LOSSES[settings.loss].paired and (rows < 2 or rows % 2):
        yield f"--loss kto needs an even number of rows a step (--batch-size x --gradient-accumulation), not {rows}"


def parse_args(argv: list[str] | None = None) -> Settings:
    """Command-line flags over the defaults above. Raises SystemExit(2) on a flag or a value that is not one."""
    return parse_flags(Settings, setting_problems, __doc__, argv)


def main() -> int:
    settings = parse_args()
    again = "the same command with --resume at its end goes on from the last checkpoint"
    return run_on_all_gpus(lambda: train(settings), again, __file__)


if __name__ == "__main__":
    sys.exit(main())
