"""Runs of templates/sft.py, dpo.py and grpo.py, each a process of its own, forked from this one so that libraries are imported only once.

Run in the template's environment. Each line on stdin is a run as JSON: {"arguments", "folder", "env", "fault", "template"}; the
answer is its process id. Its output goes to FOLDER/log.txt, and ends with EXIT and its exit code. With "processes" it is so
many processes, as torchrun would start them; the output of all but the first goes to FOLDER/log-NUMBER.txt.
"""

import gc
import json
import os
import resource
import signal
import socket
import sys
import traceback
from pathlib import Path

import unsloth  # noqa: F401 # isort: skip  # first: it patches what comes after it

# What a run comes to import by and by, which takes it longer than its steps.
import datasets.packaged_modules.generator.generator  # noqa: F401
import matplotlib.backends.backend_agg
import matplotlib.figure  # noqa: F401
import torch
import torch.utils.serialization  # noqa: F401
import trackio  # noqa: F401
import transformers.generation.streamers
import transformers.models.lfm2.modeling_lfm2  # noqa: F401
from huggingface_hub.utils import http_backoff
from trl import DPOTrainer, GRPOConfig, GRPOTrainer, SFTTrainer

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "templates"))
import dpo
import grpo
import sft

sft.ANSWER_TOKENS = grpo.ANSWER_TOKENS = (
    8  # what an untrained model says never ends, and half of a run's time would go to 128 tokens of it
)


