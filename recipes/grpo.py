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
r"""Let a small language model learn from what can be checked: GRPO on rewards, LoRA with Unsloth.

On Hugging Face Jobs, straight from this file or from its URL:

    hf jobs uv run --flavor l4x1 --timeout 4h --secrets HF_TOKEN templates/grpo.py -- \
        --base-model LiquidAI/LFM2.5-1.2B-Instruct --dataset openai/gsm8k --dataset-config main --reward number \
        --output-repo you/lfm-maths

Here, on whatever processor there is:

    uv run templates/grpo.py --base-model ./model --dataset ./questions.jsonl --save-local ./tuned

A row is a prompt and whatever its grader compares with (answer, reference, ...). The model writes several completions of
each prompt; a grader, a format or your own function rewards them, and those with more reward become likelier. The model is
compared with the one that training starts from, on prompts that were held out.

Each thing that matters is printed as one line `EVENT {"event": NAME, ...}`; NAME is one of plan, parent, data, settings, masks,
rewards, questions, coverage, batching, eval (of the start), progress, completions, checkpoint, early_stopped, pushed, answering, graded, scores,
sample, warning, done, failed. Exit code 0: a tuned model is where the `done` event says; 1: the `failed` event says why and what to do.

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
from unsloth_jobs.training.batching import Batching, Passes, batchings, choose_batching, emit_batching, rounded
from unsloth_jobs.training.beginning import begin_training
from unsloth_jobs.training.callbacks import progress_callback, trackio_callback
from unsloth_jobs.training.card import card_figures, model_card
from unsloth_jobs.training.checkpoints import checkpoint_to_resume, lineage
from unsloth_jobs.training.columns import Format
from unsloth_jobs.training.early_stopping import BestAdapter
from unsloth_jobs.training.evidence import losses_of, show_evidence
from unsloth_jobs.training.files import file_digest
from unsloth_jobs.training.flags import parse_flags
from unsloth_jobs.training.fused_head import add_fused_head, compute_head_without_gpu
from unsloth_jobs.training.masks import make_renderer
from unsloth_jobs.training.memory import room_for
from unsloth_jobs.training.merge import push_merged
from unsloth_jobs.training.models import load_config, load_model
from unsloth_jobs.training.outcome import count_trained_steps, emit_done
from unsloth_jobs.training.parent_files import load_tokenizer, parent_lineage
from unsloth_jobs.training.processes import see_one_gpu
from unsloth_jobs.training.push import push_results
from unsloth_jobs.training.questions import Question
from unsloth_jobs.training.report import emit, exit_code
from unsloth_jobs.training.retry import train_with_oom_retry
from unsloth_jobs.training.reward_card import draw_rewards, edges_of, reward_line, reward_table
from unsloth_jobs.training.reward_evidence import choose_prompts, grade_start, warn_of_hacking
from unsloth_jobs.training.reward_rows import (
    digest_of,
    find_reward_format,
    read_prompts,
    require_prompts,
    rows_digest_of,
    summary_of,
)
from unsloth_jobs.training.reward_trainer import RewardTrainer, reward_options
from unsloth_jobs.training.reward_watch import RewardWatch, usd_per_point, watch_callback
from unsloth_jobs.training.rewards import Rewards, make_rewards, reward_problems
from unsloth_jobs.training.rollouts import Sampler, writing
from unsloth_jobs.training.run import StopSignal
from unsloth_jobs.training.setting import setting
from unsloth_jobs.training.setting_problems import training_problems
from unsloth_jobs.training.settings import TrainingSettings
from unsloth_jobs.training.settled import settle
from unsloth_jobs.training.step_timer import StepTimer
from unsloth_jobs.training.steps import Steps, effective_batch_size

METHOD = "grpo"

# ---------------------------------------------------------------------------------------------------------------
# Settings: fill them in here and above, or pass the flag of the same name.


@dataclass(frozen=True)
class Settings(TrainingSettings):
    reward: str = setting(
        "auto",
        "what is rewarded, with weights: json=1,format=0.2. exact, contains, number, choice, json, regex, tool_call (graders), "
        "format (--answer-format is kept), length (brevity), file (--reward-file); auto: as the answers are",
    )
    reward_file: str = setting("", "your own FILE.py with: def grade(answer, reference, row): a number from 0 to 1")
    reward_seconds: float = setting(2.0, "seconds that a call of --reward-file may take; more counts 0")
    answer_format: str = setting(
        "", "format of an answer, … being any text: '<think>…</think><answer>…</answer>'; the last … is graded"
    )
    system_prompt: str = setting("", "system prompt before each prompt, in training as in the evaluation")
    num_generations: int = setting(8, "completions of each prompt, which are compared with each other")
    max_completion_length: int = setting(256, "tokens that a completion may have; longer ones are cut, and counted")
    temperature: float = setting(1.0, "temperature at which completions are sampled")
    beta: float = setting(0.0, "how closely the start is kept to, by KL (0: not at all)")
    max_kl: float = setting(1.0, "stop where the model is this far from its start, in nats per token (0: never)")
    # Little at a time: each step's direction is a guess from few completions. As TRL (1e-5) and Tinker (4e-5) have it for LoRA.
    learning_rate: float = setting(2e-5, "peak learning rate")
    num_epochs: float | str = setting(1.0, "epochs: passes over the prompts", float)
    early_stopping: int | str = setting(0, "not for rewards: a run ends by itself once nothing is left to learn", int)
    packing: bool = setting(False, "not for rewards: completions are learned side by side")
    prompt_column: str = setting("", "column that holds the prompt, where its name is not recognised")
    completion_column: str = setting("", "column that holds the right answer, where its name is not recognised")

    @property
    def prompt_room(self) -> int:
        """Tokens that a prompt may have."""
        return self.max_seq_length - self.max_completion_length


# ---------------------------------------------------------------------------------------------------------------
# Your rows.


def to_prompt(row: dict[str, Any]) -> dict[str, Any] | None:
    """A row of your data as a prompt and what its answer is compared with, where no flag describes it: fill this in in a copy.

    None: columns are known by name.
    """
    # return {"prompt": row["exercise"], "reference": row["result"]}
    return None


def find_format(settings: Settings, columns: list[str], first: Mapping[str, Any], media: Iterable[str]) -> Format:
    """How rows are read: as to_prompt says, given the first of them, or by their columns' names. Raises Stop."""
    named = {"prompt": settings.prompt_column, "completion": settings.completion_column}
    return find_reward_format(columns, named, to_prompt, first, media)


