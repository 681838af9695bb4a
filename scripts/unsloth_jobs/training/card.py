"""The model card: what training changed, how the adapter was made, how it is used."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .after_training import use_part
from .evaluation import Evaluation
from .evidence import ANSWERS_FILE, last_loss
from .files import sha256_of
from .grades_table import class_lines, difference_sentences, grades_table
from .lora import alpha_of, rank_of
from .machine import peak_gb, training_libraries, versions
from .markdown import cell, markdown_table, quoted
from .report import LAST_EVENTS
from .run import cost_usd, run_facts
from .secrets import redacted
from .settings import TrainingSettings

LIBRARY = {"unsloth": "Unsloth", "trl": "TRL and PEFT"}


def card_figures(settings: TrainingSettings, trainer: Any, seconds: float) -> dict[str, Any]:
    """How the adapter was made, by title, from the events; None where it does not apply. seconds: of the run."""
    facts, data, masks, reach = run_facts(), LAST_EVENTS["data"], LAST_EVENTS["masks"], LAST_EVENTS["coverage"]
    return {
        "Went on from": parent_line(),
        "Base model revision": settings.base_model_revision or None,
        "Data set revision": data["revision"],
        "Rows": f"{masks['rows_kept']:,} trained on, {data['eval_rows']:,} held out, {masks['rows_without_answer']:,} left out",
        "Supervised share": f"{masks['supervised_fraction']:.1%} of the tokens; the rest is read, not learned",
        "LoRA": f"rank {rank_of(settings)}, alpha {alpha_of(settings)}, on a base in {16 if settings.load_in_16bit else 4} bits",
        "LoRA coverage": f"{reach['coverage']:.1%} of all linear layers: {reach['modules']} modules, "
        f"{reach['trainable']:,} trainable parameters",
        "Batches": batch_line(settings),
        "Learning rate, seed": f"{settings.learning_rate:g}, {settings.seed}",
        "Chosen by the script": "; ".join(LAST_EVENTS["settings"]["why"].values()) or None,
        "Steps": steps_line(trainer.state),
        "Training loss at the end": f"{last_loss(trainer):.4f}",
        "Tokens": tokens_line(trainer.timer.figures()),
        "Duration": f"{seconds / 60:.1f} min",
        "Peak GPU memory": None if peak_gb() is None else f"{peak_gb():.1f} GB",
        "Cost": cost_line(facts),
        "Hardware": hardware_line(LAST_EVENTS["plan"]["hardware"], facts),
        "Versions": ", ".join(f"{name} {number}" for name, number in versions(training_libraries(settings.backend)).items()),
        "Plan": facts.get("plan_id"),
        "Script": f"sha256 {sha256_of(__file__)}",
    }


def parent_line() -> str | None:
    """The adapter that training went on from, with its commit; of a path on the training machine, the last part."""
    if not (parent := LAST_EVENTS.get("parent")):
        return None
    name = parent["adapter"] if parent["revision"] else Path(parent["adapter"]).name
    return f"the adapter `{name}`" + (f" at {parent['revision']}" if parent["revision"] else "")


def batch_line(settings: TrainingSettings) -> str:
    made = LAST_EVENTS["batching"]
    how = f"sequences of {made['length']:,} tokens, each packed with rows" if made["packed"] else "single rows"
    return f"{made['rows_per_step']} rows a step (effective batch size), in {made['accumulation']} × {made['micro']} {how}"


def steps_line(state: Any) -> str:
    if not (stopped := LAST_EVENTS.get("early_stopped")):
        return f"{state.global_step:,}"
    saved = "" if stopped["usd_saved"] is None else f", about ${stopped['usd_saved']:.2f}"
    return (
        f"{stopped['step']:,} of {stopped['of']:,}: stopped early, as {stopped.get('why', 'the held-out loss no longer fell')}. "
        f"The adapter is that of step {stopped['kept_step']:,}. Saved: {stopped['steps_saved']:,} steps{saved}"
    )


def tokens_line(figures: Mapping[str, Any]) -> str:
    speed = f"; about {figures['timed_tokens'] / figures['train_s']:,.0f} a second" if figures["train_s"] else ""
    return f"{figures['tokens']:,}, padding not counted{speed}"


def cost_line(facts: Mapping[str, Any]) -> str | None:
    cost, estimate = cost_usd(), facts.get("estimate")
    if cost is None:
        return None
    foreseen = "; estimated ${usd_low:.2f} to ${usd_high:.2f} for the whole run".format(**estimate) if estimate else ""
    return f"about ${cost:.2f}{foreseen}"


def hardware_line(found: Mapping[str, Any], facts: Mapping[str, Any]) -> str:
    several = f"{found['gpus']} × " if found.get("gpus", 1) > 1 else ""
    parts = [several + found["device"], f"{found['vram_gb']} GB" if "vram_gb" in found else f"{found['cpus']} cores"]
    titles = {"CUDA": found.get("cuda"), "driver": found.get("driver"), "flavor": facts.get("flavor")}
    return ", ".join(parts + [f"{title} {value}" for title, value in titles.items() if value])


def model_card(
    settings: TrainingSettings,
    losses: Mapping[str, float | None],
    figures: Mapping[str, Any],
    answers: list[dict[str, str]],
    picture: str | None,
    method: str,
    evaluation: Evaluation | None = None,
    measured: str = "",
) -> str:
    """README.md of the adapter: what training changed, how it was made, how it is used. picture: a file beside it; measured: a
    table in place of that of the losses.
    """
    from huggingface_hub import ModelCardData

    base, data, where = Path(settings.base_model), Path(settings.dataset), settings.output_repo or settings.save_local
    header = ModelCardData(
        base_model=None if base.exists() else settings.base_model,
        library_name="peft",
        pipeline_tag="text-generation",
        datasets=None if data.exists() else [settings.dataset],
        tags=[*(["unsloth"] if settings.backend == "unsloth" else []), "trl", method, "lora", "hf_jobs"],
    )
    went_on = parent_line()
    parts = [
        f"---\n{header.to_yaml()}\n---",
        f"# {Path(where).name}",
        # Of a path on the training machine, a reader of the card needs the last part only.
        f"A LoRA adapter for `{base.name if base.exists() else base}`, trained with {LIBRARY[settings.backend]} on "
        f"`{data.name if data.exists() else data}`.",
        "## What training changed",
        f"*Base* is what this training began with: {went_on}. It is not the bare model." if went_on else "",
        measured or card_losses(losses),
        card_grades(evaluation, settings.card_samples) if evaluation else "",
        f"![Training and held-out loss over the steps]({picture})" if picture else "",
        card_answers(answers) if settings.card_samples else "",
        "## How it was made",
        markdown_table({"": "", **{name: value for name, value in figures.items() if value is not None}}),
        "" if base.exists() else CARD_USAGE.format(where=where) + (CARD_CHAT if answers else "") + "```",
        use_part(where, LAST_EVENTS["coverage"]["parameters"]) if settings.output_repo and not base.exists() else "",
    ]
    return redacted("\n\n".join(filter(None, parts))) + "\n"


def card_losses(losses: Mapping[str, float | None]) -> str:
    if losses["base_loss"] is None or losses["tuned_loss"] is None:
        failed = LAST_EVENTS.get("warning", {}).get("code") == "evaluation_failed"
        return "Not measured: the evaluation failed." if failed else "Not measured: no rows were held out."
    changes = {
        "Held-out rows": "base → tuned",
        "Loss (nats per token)": "{base_loss:.4f} → {tuned_loss:.4f}",
        "Perplexity": "{base_perplexity:,.2f} → {tuned_perplexity:,.2f}",
    }
    return markdown_table({name: change.format(**losses) for name, change in changes.items()})


GRADED = {"base": "Base", "tuned": "This adapter"}


def card_grades(evaluation: Evaluation, quoted_beside: bool) -> str:
    """The table of grades, the interval of each difference, and what else decides how much they tell."""
    rows = f"{len(evaluation.questions):,} questions that no training row asks, graded by `{evaluation.grader}`."
    beside = f"All answers: [{ANSWERS_FILE}]({ANSWERS_FILE})." if quoted_beside else ""
    said = difference_sentences(evaluation, GRADED)
    classes = class_lines(evaluation, "tuned") if quoted_beside else ""  # labels are texts of the rows
    parts = [grades_table(evaluation, GRADED), " ".join(filter(None, [rows, *said, beside])), classes]
    return "\n\n".join(filter(None, parts))


def card_answers(answers: list[dict[str, str]]) -> str:
    if not answers:
        return ""
    parts = ["## Held-out questions\n\nAnswered greedily, and cut where an answer did not end."]
    for answer in answers:
        row = " | ".join(cell(answer[name]) for name in ("base", "tuned", "reference"))
        parts.append(quoted(answer["prompt"]) + f"\n\n| Base | Tuned | Reference |\n|---|---|---|\n| {row} |")
    return "\n\n".join(parts)


CARD_USAGE = """## Use

```python
from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer

model = AutoPeftModelForCausalLM.from_pretrained("{where}")
tokenizer = AutoTokenizer.from_pretrained("{where}")
"""
CARD_CHAT = """
messages = [{"role": "user", "content": "Your question"}]
prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
output = model.generate(**prompt.to(model.device), max_new_tokens=200)
print(tokenizer.decode(output[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True))
"""