def run(
    arguments: list[str], folder: str, env: dict[str, str], fault: list | None, template: str = "sft", number: int = 0
) -> int:
    os.chdir(folder)
    log = os.open(f"log-{number}.txt" if number else "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1), os.dup2(log, 2)
    os.environ |= env
    sys.argv[1:] = arguments
    if fault:
        FAULTS[fault[0]](*fault[1:])
    try:
        return {"sft": sft, "dpo": dpo, "grpo": grpo}[template].main()
    except SystemExit as end:
        return end.code
    except BaseException:
        traceback.print_exc()
        return 1


FULL = "CUDA out of memory. Tried to allocate 2.00 GiB."


def out_of_memory(most: int, step: int) -> None:
    """From this step on, memory holds a pass of at most so many tokens."""
    whole = SFTTrainer.training_step

    def training_step(self, model, inputs, *args, **kwargs):
        if self.state.global_step >= step and inputs["input_ids"].numel() > most:
            raise torch.OutOfMemoryError(FULL)
        return whole(self, model, inputs, *args, **kwargs)

    SFTTrainer.training_step = training_step


def out_of_memory_elsewhere(most: int, step: int) -> None:
    """The same in the second of several processes alone."""
    if os.environ.get("RANK") == "1":
        out_of_memory(most, step)


def out_of_memory_of_pairs(most: int, step: int) -> None:
    """From this step on, memory holds a pass of at most so many sequences of preferences."""
    whole = DPOTrainer.training_step

    def training_step(self, model, inputs, *args, **kwargs):
        if self.state.global_step >= step and len(inputs["input_ids"]) > most:
            raise torch.OutOfMemoryError(FULL)
        return whole(self, model, inputs, *args, **kwargs)

    DPOTrainer.training_step = training_step


def out_of_memory_of_completions(most: int) -> None:
    """Memory holds so many completions that are written at once, and fails at the first pass that is learned from."""
    write, whole, failed = grpo.Sampler.write_batch, grpo.RewardTrainer.log_probs, []

    def write_batch(self, model, prompts):
        if len(prompts) > most:
            raise torch.OutOfMemoryError(FULL)
        return write(self, model, prompts)

    def log_probs(self, model, rollout, places):
        if not failed:
            failed.append(places)
            raise torch.OutOfMemoryError(FULL)
        return whole(self, model, rollout, places)

    grpo.Sampler.write_batch, grpo.RewardTrainer.log_probs = write_batch, log_probs


def soon_flat() -> None:
    """A few steps without a difference suffice to end a run."""
    grpo.FLAT_STEPS = 2


def compare_grpo() -> None:
    """At the first step, print how far loss and gradients are from those of TRL's GRPOTrainer on the same completions."""
    whole = grpo.RewardTrainer.training_step

    def training_step(self, model, inputs, *args, **kwargs):
        model.float()  # so that what is compared is not rounding
        for name, value in model.named_parameters():
            if "lora_B" in name:
                value.data.normal_(std=0.05)  # away from the start, where the KL has no gradient
        loss = float(whole(self, model, inputs, *args, **kwargs))
        found = {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}
        model.zero_grad()
        theirs = loss_of_trl(self, model)
        wanted = {name: value.grad for name, value in model.named_parameters() if value.grad is not None}
        errors = [float((found[name] - wanted[name]).abs().max()) for name in found]
        size = max(float(value.abs().max()) for value in found.values())
        grpo.emit("compared_loss", ours=loss, theirs=theirs, error=max(errors), size=size)
        os._exit(0)

    grpo.RewardTrainer.training_step = training_step


def loss_of_trl(trainer, model) -> float:
    from datasets import Dataset

    rollout, filler, beta = trainer.rollout, trainer.filler, trainer.beta
    config = GRPOConfig(
        output_dir="trl", temperature=trainer.sampler.temperature, beta=beta, loss_type="dapo", num_generations=trainer.group,
        per_device_train_batch_size=len(rollout.completions), report_to="none", gradient_checkpointing=False, bf16=False,
    )  # fmt: skip
    other = GRPOTrainer(
        model=model, args=config, processing_class=trainer.processing_class, reward_funcs=lambda **_: [0.0],
        train_dataset=Dataset.from_dict({"prompt": ["a"] * 8}),
    )  # fmt: skip
    other.current_gradient_accumulation_steps = 1
    parts = {"prompt": [one.prompt for one in rollout.questions], "completion": [one.tokens for one in rollout.completions]}
    given = {"advantages": torch.tensor(rollout.advantages), "num_items_in_batch": torch.tensor(rollout.written)}
    for name, rows in parts.items():
        width = max(map(len, rows))
        pad = lambda row, fill, name=name, width=width: (  # noqa: E731
            [fill] * (width - len(row)) + row if name == "prompt" else row + [fill] * (width - len(row))
        )
        given[f"{name}_ids"] = torch.tensor([pad(row, filler) for row in rows])
        given[f"{name}_mask"] = torch.tensor([pad([1] * len(row), 0) for row in rows])
    if beta:
        whole = [torch.cat([given[f"{name}_{kind}"] for name in parts], 1) for kind in ("ids", "mask")]
        with torch.no_grad(), model.disable_adapter():
            log_probs = other._get_per_token_logps_and_entropies(model, *whole, given["completion_ids"].shape[1])[0]
        given["ref_per_token_logps"] = log_probs
    loss = other._compute_loss(model, given)
    loss.backward()
    return loss.item()


def compare_orpo() -> None:
    """Before training, print how far the log-probabilities of the fused forward pass are from TRL's own."""
    whole = dpo.PreferenceTrainer.train_batch

    def train_batch(self, sequences):
        batch = whole(self, sequences)
        labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)
        theirs = {}
        for name, rows in zip(
            ("chosen", "rejected"), (slice(None, len(labels) // 2), slice(len(labels) // 2, None)), strict=True
        ):
            theirs |= {f"{name}_input_ids": batch["input_ids"][rows], f"{name}_attention_mask": batch["attention_mask"][rows]}
            theirs |= {f"{name}_labels": labels[rows]}
        self.model.float()  # TRL's own rounds log-probabilities to the model's 16 bits
        with torch.no_grad():
            found = dpo.FusedForward.concatenated_forward(self, self.model, batch)[:2]
            wanted = super(dpo.FusedForward, self).concatenated_forward(self.model, theirs)[:2]
        errors = [float((one - other).abs().max()) for one, other in zip(found, wanted, strict=True)]
        sft.emit("compared_forward", error=max(errors), size=float(wanted[0].abs().min()))
        return batch

    dpo.PreferenceTrainer.train_batch = train_batch


def starts_trained(most: int) -> None:
    """The adapter that is attached has learned something already, as where a run goes on from another's.

    And memory holds so many sequences only, so that a second trainer is made.
    """
    out_of_memory_of_pairs(most, 0)
    whole = dpo.attach_adapter

    def attach_adapter(*args, **kwargs):
        model = whole(*args, **kwargs)
        torch.manual_seed(1)
        for name, value in model.named_parameters():
            if "lora_B" in name:
                value.data.normal_(std=0.05)
        return model

    dpo.attach_adapter = attach_adapter
    keep_options()


def keep_options() -> None:
    """Print what the trainer of preferences is really told, and what Unsloth on a GPU would have filled in."""
    whole = dpo.build_trainer

    def build_trainer(*args, **kwargs):
        trainer = whole(*args, **kwargs)
        told = {name: repr(value) for name, value in trainer.args.to_dict().items()}
        model = trainer.model
        trained = sorted({name.split(".")[-2] for name, value in model.named_parameters() if value.requires_grad})
        sft.emit("told", values=told, kind=type(trainer.args).__name__, adapters=list(model.peft_config), trained=trained)
        return trainer

    dpo.build_trainer = build_trainer


def out_of_memory_packed(most: int) -> None:
    """Memory holds no trial of packed rows of more than so many tokens."""
    whole = sft.has_cross_contamination

    def rows_leak(model, size, width=None):
        if size > most:
            raise torch.OutOfMemoryError(FULL)
        return whole(model, size, width)

    sft.has_cross_contamination = rows_leak


def out_of_memory_kept() -> None:
    """Memory holds no pass whose activations are kept: none that computes a layer only once."""
    whole = SFTTrainer.training_step

    def training_step(self, model, inputs, *args, **kwargs):
        layer = next(module for name, module in model.named_modules() if name.endswith("layers.0"))
        [norm] = [module for name, module in layer.named_children() if name in ("ffn_norm", "post_attention_layernorm")]
        calls = []
        hook = norm.register_forward_hook(lambda *_: calls.append(1))
        loss = whole(self, model, inputs, *args, **kwargs)
        hook.remove()
        if len(calls) == 1:
            raise torch.OutOfMemoryError(FULL)
        return loss

    SFTTrainer.training_step = training_step


def out_of_memory_evaluating(most: int, rank: str = "") -> None:
    """Memory holds an evaluation of at most so many tokens at once; rank: of the process of which that is so, "" for all."""
    whole = SFTTrainer.prediction_step
    if rank and os.environ.get("RANK") != rank:
        return

    def prediction_step(self, model, inputs, *args, **kwargs):
        if inputs["input_ids"].numel() > most:
            print(FULL, flush=True)
            raise torch.OutOfMemoryError(FULL)
        return whole(self, model, inputs, *args, **kwargs)

    SFTTrainer.prediction_step = prediction_step


def evaluation_fails(after: int) -> None:
    """Each evaluation but the first so many batches."""
    whole, calls = SFTTrainer.prediction_step, []

    def prediction_step(*args, **kwargs):
        calls.append(1)
        if len(calls) > after:
            raise RuntimeError("a kernel of the evaluation")
        return whole(*args, **kwargs)

    SFTTrainer.prediction_step = prediction_step


def compare_gradient() -> None:
    """After each step's passes, print how far its gradient is from that of the mean loss of all learned tokens of its rows."""
    whole, passes = SFTTrainer.training_step, []

    def rows_of(batch):
        lengths = batch.get("packed_seq_lengths")
        if lengths is None:
            for ids, labels, mask in zip(batch["input_ids"], batch["labels"], batch["attention_mask"], strict=True):
                yield ids[mask.bool()], labels[mask.bool()]
        else:
            yield from zip(
                batch["input_ids"][0].split(lengths.tolist()), batch["labels"][0].split(lengths.tolist()), strict=True
            )

    def training_step(self, model, inputs, *args, **kwargs):
        passes.append({name: value.clone() for name, value in inputs.items()})
        loss = whole(self, model, inputs, *args, **kwargs)
        if len(passes) == self.args.gradient_accumulation_steps:
            weights = [value for value in model.parameters() if value.requires_grad]
            rows = [row for batch in passes for row in rows_of(batch)]
            learned = [int((labels[1:] != -100).sum()) for _, labels in rows]
            wanted = [torch.zeros_like(value) for value in weights]
            for (ids, labels), count in zip(rows, learned, strict=True):
                if count:
                    alone = model(input_ids=ids[None], labels=labels[None]).loss * count / sum(learned)
                    for total, part in zip(wanted, torch.autograd.grad(alone, weights), strict=True):
                        total += part
            got = torch.cat([value.grad.flatten() for value in weights])
            wanted = torch.cat([value.flatten() for value in wanted])
            held = [sum(int((labels[1:] != -100).sum()) for _, labels in rows_of(batch)) for batch in passes]
            sft.emit("gradient", error=float((got - wanted).norm() / wanted.norm()), learned=held)
            passes.clear()
        return loss

    SFTTrainer.training_step = training_step


def told_to_end(where: str) -> None:
    """SIGTERM comes in this function of the template."""
    whole = getattr(sft, where)

    def told(*args, **kwargs):
        os.kill(os.getpid(), signal.SIGTERM)
        return whole(*args, **kwargs)

    setattr(sft, where, told)


def unsloth_refuses() -> None:
    """Unsloth does not take the model."""

    def from_pretrained(*_, **__):
        raise NotImplementedError("Unsloth: this architecture is not supported yet.")

    unsloth.FastLanguageModel.from_pretrained = from_pretrained


def impatient() -> None:
    """What waits for the Hub to come back does so for a second, not for minutes."""
    http_backoff.__kwdefaults__.update(max_retries=1, base_wait_time=0.1)
    sft.PUSH_PAUSES_S = (0.2, 0.2)


def disk_full(at_step: int, most: int) -> None:
    """From this step on, no file can have more bytes than this."""
    whole = SFTTrainer.training_step

    def training_step(self, *args, **kwargs):
        if self.state.global_step >= at_step:
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
        return whole(self, *args, **kwargs)

    SFTTrainer.training_step = training_step


FAULTS = {
    fault.__name__: fault
    for fault in (
        out_of_memory,
        out_of_memory_elsewhere,
        out_of_memory_kept,
        out_of_memory_of_pairs,
        compare_orpo,
        compare_grpo,
        soon_flat,
        out_of_memory_of_completions,
        keep_options,
        starts_trained,
        out_of_memory_packed,
        out_of_memory_evaluating,
        evaluation_fails,
        compare_gradient,
        told_to_end,
        unsloth_refuses,
        impatient,
        disk_full,
    )  # fmt: skip
}

gc.freeze()  # a collection in a run looks at what the run has made, not at all libraries
signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # ended runs leave nothing behind
for line in sys.stdin:
    wish = json.loads(line)
    count = wish.pop("processes")
    with socket.create_server(("localhost", 0)) as free:
        port = free.getsockname()[1]
    started: list[int] = []
    while len(started) < count and (not started or started[-1]):
        started.append(os.fork())
    if started[-1]:
        print(*started, file=sys.__stdout__, flush=True)
        continue
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    number = len(started) - 1
    place = {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": count, "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in place.items()} if count > 1 else {}
    code = run(**wish, number=number)
    print("EXIT", code, flush=True)
    os._exit(code)