def may_pack(settings: Settings, config: Mapping[str, Any]) -> bool:
    return False


# ---------------------------------------------------------------------------------------------------------------
# The run.


def train(settings: Settings) -> None:
    began = time.monotonic()
    start = begin_training(settings, find_format)  # what can fail for free comes first: repository, rows, their columns
    settings, parent, api, data, stop_signal = start.settings, start.parent, start.api, start.data, start.stop_signal

    # ---- prompts; unsloth is imported before transformers, since it patches what comes after it
    if settings.backend == "unsloth":
        import unsloth  # noqa: F401
    config, settings = load_config(settings)
    settings = settle(settings, config, len(data.train), len(data.held_out or ()))
    tokenizer = load_tokenizer(settings, parent)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token  # harmless here: the attention mask hides it
    renderer, room = make_renderer(tokenizer, data.layout), settings.prompt_room
    questions, lost = read_prompts(data.train, renderer, data.layout, room, settings.system_prompt)
    masks = summary_of(questions, lost)
    require_prompts(masks)
    held_out, _ = read_prompts(data.held_out or (), renderer, data.layout, room, settings.system_prompt)
    shown = [{"text": tokenizer.decode(questions[0].prompt), "learned": False}]
    emit("masks", **masks, digest=digest_of(renderer, data.layout, data.rows, room, settings.system_prompt), sample=shown)
    rewards, why = make_rewards(
        settings.reward, settings.reward_file, settings.reward_seconds, settings.answer_format,
        settings.max_completion_length, questions, lambda text: len(tokenizer(text, add_special_tokens=False)["input_ids"]),
    )  # fmt: skip
    emit("rewards", weights=rewards.weights, why=why, grader=rewards.grader_name)
    chosen = choose_prompts(settings, questions, held_out, renderer, find_format, rewards, room, settings.system_prompt)

    # ---- the model, and how much of it the adapter reaches
    model = load_model(settings)
    steps = Steps(same_lengths(questions), settings, packed=False)
    longest = rounded(max(len(question.prompt) for question in questions) + settings.max_completion_length)
    whole = whole_step(settings, longest)
    batching, kept = choose_batching(whole, steps.spread_length, room_for(model, settings), False)
    settings = replace(settings, gradient_checkpointing="off" if kept else "offload")
    emit_batching(settings, batching, False, longest)
    own = (
        lineage(METHOD, settings, prompts_of(questions), False)
        | parent_lineage(parent)
        | lineage_of_rewards(settings, questions)
    )
    checkpoint = checkpoint_to_resume(settings, api, own)
    model = attach_adapter(model, settings, parent)
    began_with = trained_weights(model) if parent else {}

    # ---- training
    watch = RewardWatch(settings.max_kl, settings.max_steps)

    def make_trainer(batching: Batching, kept: bool) -> Any:
        shape = replace(settings, gradient_checkpointing="off" if kept else "offload")
        trainer = build_trainer(model, tokenizer, questions, rewards, shape, steps, batching, began_with, api, stop_signal, own)
        trainer.add_callback(watch_callback(trainer, watch, stop_signal))
        return trainer

    trainer, limit = make_trainer(batching, kept), settings.max_completion_length
    with writing(model, trainer.accelerator) as ready:
        known = grade_start(ready, tokenizer, chosen, limit, min(settings.grading_seconds / 2, stop_signal.seconds_left()))
    ways = lambda: batchings(whole, steps.spread_length, False)  # noqa: E731
    trainer, _ = train_with_oom_retry(trainer, make_trainer, checkpoint, stop_signal, kept, ways)
    trained_steps, history = count_trained_steps(trainer, checkpoint), trainer.state.log_history

    # ---- the adapter is safe before anything that is merely nice to have
    folder = Path(settings.save_local)
    model.save_pretrained(folder, selected_adapters=["default"])
    tokenizer.save_pretrained(folder)
    push_results(api, settings, folder, stop_signal)
    stop_signal.training = False
    stop_signal.require_none(trainer.state, settings.output_repo or str(folder))
    left = stop_signal.seconds_left()
    evaluation, answers = show_evidence(model, tokenizer, chosen, settings, left, began_with, limit, known)
    first, last = edges_of(history, "reward") or (0.0, 0.0)
    measured = warn_of_hacking(evaluation, rewards, first, last)
    rewards.close()
    trainer.curves.close(evaluation.as_figures() if evaluation else {}, answers)
    drawn = draw_rewards(history, folder / "reward.png")
    figures = card_figures(settings, trainer, time.monotonic() - began) | {
        "Supervised share": None,
        "Training loss at the end": None,  # about 0, whatever was learned
        "Batches": f"{effective_batch_size(settings)} prompts a step, {settings.num_generations} completions of each",
        "Reward": reward_line(rewards.weights, settings.answer_format),
        "Completions": f"up to {limit:,} tokens, sampled at temperature {settings.temperature:g}",
        "KL penalty (beta)": f"{settings.beta:g}",
    }
    table, picture = reward_table(history, measured), "reward.png" if drawn else None
    card = model_card(settings, losses_of(None, None), figures, answers, picture, METHOD, evaluation, table)
    (folder / "README.md").write_text(card, encoding="utf-8")
    push_results(api, settings, folder, stop_signal)
    if settings.merge_model:
        push_merged(model, tokenizer, api, settings)
    names = ("reward", "right", "length", "kl", "clipped", "tokens_per_s")
    figures_of_run = {name: found for name in names if (found := edges_of(history, name))}
    emit_done(
        settings, trainer, masks, evaluation, parent, trained_steps, began, rewards=figures_of_run, reward_held_out=measured,
        usd_per_point=usd_per_point(first, last), held_out=len(held_out), **trainer.prompt_figures(),
    )  # fmt: skip


