"""The trainings that speed.py compares: each trains the same rows, in a process of its own."""

from __future__ import annotations

import fcntl
import os
import sys
import time
from pathlib import Path

LENGTH, BATCH, ACCUMULATION = 2048, 4, 4
SEED = 42  # what the article's script gets, which names none


class Turn:
    """With --together: waits, after the steps that are not timed, until all are so far; then one at a time goes on.

    So all compile at once, and yet each is timed with the machine to itself. It stands before the callback that prints
    a step, so that waiting is over when the last untimed step is told.
    """

    def __init__(self):
        folder, self.number, self.warmup = os.environ.get("SPEED_TURN", ",,").split(",")
        self.folder = Path(folder) if folder else None

    def callback(self):
        from transformers import TrainerCallback

        class Wait(TrainerCallback):
            def on_log(_, args, state, control, **kwargs):
                if self.folder and state.global_step == int(self.warmup):
                    self.take()

        return Wait()

    def pass_on(self) -> None:
        """Count one contender as ready: also one that has ended, so that the others do not wait for it."""
        with self.folder.joinpath("ready").open("a") as file:
            file.write("x")

    def take(self) -> None:
        self.pass_on()
        while len(self.folder.joinpath("ready").read_text()) < int(self.number):
            time.sleep(0.2)
        self.lock = self.folder.joinpath("lock").open("w")
        fcntl.flock(self.lock, fcntl.LOCK_EX)  # until this process ends


def ours(*words: str) -> None:
    """templates/sft.py's own main, whose trainer waits for its turn."""
    import sft

    build = sft.build_trainer

    def with_turn(*args, **kwargs):
        trainer = build(*args, **kwargs)
        trainer.callback_handler.callbacks.insert(0, Turn().callback())
        return trainer

    sft.build_trainer = with_turn
    sys.argv = ["sft.py", *words]
    sys.exit(sft.main())


def article(model_folder: str, rows: str, folder: str, steps: int):
    """The article's script: paths, max_steps, logging and what would need a network are changed, nothing else."""
    from unsloth import FastLanguageModel

    # isort: split
    from datasets import load_dataset
    from trl import SFTConfig, SFTTrainer

    model, tokenizer = FastLanguageModel.from_pretrained(model_folder, load_in_4bit=True, max_seq_length=2048)
    model = FastLanguageModel.get_peft_model(
        model,
        r=16,
        lora_alpha=32,
        lora_dropout=0,
        target_modules=["q_proj", "k_proj", "v_proj", "out_proj", "in_proj", "w1", "w2", "w3"],
    )
    return SFTTrainer(
        model=model,
        tokenizer=tokenizer,
        train_dataset=load_dataset("json", data_files=rows, split="train"),
        args=SFTConfig(
            output_dir=folder,
            per_device_train_batch_size=4,
            gradient_accumulation_steps=4,
            num_train_epochs=1,
            max_steps=steps,
            learning_rate=2e-4,
            logging_steps=1,
            report_to="none",
        ),
    )


def plain_trl(model_folder: str, rows: str, folder: str, steps: int, packed: bool = False):
    """QLoRA by TRL itself: it makes the adapter bf16 and computes the loss without the full logits."""
    import sft
    import torch
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, Trainer
    from trl import SFTConfig, SFTTrainer

    on_gpu = torch.cuda.is_available()
    if not on_gpu:
        SFTTrainer.compute_loss = Trainer.compute_loss  # TRL's own is a Triton kernel
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    quantised = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=torch.bfloat16
    )
    model = AutoModelForCausalLM.from_pretrained(
        model_folder, dtype=torch.bfloat16 if on_gpu else torch.float32, attn_implementation="sdpa",
        quantization_config=quantised if on_gpu else None, device_map={"": 0 if on_gpu else "cpu"},
    )  # fmt: skip
    table = sft.load_rows(sft.parse_args(["--dataset", rows]))
    layout = sft.detect_format(table.column_names)
    data, _ = sft.encode_rows(table, sft.make_renderer(tokenizer, layout), layout, LENGTH)
    collator = None
    if packed:
        data, collator = pack(data, tokenizer)
        require_rows_apart(model, data, collator)
    config = SFTConfig(
        output_dir=folder, max_steps=steps, per_device_train_batch_size=BATCH, gradient_accumulation_steps=ACCUMULATION,
        learning_rate=2e-4, warmup_steps=0.03, optim="adamw_8bit" if on_gpu else "adamw_torch", bf16=on_gpu,
        gradient_checkpointing=True, gradient_checkpointing_kwargs={"use_reentrant": False}, max_length=LENGTH,
        train_sampling_strategy="random" if packed else "group_by_length", pad_to_multiple_of=64,
        dataset_kwargs={"skip_prepare_dataset": True}, save_strategy="no", logging_steps=1, report_to="none", seed=SEED,
        disable_tqdm=True,
    )  # fmt: skip
    adapter = LoraConfig(r=16, lora_alpha=32, lora_dropout=0, target_modules="all-linear", task_type="CAUSAL_LM")
    return SFTTrainer(
        model=model, args=config, processing_class=tokenizer, train_dataset=data, data_collator=collator, peft_config=adapter
    )


