"""What templates/grpo.py is worth: learned on a real model, held against TRL's GRPOTrainer, and how fast completions are written.

    .venv/bin/python benchmarks/rewards.py --data-only       # rows and model, once, where there is a registry
    python benchmarks/rewards.py learn --points 1e-4x1       # about 5 minutes on an H200: its SFT takes 90 s, a step 1 s
    python benchmarks/rewards.py compare llama-1b --contenders ours,trl,trl-cb --each-s 180
    python benchmarks/rewards.py compare lfm2-1.2b qwen3-4b --contenders ours,trl --each-s 180
    python benchmarks/rewards.py speed llama-1b lfm2-1.2b qwen3-4b --each-s 180

Run it in the environment of templates/grpo.py (--data-only: in this repository's own). Each row is added to rewards-PART.csv
as soon as it is measured, a row that is there is not measured again, and nothing new is begun that the limit may cut.

learn    SmolLM2-135M-Instruct: first a short SFT on few rows of a reasoning-gym task, since the base never answers right;
         then GRPO from that adapter on prompts alone. The share right on held-out prompts, before and after, greedy, with the
         paired 95% interval. --points: learning rate x seed
compare  the same prompts, reward, LoRA, learning rate and completions a step for each contender, in a process of its own, on
         models with random weights and the real shape (see memory.py). The reward is a rule on the text (rule.py, written here)
             ours         templates/grpo.py, as a user runs it
             ours-eager   the same without Unsloth's CUDA graphs for writing
             ours-trl     the same with --backend trl: without Unsloth
             trl          TRL's GRPOTrainer and PEFT, nothing recomputed, as many completions a pass as fit
             trl-cb       the same with transformers' continuous batching for writing
speed    tokens a second in which the model under training writes, by sequences at once, and of learning from them
"""

from __future__ import annotations

import argparse
import csv
import datetime
import importlib.metadata
import itertools
import json
import os
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / folder) for folder in ("templates", "demo", "benchmarks")]

from gym_rows import gym_rows, prepare  # noqa: E402

WORK = ROOT / ".cache" / "rewards"
MODEL = ROOT / ".cache" / "demo" / "SmolLM2-135M-Instruct"
TASKS = {  # what of reasoning-gym, with its difficulty
    "chain_sum": {"min_terms": 2, "max_terms": 3, "min_digits": 1, "max_digits": 2},
    "letter_counting": {"min_words": 3, "max_words": 6},
    "spell_backward": {"max_word_len": 5},
}
SFT_ROWS, RL_ROWS, TEST_ROWS, SEED = 512, 8000, 500, 1
PARTS = ("learn", "compare", "speed")
CONTENDERS = ("ours", "trl", "trl-cb", "ours-eager", "ours-trl")
PROMPTS_A_STEP, GROUP, COMPLETION, PER_PASS, RATE = 16, 8, 256, 16, 2e-5
CUT = "cut before its end"  # the note of a process that the limit ended
RULE = "def grade(answer, reference, row):\n    return sum(one in 'aeiou' for one in answer) / max(len(answer), 1)\n"
LEARN = (
    "task", "point", "right_before", "right_after", "difference", "low", "high", "test_rows", "reward_first", "reward_last",
    "steps", "completions_per_step", "learning_rate", "kl", "step_s", "sft_right_steps", "sft_s", "grpo_s", "note",
)  # fmt: skip
COMPARE = (
    "shape", "contender", "step_s", "completions_per_s", "tokens_per_s", "peak_gb", "first_step_s", "all_steps_s", "reward_first",
    "reward_last", "writing_s", "steps", "completions_per_step", "completion_tokens", "note",
)  # fmt: skip
SPEED = (
    "shape", "what", "graphs", "at_once", "prompt_tokens", "tokens", "seconds", "tokens_per_s", "step_ms", "peak_gb", "layers",
    "parameters", "note",
)  # fmt: skip
COMMON = ("model", "gpu", "versions", "date")


# ---- rows, where there is a registry