def whole_step(settings: Settings, longest: int) -> Settings:
    """The settings as of a step whose completions, each of `longest` tokens with its prompt, might all be one pass."""
    completions = effective_batch_size(settings) * settings.num_generations
    return replace(settings, batch_size=completions, gradient_accumulation=1, max_seq_length=longest)


def same_lengths(questions: list[Question]) -> list[int]:
    """A length for each prompt, the same: which of them share a step is chance, since those of one length may be of one kind."""
    return [1] * len(questions)


def prompts_of(questions: list[Question]) -> Any:
    """The prompts as a datasets.Dataset, which is what a lineage is taken of."""
    from datasets import Dataset

    return Dataset.from_dict({"input_ids": [question.prompt for question in questions]})


def lineage_of_rewards(settings: Settings, questions: list[Question]) -> dict[str, Any]:
    """What a checkpoint has learned from beside the prompts."""
    file = file_digest(Path(settings.reward_file)) if settings.reward_file else ""
    return {"rewards": f"{rows_digest_of(questions)} {file}"}


# ---------------------------------------------------------------------------------------------------------------
# The trainer.


def build_trainer(
    model: Any,
    tokenizer: Any,
    questions: list[Question],
    rewards: Rewards,
    settings: Settings,
    steps: Steps | None = None,
    batching: Batching | None = None,
    began_with: Mapping[str, Any] | None = None,
    api: Any = None,
    stop_signal: StopSignal | None = None,
    origin: Mapping[str, Any] | None = None,
) -> Any:
    """The trainer of GRPO over prompts. The reference is the model as training began: began_with, or without an adapter."""
    import torch
    import transformers

    timer, curves, rows = StepTimer(), trackio_callback(), effective_batch_size(settings)
    if settings.backend == "trl" and not torch.cuda.is_available():
        compute_head_without_gpu()
    order = steps or Steps(same_lengths(questions), settings, packed=False)
    longest = max(len(question.prompt) for question in questions) + settings.max_completion_length
    division = batching or Batching(rows * settings.num_generations, 1, rounded(longest))
    add_fused_head(model, settings.temperature, ("log_probs",))
    trainer = type("Trainer", (RewardTrainer, transformers.Trainer), {})(
        model=model,
        processing_class=tokenizer,
        args=transformers.TrainingArguments(**reward_options(settings, division)),
        train_dataset=prompts_of(questions[:1]),  # looked at while it is made; batches are made of the questions
        callbacks=[progress_callback(settings, api, timer, stop_signal or StopSignal(), BestAdapter(), origin or {}), curves],
    )
    in_full_precision(model)
    trainer.questions, trainer.rewards, trainer.group, trainer.beta = (
        questions,
        rewards,
        settings.num_generations,
        settings.beta,
    )
    trainer.began_with, trainer.figures, trainer.eval_dataset = began_with or {}, [], None
    trainer.sampler = Sampler(tokenizer, settings.max_completion_length, settings.temperature, settings.seed)
    trainer.filler, trainer.multiple = tokenizer.pad_token_id, 64 if torch.cuda.is_available() else 8
    # A step is one batch of the trainer's, whatever its passes are.
    trainer.timer, trainer.passes, trainer.batching, trainer.curves = (
        timer,
        Passes(order, Batching(rows, 1, 0), False),
        division,
        curves,
    )
    trainer.remove_callback(transformers.PrinterCallback)  # the events say it
    return trainer


