"""Public benchmarks by lm-eval, item by item on the first contender and on each other: was anything unlearned?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .asking import Asker
from .paired import difference_sentence, paired_difference, verdict
from .report import emit
from .stage import Stage

BATCH = 8  # items at once
Scores = dict[tuple[str, str], dict[int, float]]  # of each item, by task and metric


def run_benchmarks(stage: Stage, askers: Sequence[Asker], tasks: list[str], items: int) -> list[dict[str, Any]]:
    """A line for each contender but the first, task and metric; a benchmark that fails is a warning and has none.

    askers: of models without a system prompt or examples. tasks: lm-eval's names, or files of tasks (.yaml).
    """
    lines: list[dict[str, Any]] = []
    for task in tasks:
        try:
            scores = [benchmark_scores(stage, asker, task, items) for asker in askers]
        except Exception as error:  # a task brings its own data, code and metrics
            emit("warning", code="benchmark_failed", message=f"{task}: {type(error).__name__}: {error}")
            continue
        names = [asker.contender.name for asker in askers]
        made = [line for name, found in zip(names[1:], scores[1:], strict=True) for line in compared(name, scores[0], found)]
        emit("benchmark", task=task, lines=made)
        lines += made
    return lines


def benchmark_scores(stage: Stage, asker: Asker, task: str, items: int) -> Scores:
    """The first items of a task, answered with the chat template: what lm-eval's own samples say of each."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks._yaml_loader import load_yaml

    with stage.holding(asker.contender) as model:
        found = simple_evaluate(
            model=HFLM(pretrained=model, tokenizer=asker.tokenizer, backend="causal", batch_size=BATCH),
            tasks=[load_yaml(task, resolve_func=True) if task.endswith((".yaml", ".yml")) else task],
            limit=items,
            apply_chat_template=bool(asker.tokenizer.chat_template),
            fewshot_as_multiturn=bool(asker.tokenizer.chat_template),
            bootstrap_iters=0,
            log_samples=True,
        )
    scores: Scores = {}
    for name, samples in found["samples"].items():
        for sample in samples:
            for metric in sample["metrics"]:
                value, way = sample[metric], sample.get("filter", "none")
                if isinstance(value, bool | int | float) and 0 <= value <= 1:
                    title = metric if way == "none" else f"{metric}, {way}"
                    scores.setdefault((name, title), {})[sample["doc_id"]] = float(value)
    return scores


def compared(name: str, first: Scores, other: Scores) -> list[dict[str, Any]]:
    """A contender's lines: of the items that both have."""
    lines = []
    for (task, metric), values in other.items():
        both = [item for item in values if item in first.get((task, metric), {})]
        if not both:
            continue
        before, after = [first[task, metric][item] for item in both], [values[item] for item in both]
        difference = paired_difference(before, after)
        lines.append(
            {
                "name": name,
                "task": task,
                "metric": metric,
                "rows": len(both),
                "first": round(sum(before) / len(both), 4),
                "score": round(sum(after) / len(both), 4),
                "difference": round(difference.mean, 4),
                "difference_low": round(difference.low, 4),
                "difference_high": round(difference.high, 4),
                "verdict": verdict(difference),
                "sentence": difference_sentence(difference),
            }
        )
    return lines
