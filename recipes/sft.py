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
#     "openpyxl",
#     "httpx",
#     "jsonschema",
#     # torch compiles for a processor with it, and names it only for newer Pythons.
#     "setuptools",
# ]
#
# [tool.uv]
# # unsloth asks for a certifi that some registries do not have yet; any release of it will do.
# override-dependencies = ["certifi"]
# ///
r"""Fine-tune a small language model on chat data: LoRA with Unsloth, on a rented GPU or on this machine.

On Hugging Face Jobs, straight from this file or from its URL:

    hf jobs uv run --flavor l4x1 --timeout 4h --secrets HF_TOKEN templates/sft.py -- \
        --base-model LiquidAI/LFM2.5-1.2B-Instruct --dataset mlabonne/FineTome-100k \
        --output-repo you/lfm-finetuned

Here, on whatever processor there is:

    uv run templates/sft.py --base-model ./model --dataset ./rows.jsonl --save-local ./tuned

Each thing that matters is printed as one line `EVENT {"event": NAME, ...}`; NAME is one of plan, parent, data, settings,
masks, questions, coverage, batching, progress, eval, checkpoint, early_stopped, pushed, held_out, answering, graded, scores, sample, warning, done, failed. Exit
code 0: a tuned model is where the `done` event says; 1: the `failed` event says why and what to do.

torch is the CUDA 12.8 build because it runs on older drivers too: a CUDA 13 build on an older driver sees no GPU.
"""

from __future__ import annotations

import itertools
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
from unsloth_jobs.training.columns import Format, detect_format, media_values
from unsloth_jobs.training.early_stopping import BestAdapter, perplexity
from unsloth_jobs.training.evidence import draw_losses, final_loss, losses_of, show_evidence
from unsloth_jobs.training.flags import parse_flags
from unsloth_jobs.training.launch import run_on_all_gpus
from unsloth_jobs.training.masks import IGNORE, Example, make_renderer, segments
from unsloth_jobs.training.memory import room_for
from unsloth_jobs.training.merge import push_merged
from unsloth_jobs.training.models import load_config, load_model
from unsloth_jobs.training.outcome import count_trained_steps, emit_done
from unsloth_jobs.training.packing import Collator, can_pack, keep_rows_apart, pack
from unsloth_jobs.training.parent_files import load_tokenizer, parent_lineage
from unsloth_jobs.training.processes import from_first, is_first, leave_peers, process_count, process_number
from unsloth_jobs.training.push import push_results
from unsloth_jobs.training.question_set import choose_questions
from unsloth_jobs.training.report import Stop, emit
from unsloth_jobs.training.retry import train_with_oom_retry
from unsloth_jobs.training.rows import custom_format
from unsloth_jobs.training.run import StopSignal
from unsloth_jobs.training.setting import setting
from unsloth_jobs.training.setting_problems import training_problems
from unsloth_jobs.training.settings import TrainingSettings
from unsloth_jobs.training.settled import settle
from unsloth_jobs.training.step_timer import StepTimer
from unsloth_jobs.training.step_trainer import StepTrainer
from unsloth_jobs.training.steps import Steps
from unsloth_jobs.training.tokens import digest_of, encode_rows, require_supervised
from unsloth_jobs.training.trainer_options import trainer_options

METHOD = "sft"

# ---------------------------------------------------------------------------------------------------------------
# Settings: fill them in here and above, or pass the flag of the same name.


@dataclass(frozen=True)
class Settings(TrainingSettings):
    prompt_column: str = setting("", "column that holds the question, where its name is not recognised")
    completion_column: str = setting("", "column that holds the answer, where its name is not recognised")


# ---------------------------------------------------------------------------------------------------------------
# Your rows.


def to_messages(row: dict[str, Any]) -> list[dict[str, str]] | None:
    """A row of your data as messages, where no flag describes it: fill this in in a copy. None: columns are known by name."""
    # return [{"role": "user", "content": row["ticket"]}, {"role": "assistant", "content": row["reply"]}]
    return None


