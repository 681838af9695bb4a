"""Settings that templates share: fill them in here, or pass the flag of the same name."""

from __future__ import annotations

from dataclasses import dataclass

from .setting import AUTO, setting


@dataclass(frozen=True)
class ModelSettings:
    base_model: str = setting(
        "LiquidAI/LFM2.5-1.2B-Instruct", "model to tune, or LoRA adapter to go on from: Hub id or local folder"
    )
    base_model_revision: str = setting("", "commit or branch of that (default: main)")
    load_in_16bit: bool = setting(False, "16-bit LoRA (default: where the GPU has the room for it, and on a CPU)")
    load_in_4bit: bool = setting(False, "4-bit QLoRA: least memory, some quality (default: where 16 bits have no room)")
    backend: str = setting("unsloth", "unsloth; trl: without Unsloth, slower, for a model that it does not support")


@dataclass(frozen=True)
class DatasetSettings:
    dataset: str = setting("", "rows to learn (needed): Hub id, or local .jsonl .json .csv .tsv .xlsx .parquet .txt")
    dataset_config: str = setting(
        "", "configuration of the data set, or sheet of an .xlsx (default: `default`, or the only one)"
    )
    dataset_split: str = setting("", "split to train on (default: `train`, or the only one)")
    dataset_revision: str = setting("", "commit or branch of the data set (default: main)")
    max_seq_length: int = setting(2048, "tokens per row; longer rows are cut, and counted")
    seed: int = setting(3407, "seed of the split, the order of rows and the adapter's first values")


@dataclass(frozen=True)
class SplitSettings(DatasetSettings):
    num_samples: int = setting(0, "use only the first N rows (0: all)")
    eval_split: float = setting(0.1, "share of the rows held out for validation (0: none)")
    max_eval_rows: int = setting(200, "hold out at most N rows: evaluation is paid for too, and the rest is trained on")


@dataclass(frozen=True)
class LearningSettings:
    num_epochs: float | str = setting(AUTO, "epochs: passes over the training rows; auto: up to 3 for few rows", float)
    max_steps: int = setting(0, "stop after N optimizer steps, whatever --num-epochs says (0: no limit)")
    batch_size: int = setting(4, "micro-batch size at most: rows of full length in one forward pass")
    gradient_accumulation: int = setting(4, "micro-batches per step; effective batch size: --batch-size × this, in rows")
    learning_rate: float | str = setting(AUTO, "peak learning rate; auto: from model, adapter and batch size", float)
    packing: bool = setting(True, "sequence packing, rows kept apart; rows alone where a model cannot")
    gradient_checkpointing: str = setting("auto", "off (fastest), offload (least memory); auto: off where the GPU has the room")
    lora_r: int | str = setting(AUTO, "rank of the LoRA matrices; auto: 16, or that of the adapter gone on from", int)
    lora_alpha: int | str = setting(AUTO, "LoRA scale; auto: 32, or that of the adapter gone on from", int)
    target_modules: str = setting(AUTO, "modules that get an adapter, by comma; auto: each linear layer of the decoder, or its")
    min_coverage: float = setting(0.9, "stop when the adapter reaches less than this share of the requested modules")
    save_steps: float = setting(0.1, "checkpoint every N steps, or every share of the run when under 1")
    resume: bool = setting(False, "go on from the newest checkpoint in --save-local or --output-repo, where there is one")
    early_stopping: int | str = setting(
        AUTO,
        "stop once N evaluations brought no lower held-out loss; keep the best adapter (0: never; auto: with its epochs)",
        int,
    )


@dataclass(frozen=True)
class EvidenceSettings(DatasetSettings):
    eval_dataset: str = setting("", "rows whose questions base and tuned model answer (default: the rows held out)")
    eval_dataset_config: str = setting("", "configuration of --eval-dataset")
    eval_dataset_split: str = setting("", "split of --eval-dataset (default: test, validation or train)")
    eval_dataset_revision: str = setting("", "commit or branch of --eval-dataset (default: main)")
    grader: str = setting(
        "auto", "exact, contains, number, choice, json, regex, tool_call, your FILE.py; auto: as the answers are; none"
    )
    max_graded: int = setting(200, "questions that are answered and graded at most")
    grading_seconds: int = setting(300, "seconds that answering them may take")


@dataclass(frozen=True)
class ResultSettings:
    output_repo: str = setting("", "Hub repository that receives checkpoints, adapter and card; created where missing")
    public: bool = setting(False, "create the repository public instead of private")
    card_samples: bool = setting(True, "quote held-out questions and answers in the model card")
    save_local: str = setting("unsloth-output", "folder for checkpoints and adapter on the machine that trains")


@dataclass(frozen=True)
class TrainingSettings(ResultSettings, EvidenceSettings, LearningSettings, SplitSettings, ModelSettings):
    merge_model: bool = setting(False, "also push the 16-bit merged model, to OUTPUT_REPO-merged")
    trackio_space: str = setting("", "Trackio Space for live curves, you/NAME (default: kept on the training machine)")
    run_name: str = setting("", "name of the run in Trackio (default: from model and data set)")