def make_data(folder: Path) -> None:
    """TASK-sft.jsonl, TASK-rl.jsonl and TASK-test.jsonl, rows of question and answer, none in two of them."""
    folder.mkdir(parents=True, exist_ok=True)
    for task, difficulty in TASKS.items():
        wanted = SFT_ROWS + RL_ROWS + TEST_ROWS
        rows = gym_rows(task, 4 * wanted, SEED, **difficulty)
        random.Random(SEED).shuffle(rows)
        ends = (TEST_ROWS, TEST_ROWS + SFT_ROWS, wanted)
        cut = rows[: ends[0]], rows[ends[0] : ends[1]], rows[ends[1] : ends[2]]
        for part, chosen in zip(("test", "sft", "rl"), cut, strict=True):
            (folder / f"{task}-{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in chosen), encoding="utf-8")
            print(f"{task}-{part}: {len(chosen)} rows")


# ---- learn: a real model on a real task


def learn(options: argparse.Namespace) -> None:
    for task in options.tasks.split(","):
        base, sft_s, note = start_of(task, options)
        for point in options.points.split(","):
            if options.is_measured("learn", task=task, point=point):
                continue
            if options.left() < options.least_s or note:
                options.add("learn", {"task": task, "point": point, "note": note or "not begun: the limit is near"})
                continue
            options.add("learn", {"task": task, "point": point, "sft_s": sft_s, **rewarded(task, point, base, options)})


def start_of(task: str, options: argparse.Namespace) -> tuple[Path, float, str]:
    """The adapter of a short SFT, made once."""
    folder, began = options.work / f"{task}-sft", time.monotonic()
    if (folder / "out" / "adapter_model.safetensors").exists():
        return folder / "out", 0.0, ""
    words = {
        "base-model": options.model, "dataset": options.data / f"{task}-sft.jsonl", "save-local": folder / "out",
        "max-seq-length": 128, "grader": "none", "save-steps": 10**6, "max-steps": options.sft_steps, "eval-split": 0.05,
    }  # fmt: skip
    events, error = execute([sys.executable, str(ROOT / "templates" / "sft.py"), *flags(words)], folder, options)
    return folder / "out", round(time.monotonic() - began, 1), "" if event(events, "done") else f"SFT: {error}"


def rewarded(task: str, point: str, base: Path, options: argparse.Namespace) -> dict[str, Any]:
    rate, seed = point.split("x")
    folder, began = options.work / f"{task}-{point}", time.monotonic()
    words = {
        "base-model": base, "dataset": options.data / f"{task}-rl.jsonl", "eval-dataset": options.data / f"{task}-test.jsonl",
        "save-local": folder / "out", "reward": "exact", "learning-rate": rate, "seed": seed, "eval-split": 0,
        "num-generations": options.group, "batch-size": options.prompts, "gradient-accumulation": 1, "max-seq-length": 256,
        "max-completion-length": options.completion, "max-steps": options.steps, "save-steps": 10**6,
        "max-graded": options.graded, "grading-seconds": 60, "max-kl": 0,
    }  # fmt: skip
    events, error = execute([sys.executable, str(ROOT / "templates" / "grpo.py"), *flags(words)], folder, options)
    done, graded = event(events, "done"), event(events, "graded")
    steps = [one for one in events if one["event"] == "progress"]
    if not done or not graded:  # cut: what it began with, and how far it came
        return {
            "right_before": event(events, "eval").get("right"), "reward_first": mean([one["reward"] for one in steps[:10]]),
            "reward_last": mean([one["reward"] for one in steps[-10:]]), "steps": len(steps), "note": error or "not graded",
        }  # fmt: skip
    before, after = graded["contenders"]
    return {
        "right_before": before["right"], "right_after": after["right"], "difference": after["difference"],
        "low": after["difference_low"], "high": after["difference_high"], "test_rows": graded["rows"],
        "reward_first": done["rewards"]["reward"][0], "reward_last": done["rewards"]["reward"][1], "steps": done["steps"],
        "completions_per_step": options.prompts * options.group, "learning_rate": rate, "kl": done["rewards"]["kl"][1],
        "step_s": mean([one["step_s"] for one in steps[3:]]), "sft_right_steps": options.sft_steps,
        "grpo_s": round(time.monotonic() - began, 1), "note": after["sentence"],
    }  # fmt: skip


# ---- compare: the same work for each contender


def compare(options: argparse.Namespace) -> None:
    import memory

    for shape in options.shapes:
        work = options.work / shape
        wanted = [
            one for one in options.contenders.split(",") if not options.is_measured("compare", shape=shape, contender=one)
        ]
        if not wanted:
            continue
        work.mkdir(parents=True, exist_ok=True)
        make_prompts(work, options)
        if not (work / "model").exists():
            memory.make_model(shape, work / "model")
        for contender in wanted:
            if options.left() < options.least_s:
                return
            own = [str(work / "model"), str(work / "prompts.jsonl"), str(work / contender / "out"), str(work / "rule.py")]
            numbers = [str(options.compare_steps), str(options.prompts), str(options.group), str(options.completion)]
            command = [sys.executable, __file__, "--child", contender, *own, *numbers]
            events, error = execute(command, work / contender, options)
            options.add("compare", {"shape": shape, "contender": contender, **compared(events, error, options)})


def make_prompts(work: Path, options: argparse.Namespace) -> None:
    """Prompts of about 100 tokens, and the rule that rewards what follows them."""
    import tiny_model

    draw = random.Random(SEED)
    lines = tiny_model.ROWS.read_text("utf-8").splitlines()
    words = sorted({word for line in lines for turn in json.loads(line)["messages"] for word in turn["content"].split()})
    count = options.prompts * (options.compare_steps + 1)
    rows = [{"prompt": " ".join(draw.choice(words) for _ in range(draw.randint(20, 45))) + f" {at}"} for at in range(count)]
    (work / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (work / "rule.py").write_text(RULE, encoding="utf-8")


def compared(events: list[dict], error: str, options: argparse.Namespace) -> dict[str, Any]:
    """A contender's row. step_s is the median of the steps after the first two, which compile; all_steps_s has all of them."""
    steps, done = [one for one in events if one["event"] == "progress"], event(events, "done")
    first = max(options.warmup, 1)
    timed = steps[first:]
    if not timed:
        return {"note": error or "too few steps"}
    pairs = itertools.pairwise(steps[first - 1 :])
    seconds = statistics.median(one["elapsed_s"] - before["elapsed_s"] for before, one in pairs)
    completions, length = options.prompts * options.group, mean([one["length"] for one in timed])
    return {
        "step_s": seconds, "completions_per_s": completions / seconds, "tokens_per_s": completions * length / seconds,
        "peak_gb": done.get("peak_gb"), "first_step_s": steps[0]["elapsed_s"], "all_steps_s": steps[-1]["elapsed_s"], "reward_first": mean([one["reward"] for one in steps[:2]]),
        "reward_last": mean([one["reward"] for one in steps[-2:]]), "steps": len(steps), "completions_per_step": completions,
        "completion_tokens": length, "writing_s": mean([one.get("writing_s") or 0 for one in timed]), "note": done.get("note", "its defaults") if done else CUT,
    }  # fmt: skip


def ours(contender: str, model: str, rows: str, out: str, rule: str, *numbers: str) -> None:
    if contender == "ours-eager":
        os.environ["UNSLOTH_DECODE_CUDA_GRAPHS"] = "0"
    import grpo

    steps, prompts, group, completion = numbers
    words = {
        "base-model": model, "dataset": rows, "save-local": out, "reward-file": rule, "max-steps": steps, "batch-size": prompts,
        "gradient-accumulation": 1, "num-generations": group, "max-completion-length": completion, "learning-rate": RATE,
        "max-seq-length": 1024, "save-steps": 10**6, "eval-split": 0, "grader": "none", "max-kl": 0,
        "backend": "trl" if contender == "ours-trl" else "unsloth",
    }  # fmt: skip
    sys.argv = ["grpo.py", *flags(words), "--load-in-16bit"]
    grpo.FLAT_STEPS = 10**6  # a model of random weights never ends an answer
    sys.exit(grpo.main())


def plain(contender: str, model_folder: str, rows: str, out: str, rule: str, *numbers: str) -> None:
    """TRL's GRPOTrainer with its own tokens and generation."""
    import grpo
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    steps, prompts, group, completion = map(int, numbers)
    on_gpu = torch.cuda.is_available()
    if not on_gpu:
        grpo.compute_head_without_gpu()
    grade = grpo.grader_of_file(rule, "grade")
    asked = [json.loads(line)["prompt"] for line in Path(rows).read_text("utf-8").splitlines()]
    data = Dataset.from_dict({"prompt": [[{"role": "user", "content": text}] for text in asked]})
    model = AutoModelForCausalLM.from_pretrained(
        model_folder, dtype=torch.bfloat16 if on_gpu else torch.float32, device_map={"": 0 if on_gpu else "cpu"}
    )
    per_pass = min(PER_PASS, prompts * group)
    config = GRPOConfig(
        output_dir=out, max_steps=steps, per_device_train_batch_size=per_pass, gradient_accumulation_steps=prompts * group // per_pass,
        num_generations=group, max_completion_length=completion, temperature=1.0, learning_rate=RATE, beta=0.0, loss_type="dapo",
        lr_scheduler_type="constant_with_warmup", warmup_steps=0.05, optim="adamw_torch_fused", bf16=on_gpu, logging_steps=1,
        gradient_checkpointing=False, save_strategy="no", report_to="none", seed=SEED, disable_tqdm=True,
        use_transformers_continuous_batching=contender == "trl-cb",
    )  # fmt: skip
    trainer = GRPOTrainer(
        model=model, args=config, train_dataset=data, processing_class=AutoTokenizer.from_pretrained(model_folder),
        reward_funcs=lambda completions, **_: [grade(one[0]["content"], "", {}) for one in completions],
        peft_config=LoraConfig(r=16, lora_alpha=32, lora_dropout=0, target_modules="all-linear", task_type="CAUSAL_LM"),
    )  # fmt: skip
    start = time.monotonic()

    class Progress(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **kwargs):
            if "reward" in (logs or {}):
                elapsed = round(time.monotonic() - start, 3)
                length = logs["completions/mean_length"]
                grpo.emit("progress", step=state.global_step, elapsed_s=elapsed, reward=logs["reward"], length=length)

    trainer.add_callback(Progress())
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    trainer.train()
    peak = torch.cuda.max_memory_allocated() / 1e9 if on_gpu else None
    grpo.emit("done", peak_gb=peak, note=f"{per_pass} completions a pass, nothing recomputed")


# ---- speed: what estimate.py rests on


def speed(options: argparse.Namespace) -> None:
    import memory

    for shape in options.shapes:
        work = options.work / shape
        if options.left() < options.least_s:
            return
        if options.is_measured("speed", shape=shape):
            continue
        work.mkdir(parents=True, exist_ok=True)
        if not (work / "model").exists():
            memory.make_model(shape, work / "model")
        command = [sys.executable, __file__, "--child", "speed", str(work / "model"), options.at_once, str(options.tokens)]
        events, error = execute(command, work / "speed", options)
        rows = [one for one in events if one["event"] == "speed"]
        for row in rows or [{"note": error}]:
            options.add("speed", {"shape": shape, **{name: value for name, value in row.items() if name in SPEED}})


def write_and_learn(model_folder: str, at_once: str, tokens: str) -> None:
    """Each number of sequences once to warm up and once timed; then passes of learning, as the trainer makes them."""
    import unsloth  # noqa: F401 # isort: skip
    import accelerate
    import grpo
    import torch

    words = {"base-model": model_folder, "dataset": "made here", "max-seq-length": 1024, "max-completion-length": tokens}
    settings = grpo.parse_args([*flags(words), "--load-in-16bit"])
    tokenizer, model = grpo.load_tokenizer(settings, None), grpo.load_model(settings)
    layers, parameters = model.config.num_hidden_layers, sum(one.numel() for one in model.parameters())
    model = grpo.attach_adapter(model, grpo.replace(settings, gradient_checkpointing="off"))
    accelerator, on_gpu = accelerate.Accelerator(), torch.cuda.is_available()
    shape = {"layers": layers, "parameters": parameters, "prompt_tokens": 128}
    prompts = [[5 + (row * 7 + place) % 900 for place in range(128)] for row in range(max(map(int, at_once.split(","))))]
    sampler = grpo.Sampler(tokenizer, int(tokens), 1.0, SEED)

    def timed(work: Any) -> float:
        if on_gpu:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        began = time.monotonic()
        work()
        if on_gpu:
            torch.cuda.synchronize()
        return time.monotonic() - began

    peak = lambda: torch.cuda.max_memory_allocated() / 1e9 if on_gpu else None  # noqa: E731
    for graphs in ("1", "0"):
        os.environ["UNSLOTH_DECODE_CUDA_GRAPHS"] = graphs
        for count in map(int, at_once.split(",")):
            try:
                for _ in range(2):
                    with grpo.writing(model, accelerator) as writing:
                        seconds = timed(lambda count=count, writing=writing: sampler.write_batch(writing, prompts[:count]))
                row = {
                    "seconds": seconds,
                    "tokens_per_s": count * int(tokens) / seconds,
                    "step_ms": 1000 * seconds / int(tokens),
                }
            except torch.OutOfMemoryError:
                row = {"note": "out of memory"}
            grpo.emit("speed", what="write", graphs=graphs, at_once=count, tokens=int(tokens), peak_gb=peak(), **row, **shape)
    grpo.add_fused_head(model, 1.0, ("log_probs",))
    model.train()
    length = 128 + int(tokens)
    for count in (8, 16, 32):
        ids = torch.tensor([(prompt + prompt * 20)[:length] for prompt in prompts[:count]], device=model.device)
        labels = ids.clone()
        labels[:, :128] = -100

        def learn_once(ids: Any = ids, labels: Any = labels) -> None:
            with torch.autocast(ids.device.type, torch.bfloat16):
                found = model(
                    input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels, use_cache=False, fused_lm_head=True
                )
            found.log_probs.sum().backward()

        try:
            timed(learn_once)
            seconds = min(timed(learn_once) for _ in range(3))
            row = {"seconds": seconds, "tokens_per_s": ids.numel() / seconds}
        except torch.OutOfMemoryError:
            row = {"note": "out of memory"}
        grpo.emit("speed", what="learn", graphs="", at_once=len(ids), tokens=length, peak_gb=peak(), **row, **shape)


# ---- what the parts share


def flags(values: dict[str, Any]) -> list[str]:
    return [word for name, value in values.items() for word in (f"--{name}", str(value))]


def event(events: list[dict], name: str) -> dict[str, Any]:
    return next((one for one in reversed(events) if one["event"] == name), {})


def mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None


def execute(command: list[str], folder: Path, options: argparse.Namespace) -> tuple[list[dict], str]:
    """The events of a process that ends at the limit at the latest, and why it has too few of them: what its log ends with."""
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "log.txt"
    environment = os.environ | {"TRACKIO_DIR": str(folder / "trackio"), "HF_HUB_OFFLINE": "1"}
    ended = ""
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, cwd=folder, env=environment)
        try:
            process.wait(min(options.each_s, max(options.left(), 1)))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            ended = CUT
    lines = log.read_text("utf-8", errors="replace").splitlines()
    events = [json.loads(line.split("EVENT ", 1)[1]) for line in lines if line.startswith("EVENT {")]
    failed = event(events, "failed").get("message")
    return events, str(failed or ended or next((line for line in reversed(lines) if line.strip()), "")).replace("\n", " ")[:300]


class Options(argparse.Namespace):
    """Arguments, the time that is left, and the tables."""

    began: float

    def left(self) -> float:
        return self.limit_s - (time.monotonic() - self.began)

    def table(self, part: str) -> Path:
        return self.out / f"rewards-{part}.csv"

    def is_measured(self, part: str, **key: str) -> bool:
        if not self.table(part).exists():
            return False
        with self.table(part).open() as file:
            rows = list(csv.DictReader(file))
        return any(all(row[name] == value for name, value in key.items()) and "not begun" not in row["note"] for row in rows)

    def add(self, part: str, row: dict[str, Any]) -> None:
        import memory
        import sft
        import speed as measured

        names = ("unsloth", "torch", "transformers", "trl", "peft")
        versions = " ".join(f"{name}={importlib.metadata.version(name)}" for name in names)
        common = {"gpu": sft.hardware()["device"], "versions": versions, "date": datetime.date.today().isoformat()}
        common["model"] = self.model.name if part == "learn" else "random weights"
        fields = {"learn": LEARN, "compare": COMPARE, "speed": SPEED}[part]
        memory.add_row(
            self.table(part), measured.rounded({name: row.get(name) for name in fields} | common), (*fields, *COMMON)
        )
        print(json.dumps({name: value for name, value in row.items() if value not in (None, "")}), flush=True)


def parse_args() -> Options:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="?", choices=PARTS)
    parser.add_argument("shapes", nargs="*", metavar="SHAPE", help="of memory.py, for compare and speed")
    parser.add_argument("--data-only", action="store_true", help="make rows and model, and nothing else")
    parser.add_argument("--data", type=Path, default=WORK / "data", help="folder of the rows")
    parser.add_argument("--model", type=Path, default=MODEL, help="folder of SmolLM2-135M-Instruct")
    parser.add_argument("--work", type=Path, default=Path("/tmp/rewards"), help="folder for models, adapters and logs")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks", help="folder of the tables")
    parser.add_argument("--limit-s", type=float, default=570, help="seconds that all of it may take")
    parser.add_argument("--each-s", type=float, default=300, help="seconds that one process may take")
    parser.add_argument("--least-s", type=float, default=60, help="seconds that must be left to begin another")
    parser.add_argument("--tasks", default="chain_sum", help=f"for learn: of {', '.join(TASKS)}")
    parser.add_argument("--points", default="1e-4x1,3e-5x1,1e-4x2", help="for learn: learning rate x seed, by comma")
    parser.add_argument("--sft-steps", type=int, default=40)
    parser.add_argument("--steps", type=int, default=100, help="of learn")
    parser.add_argument("--graded", type=int, default=500, help="test rows of learn")
    parser.add_argument("--contenders", default=",".join(CONTENDERS))
    parser.add_argument("--compare-steps", type=int, default=6)
    parser.add_argument("--warmup", type=int, default=2, help="steps of compare that are not timed")
    parser.add_argument("--prompts", type=int, default=0, help=f"a step (learn: 32, compare: {PROMPTS_A_STEP})")
    parser.add_argument("--group", type=int, default=0, help=f"completions of a prompt (learn: 16, compare: {GROUP})")
    parser.add_argument("--completion", type=int, default=0, help=f"tokens of one (learn: 16, compare: {COMPLETION})")
    parser.add_argument("--at-once", default="8,32,128,256", help="for speed: sequences that are written at once")
    parser.add_argument("--tokens", type=int, default=128, help="for speed: tokens that are written")
    options = parser.parse_args(namespace=Options())
    if not options.data_only and not options.part:
        parser.error(f"name a part: {', '.join(PARTS)}; or pass --data-only")
    options.prompts = options.prompts or (32 if options.part == "learn" else PROMPTS_A_STEP)
    options.group = options.group or (16 if options.part == "learn" else GROUP)
    options.completion = options.completion or (16 if options.part == "learn" else COMPLETION)
    options.began, options.work = time.monotonic(), options.work.resolve()
    options.model, options.data, options.out = options.model.resolve(), options.data.resolve(), options.out.resolve()
    return options


def main() -> None:
    options = parse_args()
    if options.data_only:
        return prepare(__file__, options.model, options.data)
    return {"learn": learn, "compare": compare, "speed": speed}[options.part](options)


def child(kind: str, *words: str) -> None:
    if kind == "data":
        return make_data(Path(words[0]))
    if kind == "speed":
        return write_and_learn(*words)
    return (ours if kind.startswith("ours") else plain)(kind, *words)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(*sys.argv[2:])
    else:
        main()
