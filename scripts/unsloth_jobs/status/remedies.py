"""What to do after each `failed` event of a template, by its code."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from .causes import AGAIN, CHECK, ESTIMATE, LOGIN, LOGS, RESUME, longer_completions, no_change, slower


@dataclass(frozen=True)
class Remedy:
    """What to do after a `failed` event of a template: in our words, since any line of a log may look like such an event."""

    fix: str
    command: str = CHECK
    change: Callable[[Mapping[str, Any]], list[str]] = no_change
    flavor: str | None = None


OTHER_MODEL = Remedy("Choose a model whose architecture ends in ForCausalLM, such as LiquidAI/LFM2.5-1.2B-Instruct.")
OTHER_BASE = Remedy("Export an adapter whose base model llama.cpp can run, or only merge it: --quantizations none.", LOGS)
GO_ON = Remedy("Submit it again with --resume: it goes on from the last checkpoint.", RESUME)
TEST_ROWS = Remedy("Pass test rows with --eval-dataset: a question and an answer in each, which no model was trained on.", LOGS)
GRADER = Remedy("Correct --grader: a name that the script's --help lists, or a Python file of yours.", LOGS)
# By the code of the event, of templates/sft.py and then of templates/export.py and templates/evaluate.py alone.
STOPS = {
    "deadline": Remedy("With a longer --timeout and --resume at the end of the arguments it goes on from there.", RESUME),
    "cancelled": GO_ON,
    "stopped": GO_ON,
    "resume_failed": GO_ON,
    "hub_unreachable": Remedy(
        "Submit it again with --resume in some minutes: where it has saved, it goes on from there.", RESUME
    ),
    "push_failed": GO_ON,
    "push_denied": Remedy("Log in with a token that has write permission for the owner of --output-repo.", LOGIN),
    "disk_full": Remedy(
        "Make room; on a rented machine, choose a --flavor with a larger disk (l4x1: 400 GB). With --resume it goes on from its "
        "checkpoint.",
        RESUME,
        flavor="l4x1",
    ),
    "out_of_vram": Remedy("Choose a --flavor with more GPU memory, or a smaller --max-seq-length.", ESTIMATE),
    "loss_not_finite": Remedy(
        "Lower --learning-rate to a third. On a T4 choose --flavor l4x1: many models overflow without bf16.", AGAIN, slower
    ),
    "engine_failed": Remedy("Serve it with --engine transformers, or on a --flavor with more memory.", LOGS),
    "port_in_use": Remedy("Pass --port 0: any that is free.", LOGS),
    "no_gguf": Remedy("Pass a GGUF file, or OWNER/NAME:FILE.gguf of the Hub.", LOGS),
    "no_gpu": Remedy("Submit it again to get another machine; if it happens twice, choose another --flavor.", AGAIN),
    "missing_gpus": Remedy("Submit it again to get another machine; if it happens twice, choose another --flavor.", AGAIN),
    "too_few_rows_a_step": Remedy("Raise --gradient-accumulation, or choose a --flavor with fewer GPUs.", ESTIMATE),
    "process_died": Remedy(
        "Submit it again with --resume: it goes on from the last checkpoint. Where a process was killed at the same place "
        "twice, choose a --flavor with more RAM, or with one GPU.",
        RESUME,
    ),
    "small_gpu": Remedy("Submit it again to get another machine; if it happens twice, choose another --flavor.", AGAIN),
    "unknown_target": Remedy("Leave --target-modules at auto.", AGAIN, lambda settings: ["--target-modules=auto"]),
    "unsloth_refused": Remedy(
        "With --backend trl: the same training without Unsloth, slower. Estimate it again first.",
        AGAIN,
        lambda settings: ["--backend=trl"],
    ),
    "reward_flat": Remedy(
        "Nothing was learned, as all completions of a prompt had the same reward. If all are wrong: train answers first with "
        "templates/sft.py and go on from that adapter, give partial credit, or choose easier rows.",
        CHECK,
    ),
    "all_clipped": Remedy(
        "Raise --max-completion-length, ask for short answers in --system-prompt, or choose the instruct version of the model.",
        AGAIN,
        longer_completions,
    ),
    "kl_too_high": Remedy("Lower --learning-rate to a third, or add --beta 0.04.", AGAIN, slower),
    "no_reward": Remedy("Choose a --reward, or pass --reward-file FILE.py with a grade(answer, reference, row)."),
    "reward_misfit": Remedy("Choose another --reward, or name the answers' column with --completion-column."),
    "no_prompts": Remedy("Look at the rows' prompts, or raise --max-seq-length."),
    "to_prompt_failed": Remedy("Correct to_prompt in the script: check.py --script SCRIPT tries it on the first rows.", CHECK),
    "masks_lost": Remedy(
        "Use the versions that templates/sft.py pins: another trainer computes the loss mask differently.", LOGS
    ),
    "low_coverage": Remedy("Leave --target-modules at auto, or lower --min-coverage knowingly.", LOGS),
    "merge_failed": Remedy("The adapter is whole. Merge it with templates/export.py; training again is not needed.", LOGS),
    "no_output_repo": Remedy("Pass --output-repo YOU/NAME.", LOGS),
    "merge_needs_16bit": Remedy("Add --load-in-16bit, or leave --merge-model out.", LOGS),
    "resume_mismatch": Remedy(
        "Pass the settings that the checkpoint began with, or leave --resume out to train from the beginning.", LOGS
    ),
    "name_taken": Remedy("Name another --output-repo."),
    "public_repository": Remedy("Name another --output-repo or, where the result may be public, pass --public.", LOGS),
    "no_model": Remedy("Correct --base-model: a Hub id, or the path of a folder that holds a model.", LOGS),
    "to_messages_failed": Remedy(
        "Correct to_messages in the script: check.py --script SCRIPT tries it on the first rows.", CHECK
    ),
    "unknown_columns": Remedy("Name the columns with --prompt-column and --completion-column, or choose another data set."),
    "unknown_column": Remedy("Name columns that exist with --prompt-column and --completion-column."),
    "preference_data": Remedy("Use templates/dpo.py, or imitate the answers of one column: --completion-column chosen."),
    "to_preference_failed": Remedy(
        "Correct to_preference in the script: check.py --script SCRIPT tries it on the first rows.", CHECK
    ),
    "one_label": Remedy("Add answers with the other label, or imitate the good ones with templates/sft.py."),
    "config_needed": Remedy("Name one of the configurations with --dataset-config."),
    "split_needed": Remedy("Name one of the splits with --dataset-split."),
    "unknown_config": Remedy("Name a configuration that the data set has with --dataset-config."),
    "unknown_split": Remedy("Name a split that the data set has with --dataset-split."),
    "dataset_unreadable": Remedy("Look at its files: an empty one, or rows whose columns differ, cannot be loaded."),
    "dataset_not_found": Remedy(
        "Correct --dataset; for a private or gated one, ask for access and log in with `hf auth login`."
    ),
    "unknown_file": Remedy("Convert it to .jsonl."),
    "no_rows": Remedy("Choose another with --dataset-split."),
    "nothing_supervised": Remedy("Look at the rows' answers, or pass a larger --max-seq-length."),
    "slow_tokenizer": Remedy("Choose a model whose repository holds a tokenizer.json."),
    "no_chat_template": Remedy("Choose the instruct version of this model, or rows of prompt + completion or text."),
    "bad_chat_template": Remedy("Choose another version of this model: its template is not for plain conversations."),
    "encoder_decoder": OTHER_MODEL,
    "not_a_decoder": OTHER_MODEL,
    "quantized_model": Remedy("Choose the original 16-bit model, or its bitsandbytes 4-bit version."),
    "adapter_conflict": Remedy(
        "Leave out the flags that contradict the adapter, or merge it first with templates/export.py.", LOGS
    ),
    "parent_replaced": Remedy("Name another --output-repo, or another --save-local.", LOGS),
    "unsupported_adapter": Remedy("Merge it with templates/export.py and train on the merged model.", LOGS),
    "bad_adapter": Remedy("Push the adapter again with PEFT's save_pretrained, or name another one.", LOGS),
    "no_adapter": Remedy("Name what templates/sft.py made: an adapter with its weights.", LOGS),
    "too_little_memory": Remedy("Choose a flavor with more memory: --flavor cpu-xl.", LOGS),
    "not_lora": Remedy("Name a LoRA adapter: others can be neither merged nor evaluated here.", LOGS),
    "no_base_model": Remedy("Pass --base-model.", LOGS),
    "quantized_base": Remedy("Pass the original 16-bit model as --base-model.", LOGS),
    "conversion_failed": OTHER_BASE,
    "unsupported_model": OTHER_BASE,
    "unknown_tokenizer": OTHER_BASE,
    "quantization_failed": Remedy("Its log says why.", LOGS),
    "conversion_disagrees": Remedy(
        "Choose a finer quantisation such as q8_0, or read the answers in the `compared` event and lower --min-agreement.", LOGS
    ),
    "no_converter": Remedy("Submit it again: what is pushed by now is not made again.", AGAIN),
    "too_many_contenders": Remedy("Name fewer with --models.", LOGS),
    "adapter_misfit": Remedy("Pass the model that the adapter was trained on as --base-model.", LOGS),
    "no_test_rows": TEST_ROWS,
    "rows_changed": Remedy("Pass the file as it was as --dataset, or test rows as --eval-dataset.", LOGS),
    "all_seen": TEST_ROWS,
    "no_questions": Remedy("Name the columns with --prompt-column and --completion-column, or raise --max-seq-length.", LOGS),
    "no_examples": Remedy("Lower --few-shot, raise --max-seq-length, or name other training rows with --dataset.", LOGS),
    "no_grader": Remedy("Pass --grader with a name or your FILE.py, or a judge: --judge-url and --judge-model.", LOGS),
    "unknown_grader": GRADER,
    "no_grader_file": GRADER,
    "bad_grader": Remedy("Correct the file that --grader names: it holds a function grade(answer, reference, row).", LOGS),
    "no_time": Remedy("Raise --grading-seconds, and --timeout with it.", LOGS),
    "bad_prompt": Remedy("Name a text file in UTF-8 with --system-prompt.", LOGS),
    "not_found": Remedy("Correct the id; for a private or gated one, ask for access and log in with `hf auth login`.", LOGS),
}
WRAPPERS = ("error", "process_died", "push_denied", "dataset_unreadable", "resume_failed")