# ---------------------------------------------------------------------------------------------------------------
# Flags, and how the run ends.


def setting_problems(settings: Settings) -> Iterable[str]:
    yield from training_problems(settings)
    yield from reward_problems(settings.reward, settings.reward_file, settings.answer_format)
    if settings.num_generations < 2:
        yield f"--num-generations must be at least 2, not {settings.num_generations}: completions are compared with each other"
    if settings.max_completion_length < 1 or settings.prompt_room < 1:
        yield (
            f"--max-completion-length must be at least 1 and leave room for a prompt within --max-seq-length "
            f"({settings.max_seq_length}), not {settings.max_completion_length}"
        )
    if settings.temperature <= 0 or settings.reward_seconds <= 0:
        yield "--temperature and --reward-seconds must be above 0"
    if settings.beta < 0 or settings.max_kl < 0:
        yield "--beta and --max-kl must be at least 0"
    if settings.packing:
        yield "--packing is for templates/sft.py: completions are not packed"
    if settings.early_stopping not in (0, "auto"):
        yield "--early-stopping is for templates/sft.py: a run on rewards ends by itself where nothing is left to learn"


def parse_args(argv: list[str] | None = None) -> Settings:
    """Command-line flags over the defaults above. Raises SystemExit(2) on a flag or a value that is not one."""
    return parse_flags(Settings, setting_problems, __doc__, argv)


def main() -> int:
    settings = parse_args()
    see_one_gpu(0)  # of several transformers' own trainer would use all, in a way of its own
    return exit_code(lambda: train(settings), "the same command with --resume at its end goes on from the last checkpoint")


if __name__ == "__main__":
    sys.exit(main())
