"""A plan in the words of the person who is asked to approve it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from ..estimate.other_jobs import EVALUATION_BASIS, EXPORT_BASIS
from ..estimate.rewards import rewarded
from ..estimate.serving import VLLM
from ..lookup import client
from ..output import duration, span
from ..training.contenders import id_and_revision
from ..training.epochs import MOST_EPOCHS, why_epochs
from ..training.gguf_sizes import speed_class
from ..training.lora import alpha_of, rank_of
from ..training.precision import is_precision_auto
from ..training.setting import AUTO
from .plan import SMOKE_STEPS, Plan
from .planning import PreparedPlan
from .preflight import Repository

SHORT = 7  # characters of a commit that tell it from others


def summarise(made: PreparedPlan, estimate: dict[str, Any] | None) -> dict[str, str]:
    """What is agreed to, line by line."""
    plan, settings = made.plan, made.settings
    if made.serving:
        about = serving(made)
    elif settings is None:
        about = {"script": plan.script, "arguments": " ".join(plan.arguments) or "none", "result": "what the script saves"}
    elif hasattr(settings, "adapter"):
        about = exporting(made)
    elif hasattr(settings, "models"):
        about = evaluating(made)
    else:
        about = training(made, estimate)
    lines = about | sent(plan) | costs(plan, estimate, is_known=settings is not None)
    return {name: line for name, line in lines.items() if line or name != "estimate"}


def details(plan: Plan) -> dict[str, str]:
    """What fixes a plan to the letter, for those who want to see it."""
    lines = {
        "script": f"{plan.script} (sha256 {plan.script_sha256})",
        "arguments": " ".join(plan.arguments),
        "model at": plan.model_revision,
        "data set at": plan.dataset_revision,
        "secrets": ", ".join(plan.secrets) or "none",
    }
    return {name: value for name, value in lines.items() if value}


def training(made: PreparedPlan, estimate: dict[str, Any] | None) -> dict[str, str]:
    plan, settings = made.plan, made.settings
    bits = "16 bits" if settings.load_in_16bit else "4 bits"
    bits = "16 bits, or in 4 where this machine's GPU has no room" if is_precision_auto(settings) else bits
    lines = {
        "script": "" if Path(plan.script).parent.name == "templates" else f"{plan.script} (your copy, or another)",
        "goes on from": pinned(plan.model, plan.model_revision) + ", an adapter" if made.parent else "",
        "model": pinned(*named(made)),
        "data set": pinned(plan.dataset, plan.dataset_revision),
        "rows": rows(settings, estimate),
        "training": lengths(plan, settings, estimate),
        "reward": reward_text(settings) if rewarded(settings) else "",
        "method": f"LoRA r {rank_of(settings)}, alpha {alpha_of(settings)}, {'from that adapter ' if made.parent else ''}on the model's weights in {bits}",
        "result": "\n".join(described(one, made.plan.public) for one in made.repositories) or f"the folder {plan.output_dir}",
        "model card": card(settings) if settings.output_repo else "",
        "dashboard": plan.dashboard_url or ("none" if plan.where == "hf" else "trackio show --project unsloth-jobs"),
    }
    return {name: value for name, value in lines.items() if value}


def reward_text(settings: Any) -> str:
    """What is rewarded, of how many completions, and what of this machine's files goes along."""
    parts = "as the answers are" if settings.reward == AUTO and not settings.reward_file else settings.reward
    parts = "file" if settings.reward == AUTO and settings.reward_file else parts
    own = f", with {settings.reward_file}, which runs on the job's machine" if settings.reward_file else ""
    form = f", format {settings.answer_format}" if settings.answer_format else ""
    return (
        f"{parts}{own}{form}; {settings.num_generations} completions of each prompt, of up to {settings.max_completion_length:,} "
        f"tokens, temperature {settings.temperature:g}"
    )


def exporting(made: PreparedPlan) -> dict[str, str]:
    settings = made.settings
    lines = {
        "adapter": pinned(settings.adapter, settings.adapter_revision),
        "of model": pinned(made.plan.model, made.plan.model_revision),
        "makes": "a merged model in 16 bits" + (f", GGUF in {', '.join(settings.wanted)}" if settings.wanted else ""),
        "files": "\n".join(file_line(name, of_bytes) for name, of_bytes in made.sizes.files.items()) if made.sizes else "",
        "result": "\n".join(described(one, made.plan.public) for one in made.repositories)
        or f"the folder {made.plan.output_dir}",
    }
    return {name: value for name, value in lines.items() if value}