def find_format(settings: Settings, columns: list[str], first: Mapping[str, Any], media: Iterable[str]) -> Format:
    """How rows are read: as to_messages says, given the first of them, or by their columns' names. Raises Stop."""
    custom = custom_format(to_messages, first) if first else None
    seen = [*media, *(() if settings.prompt_column else media_values(first))]
    return custom or detect_format(columns, settings.prompt_column, settings.completion_column, seen)


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
    require_rows_for_all(settings)
    tokenizer = load_tokenizer(settings, parent)
    renderer = make_renderer(tokenizer, layout)
    train_tokens, masks = encode_rows(train_rows, renderer, layout, settings.max_seq_length)
    require_supervised(masks)
    eval_tokens = encode_rows(eval_rows, renderer, layout, settings.max_seq_length)[0] if eval_rows else None
    if eval_rows and not eval_tokens:
        message = "No held-out row has an answer that fits: there is no validation."
        emit("warning", code="no_evaluation", message=message)
        eval_tokens = None
    first = Example(train_tokens[0]["input_ids"], train_tokens[0]["labels"], 0, 0)
    emit("masks", **masks, digest=digest_of(renderer, layout, data.rows), sample=segments(tokenizer, first))
    chosen = choose_questions(settings, train_rows, eval_rows, tokenizer, renderer, layout, find_format)

    # ---- the model, and how much of it the adapter reaches
    model = load_model(settings)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token  # harmless here: labels, not the pad token, say what is learned
    keep_rows_apart(model)
    apart = can_pack(model, settings)
    packed = from_first(lambda: apart)
    steps, processes = Steps(train_tokens["length"], settings, packed), process_count()
    longest = max([*train_tokens["length"], *(eval_tokens["length"] if eval_tokens else ())])

    def length_for(sequences: int) -> int:
        return rounded(max(steps.spread_length(sequences * processes), longest))

    room = room_for(model, settings)
    batching, kept = from_first(lambda: choose_batching(settings, length_for, room, packed, processes=processes))
    settings = replace(settings, gradient_checkpointing="off" if kept else "offload")
    emit_batching(settings, batching, packed, batching.length)
    own = lineage(METHOD, settings, train_tokens, packed) | parent_lineage(parent)
    checkpoint = from_first(lambda: checkpoint_to_resume(settings, api, own))
    model = attach_adapter(model, settings, parent)
    began_with = trained_weights(model) if parent else {}

    # ---- training, with the loss of what it starts from first: it is the yardstick, and it finds an evaluation that does not fit
    best = BestAdapter(int(settings.early_stopping) if eval_tokens else 0)

    def make_trainer(batching: Batching, kept: bool) -> Any:
        shape = replace(settings, gradient_checkpointing="off" if kept else "offload"), steps, batching, packed
        return build_trainer(model, tokenizer, train_tokens, eval_tokens, *shape, api, stop_signal, best, own)

    trainer = make_trainer(batching, kept)
    require_masked_batch(trainer, masks["supervised_tokens"] / masks["tokens"])
    ways = lambda: batchings(settings, length_for, packed, processes=processes)  # noqa: E731
    trainer, base_loss = train_with_oom_retry(trainer, make_trainer, checkpoint, stop_signal, kept, ways)
    leave_peers()
    if not is_first():
        return
    trained_steps = count_trained_steps(trainer, checkpoint)
    trainer.timer.tokens = trainer.state.epoch * masks["tokens"]  # those of earlier trainers and machines, too

    # ---- the adapter is safe before anything that is merely nice to have
    folder = Path(settings.save_local)
    best.restore(model)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    push_results(api, settings, folder, stop_signal)
    stop_signal.training = False
    stop_signal.require_none(trainer.state, settings.output_repo or str(folder))
    losses = losses_of(base_loss, final_loss(trainer, best) if eval_tokens else None)
    evaluation, answers = show_evidence(model, tokenizer, chosen, settings, stop_signal.seconds_left(), began_with)
    trainer.curves.close(losses | (evaluation.as_figures() if evaluation else {}), answers)
    kept_step = best.step if best.weights else None
    drawn = draw_losses(trainer.state.log_history, base_loss, kept_step, folder / "loss.png")
    figures = card_figures(settings, trainer, time.monotonic() - began)
    card = model_card(settings, losses, figures, answers, "loss.png" if drawn else None, METHOD, evaluation)
    (folder / "README.md").write_text(card, encoding="utf-8")
    push_results(api, settings, folder, stop_signal)
    if settings.merge_model:
        push_merged(model, tokenizer, api, settings)
    emit_done(settings, trainer, masks, evaluation, parent, trained_steps, began, **losses)


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
    packed: bool = False,
    api: Any = None,
    stop_signal: StopSignal | None = None,
    best: BestAdapter | None = None,
    origin: Mapping[str, Any] | None = None,
) -> Any:
    """TRL's trainer over rows as tokens (columns input_ids, labels, length), each by itself or packed."""
    import torch
    import transformers
    from trl import SFTConfig, SFTTrainer

    timer, plain = StepTimer(), settings.backend == "trl"
    order = steps or Steps(train_tokens["length"], settings, packed)
    division = batching or choose_batching(settings, order.spread_length, lambda tokens: True, packed)[0]
    passes = Passes(order, division, packed, process_number(), process_count())
    filler, collator = tokenizer.pad_token_id, None
    rows = train_tokens.select_columns(["input_ids", "labels"])
    if packed:
        collator = Collator(train_tokens, division.micro_batch_size, (passes.short_length(), division.length), filler, plain)

    class Trainer(StepTrainer, SFTTrainer):
        def train_batch(self, sequences):
            if collator:
                return collator(sequences)
            return self.data_collator(
                [rows[one[0]] if one else {"input_ids": [filler], "labels": [IGNORE]} for one in sequences]
            )

        def measure(self, alone=False):
            """Number, loss and learned tokens of each of this process's batches of held-out rows."""
            found = []
            self.model.eval()
            batches = enumerate(self.held_out_batches(alone))
            for number, batch in itertools.islice(batches, process_number(), None, process_count()):
                inputs = self._prepare_inputs(batch)
                with torch.compiler.set_stance("force_eager"):  # there is too little to do to compile for it
                    loss, *_ = self.prediction_step(self.model, inputs, prediction_loss_only=True)
                found.append((number, (loss.item(), learned_tokens(inputs["labels"]))))
            return found

        def metrics_of(self, parts):
            """The mean loss of a learned token of the held-out rows, however they lie in batches."""
            mean = sum(loss * here for loss, here in parts) / sum(here for _, here in parts)
            return {"eval_loss": mean, "eval_perplexity": perplexity(mean)}

        def held_out_batches(self, alone):
            """In the shape that training takes too; alone: one row each, which is where a run dies of memory last."""
            if not packed:
                return self.get_eval_dataloader()
            length = max(division.length, *held_out["length"])
            micro_batch_size, lengths = (1, held_out["length"]) if alone else (division.micro_batch_size, [length])
            collate = Collator(held_out, micro_batch_size, lengths, filler, plain)
            sequences = [[row] for row in range(len(held_out))] if alone else pack(held_out["length"], length)
            return (collate(sequences[at : at + micro_batch_size]) for at in range(0, len(sequences), micro_batch_size))

    on_gpu = torch.cuda.is_available()
    if plain and not on_gpu:
        Trainer.compute_loss = transformers.Trainer.compute_loss  # TRL's own is a kernel for GPUs
    config = SFTConfig(
        **trainer_options(settings, division, evaluates=bool(held_out)),
        pad_to_multiple_of=64 if on_gpu else 8,
        remove_unused_columns=not packed,
        # Rows arrive as tokens and labels: nothing after this point may change what is learned.
        dataset_kwargs={"skip_prepare_dataset": True},
    )
    curves = trackio_callback()
    trainer = Trainer(
        model=model,
        processing_class=tokenizer,
        args=config,
        data_collator=collator,
        train_dataset=train_tokens,
        eval_dataset=held_out,
        callbacks=[
            progress_callback(settings, api, timer, stop_signal or StopSignal(), best or BestAdapter(), origin or {}),
            curves,
        ],
    )
    in_full_precision(model)  # TRL makes it bf16
    trainer.timer, trainer.passes, trainer.batching, trainer.curves = timer, passes, division, curves
    trainer.remove_callback(transformers.PrinterCallback)  # the events say it
    return trainer


