"""How fast rows become tokens and labels: templates/sft.py against the tokenizer's own apply_chat_template(tokenize=True).

    python benchmarks/masks.py --out benchmarks/masks.csv

Run it in the environment of templates/sft.py, whose trl carries the chat templates; no GPU. Rows are conversations of
words drawn from the demo's rows; both sides get the same ones, in turns in one process, and the best of --rounds counts.
`ours` is what encode_rows does with a batch: normalise, render, find the spans, tokenise, label. `theirs` renders and
tokenises, without labels, a row at a time as it is called. Both are rows a second of CPU time.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import os
import platform
import random
import re
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # one core: CPU time is then time
sys.path[:0] = [str(Path(__file__).resolve().parents[1] / folder) for folder in ("templates", "demo", "benchmarks")]
import memory  # noqa: E402
import sft  # noqa: E402
import speed  # noqa: E402
import tiny_model  # noqa: E402

TEMPLATES = ("qwen2_5", "lfm2_2_5", "llama3_1", "qwen3", "gemma3", "gptoss")
TURNS = {1: 300, 3: 330, 10: 1000, 50: 2000}  # questions with their answers: tokens of a row, about
ROWS = {1: 512, 3: 512, 10: 192, 50: 64}
LAYOUT = sft.Format("messages", {"messages": "messages"})
TAG = re.compile(r"<[|｜]?[\w/▁|｜:]+?[|｜]?>")
FIELDS = ("template", "turns", "tokens", "theirs_rows_per_s", "ours_rows_per_s", "share", "versions", "cpu", "date")


def make_tokenizer(template: str) -> Any:
    """The demo's tokenizer around a chat template, its tags as tokens."""
    tokenizer = tiny_model.make_tokenizer(8000)
    tokenizer.add_special_tokens({"extra_special_tokens": sorted(set(TAG.findall(template)))})
    tokenizer.chat_template = template
    return tokenizer


def make_rows(turns: int, words: list[str]) -> list[dict]:
    draw, each = random.Random(speed.SEED + turns), TURNS[turns] / turns / 2
    roles = ("user", "assistant") * turns
    return [
        {"messages": [{"role": role, "content": " ".join(draw.choices(words, k=max(round(each * 0.6), 3)))} for role in roles]}
        for _ in range(ROWS[turns])
    ]


def theirs(tokenizer: Any, rows: list[dict]) -> int:
    encoded = (tokenizer.apply_chat_template(row["messages"], tokenize=True, return_dict=False) for row in rows)
    return sum(map(len, encoded))


def ours(renderer: Any, rows: list[dict]) -> int:
    tokens = 0
    for at in range(0, len(rows), sft.ROWS_AT_ONCE):
        examples = sft.examples_of(renderer, LAYOUT, rows[at : at + sft.ROWS_AT_ONCE])
        tokens += sum(len(sft.as_encoded(example, 10**6)["input_ids"]) for example in examples)
    return tokens


def cpu_s(measured: Any, *arguments: Any) -> float:
    began = time.process_time()
    measured(*arguments)
    return time.process_time() - began


def measure(template: str, turns: int, words: list[str], rounds: int) -> dict:
    tokenizer, rows = make_tokenizer(template), make_rows(turns, words)
    renderer = sft.make_renderer(tokenizer, LAYOUT)
    tokens = ours(renderer, rows)  # both warm
    if theirs(tokenizer, rows) != tokens:
        raise SystemExit("the two sides do not make the same tokens")
    times = [(cpu_s(theirs, tokenizer, rows), cpu_s(ours, renderer, rows)) for _ in range(rounds)]
    their_s, our_s = (min(column) for column in zip(*times, strict=True))
    return {
        "turns": turns, "tokens": round(tokens / len(rows)), "theirs_rows_per_s": round(len(rows) / their_s),
        "ours_rows_per_s": round(len(rows) / our_s), "share": round(their_s / our_s, 2),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("templates", nargs="*", default=TEMPLATES, metavar="TEMPLATE", help="of trl, such as qwen3")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, required=True, help="CSV to add to")
    options = parser.parse_args()
    import tokenizers
    import transformers

    spec = importlib.util.find_spec("trl")
    if spec is None or spec.origin is None:
        raise SystemExit("trl is not installed: run it in the environment of templates/sft.py")
    folder = Path(spec.origin).parent / "chat_templates"
    lines = tiny_model.ROWS.read_text("utf-8")
    words = sorted(set(re.findall(r"[A-Za-z]+", lines)))
    common = {
        "versions": f"transformers={transformers.__version__} tokenizers={tokenizers.__version__}",
        "cpu": platform.machine(), "date": datetime.date.today().isoformat(),
    }  # fmt: skip
    for name in options.templates:
        for turns in TURNS:
            row = {"template": name} | measure((folder / f"{name}.jinja").read_text("utf-8"), turns, words, options.rounds)
            memory.add_row(options.out, row | common, FIELDS)
            print(row, flush=True)


if __name__ == "__main__":
    main()