def file_line(name: str, of_bytes: int) -> str:
    """A result with its size and, of a file for a laptop, the speed to expect."""
    if name == "merged":
        return f"merged, 16 bits: about {size(of_bytes)}"
    return f"{name}: about {size(of_bytes)}; {speed_class(of_bytes)}"


def evaluating(made: PreparedPlan) -> dict[str, str]:
    """The contenders, what they are asked, who grades it, and what leaves the machine for a judge."""
    settings = made.settings
    forms = ["with the system prompt"] * bool(settings.system_prompt)
    forms += [f"with {settings.few_shot} training rows as examples"] * bool(settings.few_shot)
    named = [pinned(*id_and_revision(name)) for name in settings.named]
    train_rows = pinned(settings.dataset, settings.dataset_revision)
    judge = f"{settings.judge_model} at {settings.judge_url}, which is sent the questions and the answers"
    bits = "4 bits" if settings.load_in_4bit else "16 bits"
    shows = "quotes questions and answers, to whoever can read the repository (--no-card-samples: none)"
    lines = {
        "base model": ", also ".join([pinned(settings.base_model, settings.base_model_revision), *forms])
        if settings.base_model
        else "",
        "models": "\n".join(named),
        "test rows": pinned(settings.eval_dataset, settings.eval_dataset_revision) or "those that the training held out",
        "training rows": train_rows or "not known: test rows among them are not found",
        "grader": f"{settings.grader}, {settings.max_graded:,} questions at most, {duration(settings.grading_seconds)} a model",
        "weights": f"in {bits}",
        "judge": judge if settings.judge_url else "",
        "benchmarks": f"{settings.benchmarks}, {settings.benchmark_items:,} items each" if settings.benchmarks else "",
        "result": "\n".join(
            f"{described(replace(one, files=frozenset()), made.plan.public)}: folder `evaluation`, a section of the card"
            for one in made.repositories
        )
        or f"the folder {made.plan.output_dir}",
        "report": (shows if settings.card_samples else "quotes no rows") if settings.output_repo else "",
    }
    return {name: value for name, value in lines.items() if value}


def serving(made: PreparedPlan) -> dict[str, str]:
    """What is served, by which engine, to whom, and when it ends by itself."""
    found, settings = made.serving, made.settings
    assert found
    base = pinned(settings.base_model, settings.base_model_revision) if "base" in found.names else "none: tuned answers alone"
    engine = found.choice.engine + (f" {VLLM}, in {made.plan.image}" if made.plan.image else "")
    memory = f", which holds the {found.choice.needed_gb:.1f} GB that it needs" if found.choice.needed_gb else ""
    who = "this machine alone" if settings.host in ("", "127.0.0.1", "localhost", "::1") else f"whoever reaches {settings.host}"
    if made.plan.where == "hf":
        who = f"those who may read jobs of {made.plan.namespace}, by their token; no question is written to the log"
    return {
        "serves": f"tuned: {pinned(found.model, found.revision)}",
        "beside": f"base: {base}",
        "engine": f"{engine} ({found.choice.why}){memory}",
        "answers": who,
        "ends itself": f"when nobody has asked for {settings.idle:g} minutes",
    }


def named(made: PreparedPlan) -> tuple[str | None, str | None]:
    """The model and its revision: the one under the adapter that training goes on from, where there is one."""
    if made.parent:
        return made.parent.base, made.parent.base_revision
    return made.plan.model, made.plan.model_revision


def pinned(name: str | None, revision: str | None) -> str:
    """A model or a data set with the commit that it is taken at; the content of a local file is fixed without saying so."""
    return (name or "") + (f" at {revision[:SHORT]}" if revision and not revision.startswith("sha256:") else "")


def rows(settings: Any, estimate: dict[str, Any] | None) -> str:
    if estimate and estimate.get("rows"):
        held_out = f"{estimate['held_out']:,} held out" if estimate["held_out"] else "none held out"
        return f"{estimate['rows']:,} to train on, {held_out}"
    all_rows = f"the first {settings.num_samples:,}" if settings.num_samples else "as many as the data set has"
    return all_rows + (f"; {settings.eval_split:.0%} of them held out" if settings.eval_split else "; none held out")