def learned_tokens(labels: Any) -> int:
    """How many tokens of a row, or of a batch of them, are learned: all that have a label but the first."""
    import torch

    return int((torch.as_tensor(labels)[..., 1:] != IGNORE).sum())


def require_masked_batch(trainer: Any, supervised_fraction: float) -> None:
    """Stop when the batch that the trainer really builds does not carry the labels that were computed."""
    if not is_first():
        return  # it may have no row of a short step
    batch = next(iter(trainer.get_train_dataloader()))
    learned, present = int((batch["labels"] != IGNORE).sum()), int(batch.get("attention_mask", batch["labels"]).numel())
    if learned == 0 or (supervised_fraction < 1 and learned == present):
        raise Stop(
            "masks_lost",
            f"The trainer's batch has {learned} supervised tokens of {present}, where {supervised_fraction:.0%} were computed.",
            "Use the versions that this script pins: another trainer computes the loss mask differently.",
        )


# ---------------------------------------------------------------------------------------------------------------
# Flags, and how the run ends.


def setting_problems(settings: Settings) -> Iterable[str]:
    yield from training_problems(settings)
    if bool(settings.prompt_column) != bool(settings.completion_column):
        yield "--prompt-column and --completion-column go together"


def parse_args(argv: list[str] | None = None) -> Settings:
    """Command-line flags over the defaults above. Raises SystemExit(2) on a flag or a value that is not one."""
    return parse_flags(Settings, setting_problems, __doc__, argv)


def main() -> int:
    settings = parse_args()
    again = "the same command with --resume at its end goes on from the last checkpoint"
    return run_on_all_gpus(lambda: train(settings), again, __file__)


if __name__ == "__main__":
    sys.exit(main())