def pack(data, tokenizer):
    """Rows packed as packing=True does, and a collator that leaves the packs of a batch side by side.

    packing=True joins them into one line of BATCH packs, whose dense mask costs BATCH times the attention; it is
    meant for Flash Attention. Without a mask in the batch, transformers reads the borders from position_ids.
    """
    from trl import pack_dataset
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    collator = DataCollatorForLanguageModeling(tokenizer.pad_token_id, return_position_ids=True, pad_to_multiple_of=64)

    def collate(packs: list[dict]) -> dict:
        batch = collator(packs)
        del batch["attention_mask"]
        return batch

    return pack_dataset(data.select_columns(["input_ids", "labels"]), LENGTH, "bfd"), collate


def require_rows_apart(model, data, collate) -> None:
    """Raise where another first row of a pack changes what the model makes of the rows after it."""
    import torch

    shared = next((row for row in data if len(row["seq_lengths"]) > 1), None)
    if shared is None:
        return
    batch = {name: value.to(model.device) for name, value in collate([shared]).items() if name != "labels"}
    first = shared["seq_lengths"][0]
    ids = batch.pop("input_ids")
    other = torch.cat([ids[:, :first].flip(1), ids[:, first:]], dim=1)
    with torch.no_grad():
        body = model.base_model  # without the head, whose logits could take more memory than training does
        seen, changed = (body(input_ids=given, use_cache=False, **batch)[0][:, first:] for given in (ids, other))
    if not torch.equal(seen, changed):
        raise RuntimeError("not run: in this model packed rows see one another, so packing would not train on the same rows")


def train_measured(trainer) -> None:
    """Train, and print the events that templates/sft.py prints, with the tokens and rows so far in each."""
    import sft
    import torch
    from transformers import TrainerCallback

    on_gpu, tokenizer = torch.cuda.is_available(), trainer.processing_class
    counts = []  # tokens and rows of each forward pass, on the GPU: reading them at once would hold it up
    original = trainer.training_step

    def counted(model, inputs, *args, **kwargs):
        ids = inputs["input_ids"]  # no row holds the pad token, and each has one beginning
        counts.append(torch.stack([(ids != tokenizer.pad_token_id).sum(), (ids == tokenizer.bos_token_id).sum()]))
        return original(model, inputs, *args, **kwargs)

    class Progress(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **kwargs):
            if "loss" in (logs or {}):  # a loss that is known means that the GPU has done the step
                elapsed = round(time.monotonic() - start, 3)
                tokens, rows = torch.stack(counts).sum(0).tolist()
                sft.emit(
                    "progress", step=state.global_step, loss=float(logs["loss"]), elapsed_s=elapsed, tokens=tokens, rows=rows
                )

    trainer.training_step = counted
    trainer.add_callback(Progress())
    trainer.callback_handler.callbacks.insert(0, Turn().callback())
    parts = sorted({sft.leaf(name) for name, module in trainer.model.named_modules() if hasattr(module, "lora_A")})
    trainable = sum(parameter.numel() for parameter in trainer.model.parameters() if parameter.requires_grad)
    sft.emit("coverage", target_modules=parts, trainable=trainable)
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    start = time.monotonic()
    trainer.train()
    peak_gb = torch.cuda.max_memory_allocated() / 1e9 if on_gpu else None
    sft.emit("done", peak_gb=peak_gb, note=describe(trainer))


def describe(trainer) -> str:
    """The settings that differ between contenders, as the trainer took them."""
    args = trainer.args
    length = args.max_length or getattr(args, "max_seq_length", None)  # where Unsloth keeps it for padding-free batches
    free = ", padding-free" if getattr(args, "padding_free", False) else ""
    optimizer = getattr(args.optim, "value", args.optim)
    return f"{optimizer}, max_length {length}, {args.train_sampling_strategy}, pad to {args.pad_to_multiple_of}{free}"


def child(contender: str, *words: str) -> None:
    if contender.startswith("ours"):
        return ours(*words)
    model, rows, folder, steps = words
    if contender == "article":
        trainer = article(model, rows, folder, int(steps))
    else:
        trainer = plain_trl(model, rows, folder, int(steps), packed=contender == "trl-packed")
    train_measured(trainer)