def lengths(plan: Plan, settings: Any, estimate: dict[str, Any] | None) -> str:
    if settings.max_steps:
        passes = f"{settings.max_steps:,} steps"
    else:
        passes = epochs(settings, estimate)
        passes += f", {estimate['steps']:,} steps" if estimate and estimate.get("steps") else ""
    effective = f"{settings.batch_size * settings.gradient_accumulation}"
    if plan.gpus > 1:
        effective += f", {settings.batch_size * settings.gradient_accumulation / plan.gpus:g} on each of {plan.gpus} GPUs"
    return (
        f"{passes}; learning rate {settings.learning_rate:g}; effective batch size {effective}; "
        f"up to {settings.max_seq_length:,} tokens a row"
    )


def epochs(settings: Any, estimate: dict[str, Any] | None) -> str:
    """How often the rows are passed over, as far as it is known before they are counted."""
    if settings.num_epochs != AUTO:
        return f"{settings.num_epochs:g} epoch{'s' * (settings.num_epochs != 1)}"
    if estimate and estimate.get("rows"):
        return why_epochs(settings, estimate["rows"], estimate["held_out"])
    return f"1 to {MOST_EPOCHS} epochs, by the number of rows"


def described(one: Repository, public: bool) -> str:
    """A repository as it is: what a run finds there decides who can read what it pushes."""
    if one.private is None:
        return f"{client.endpoint()}/{one.id} ({'public' if public else 'private'}; the run makes it)"
    who = "private" if one.private else "public: it exists and is public"
    return f"{client.endpoint()}/{one.id} ({who})" + (f"; holds {one.holds}, which is replaced" if one.holds else "")


def card(settings: Any) -> str:
    """Whether the result's README.md quotes rows: whoever can read the repository reads them, too."""
    if not settings.eval_split or not getattr(settings, "card_samples", True):
        return "quotes no rows"
    without = "--no-card-samples" if hasattr(settings, "card_samples") else "--eval-split 0"
    return f"quotes a few held-out rows, to whoever can read the repository ({without}: none)"


def sent(plan: Plan) -> dict[str, str]:
    """What leaves this machine beside the script."""
    if plan.where == "local" or not plan.files:
        return {}
    sizes = (f"{name} ({size(Path(name).stat().st_size)})" for name in plan.files)
    return {"uploaded": f"{', '.join(sizes)}, to the bucket {plan.namespace}/jobs-artifacts"}


def size(of_bytes: int) -> str:
    if of_bytes >= 1e9:
        return f"{of_bytes / 1e9:,.1f} GB"
    return f"{of_bytes / 1e6:,.1f} MB" if of_bytes >= 1e5 else f"{of_bytes / 1e3:,.1f} kB"


def costs(plan: Plan, estimate: dict[str, Any] | None, is_known: bool) -> dict[str, str]:
    if plan.where == "local":
        return {"runs on": "this machine, for nothing", "timeout": ends(plan)}
    return {
        "runs on": plan.flavor + machine(plan),
        "paid by": plan.namespace or "",
        "price": f"${plan.usd_per_minute * 60:.2f} an hour",
        "estimate": "" if plan.port else estimated(estimate) if is_known else "none: what this script does is not known",
        "timeout": ends(plan),
        "costs at most": f"${plan.max_usd:.2f}",
    }


def machine(plan: Plan) -> str:
    """Its GPUs."""
    if not plan.vram_gb:
        return ""
    return f", {plan.vram_gb:.0f} GB" if plan.gpus <= 1 else f", {plan.gpus} GPUs of {plan.vram_gb:.0f} GB"


def ends(plan: Plan) -> str:
    return f"ended after {duration(plan.timeout_s)}" + (f", at most {plan.attempts} times" if plan.attempts > 1 else "")


def estimated(estimate: dict[str, Any] | None) -> str:
    if estimate is None:
        return "none was made from here with these arguments (estimate.py)"
    time = span(estimate["hours_low"], estimate["hours_high"])
    cost = f"{time}, ${estimate['usd_low']:.2f}–{estimate['usd_high']:.2f} for the whole run"
    return f"{cost}, from {estimate['basis']}" if estimate.get("basis") in (EXPORT_BASIS, EVALUATION_BASIS) else cost


def heading(plan: Plan) -> str:
    return f"Plan {plan.plan_id}" + (f", a smoke run of {SMOKE_STEPS} steps" if plan.smoke else "")
