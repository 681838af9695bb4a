"""What will be run, where, and at most for how much: fixed before anyone is asked to approve it."""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import json
import math
import re
import shlex
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi

from . import hardware, hub, ledger, template
from .errors import APPROVAL, USAGE, Problem, UserError

SCRIPTS = Path(__file__).resolve().parents[1]  # the commands that fixes name
DEFAULT_FLAVOR, DEFAULT_TIMEOUT_S = "l4x1", 4 * 3600
SMOKE_STEPS, SMOKE_TIMEOUT_S, SMOKE_MAX_USD = 24, 20 * 60, 1.0
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


@dataclass(frozen=True)
class Plan:
    """One run, whole. usd_per_minute: the price when the plan was made; max_usd: what all attempts cost if each uses up
    the timeout; run_key, pace_key: of the run that the user asked for, also where this is a smoke run of it.
    """

    where: str
    script: str
    script_sha256: str
    arguments: tuple[str, ...]
    flavor: str
    timeout_s: int
    usd_per_minute: float
    max_usd: float
    namespace: str | None
    secrets: tuple[str, ...]
    model: str | None
    model_revision: str | None
    dataset: str | None
    dataset_revision: str | None
    output_repo: str | None
    output_dir: str | None
    trackio_space: str | None
    vram_gb: float = 0.0  # of one GPU
    attempts: int = 1
    smoke: bool = False
    run_key: str | None = None
    pace_key: str | None = None

    @property
    def plan_id(self) -> str:
        """A hash over all of the above: whatever changes, the approval no longer fits."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]

    def flags(self, leave_out: set[str]) -> list[str]:
        """The script's arguments without the flags of these names and their values."""
        kept, leaving = [], False
        for word in self.arguments:
            if word.startswith("--"):
                leaving = word[2:].partition("=")[0] in leave_out
            kept += [] if leaving else [word]
        return kept

    def resuming(self) -> str:
        """The command that goes on with this run from its last checkpoint."""
        return self.again(*([] if "--resume" in self.arguments else ["--resume"]))

    def again(self, *more: str) -> str:
        """The command that plans this run anew, with more of its script's arguments at its end."""
        place = ["--where", "local"] if self.where == "local" else ["--flavor", self.flavor]
        place += ["--namespace", self.namespace] if self.namespace else []
        words = ["uv", "run", str(SCRIPTS / "submit.py"), self.script, *place, "--timeout", f"{self.timeout_s}s", "--"]
        return shlex.join([*words, *self.arguments, *more])

    @property
    def dashboard_url(self) -> str | None:
        return f"{hub.endpoint()}/spaces/{self.trackio_space}" if self.trackio_space else None

    @property
    def model_url(self) -> str | None:
        return f"{hub.endpoint()}/{self.output_repo}" if self.output_repo else self.output_dir

    @property
    def command(self) -> str:
        """The command that shows this plan again."""
        return self.again()

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Plan:
        known = {item.name: data[item.name] for item in dataclasses.fields(cls) if item.name in data}
        return cls(**{**known, "arguments": tuple(data["arguments"]), "secrets": tuple(data["secrets"])})


def seconds(text: str) -> int:
    """A duration such as 90s, 30m, 4h, 1d or 2h30m. Raises UserError, also without a unit: 10 is seconds to `hf jobs`."""
    parts = re.findall(r"(\d+(?:\.\d+)?)([smhd])", text)
    value = sum(float(number) * UNITS[unit] for number, unit in parts)
    if "".join(number + unit for number, unit in parts) != text.strip() or not 1 <= value < math.inf:
        raise UserError("bad_timeout", f"{text!r} is no duration with a unit.", "Write it as 30m, 4h, 2h30m or 1d.", USAGE)
    return round(value)


def takes_settings(script: Path) -> bool:
    """Whether a script has a parse_args of its own, as the templates do; any other is run as it is."""
    try:
        tree = ast.parse(script.read_text("utf-8"))
    except (OSError, SyntaxError, UnicodeDecodeError) as error:
        raise UserError("no_script", f"{script} cannot be read: {error}", "Pass the path of a Python script.", USAGE) from error
    return any(isinstance(node, ast.FunctionDef) and node.name == "parse_args" for node in tree.body)


@dataclass(frozen=True)
class Wish:
    """What submit.py was asked for. timeout: text such as 4h, or None for the default."""

    script: Path
    arguments: list[str]
    where: str
    flavor: str
    timeout: str | None
    namespace: str | None
    attempts: int = 1
    smoke: bool = False


def make(api: HfApi, wish: Wish) -> Plan:
    """Look up all that a plan fixes: identity, price, revisions, repository. Raises UserError."""
    script, where, arguments = wish.script, wish.where, wish.arguments
    template.require_harmless(arguments)
    module = template.load(script) if takes_settings(script) else None
    template.require_no_token(script)
    if wish.smoke and module is None:
        raise UserError(
            "no_smoke", "A smoke run needs a script that takes --max-steps.", "Use templates/sft.py, or a copy.", USAGE
        )
    settings = template.settings(module, arguments) if module else None
    if where == "local":
        machine, owner = hardware.LOCAL, None
    else:
        owner = hub.writable_namespace(hub.whoami(api), wish.namespace)
        machine = hardware.find(hardware.live(api)[0], wish.flavor)
    key = None
    if module:
        arguments = arguments + pinned(api, module, settings, arguments, owner)
        settings = template.settings(module, arguments)
        key = ledger.key(settings, script)
    if wish.smoke and module:
        arguments = arguments + smoke_flags(settings)
        settings = template.settings(module, arguments)
    limit = seconds(wish.timeout) if wish.timeout else default_timeout(machine, wish.smoke)
    value = lambda name: getattr(settings, name, None) or None  # noqa: E731
    dataset, revision = value("dataset"), value("dataset_revision")
    if dataset and Path(dataset).is_file():
        revision = "sha256:" + hashlib.sha256(Path(dataset).read_bytes()).hexdigest()
    save_local = value("save_local")
    return Plan(
        where=where,
        script=str(script.resolve()),
        script_sha256=hashlib.sha256(script.read_bytes()).hexdigest(),
        arguments=tuple(arguments),
        flavor=machine.name,
        timeout_s=limit,
        vram_gb=machine.vram_gb / max(machine.gpus, 1),
        attempts=wish.attempts,
        usd_per_minute=machine.usd_per_minute,
        max_usd=round(limit / 60 * machine.usd_per_minute * wish.attempts, 2),
        namespace=owner,
        secrets=("HF_TOKEN",) if where == "hf" else (),
        model=value("base_model"),
        model_revision=value("base_model_revision"),
        dataset=dataset,
        dataset_revision=revision,
        output_repo=value("output_repo"),
        trackio_space=value("trackio_space"),
        output_dir=str(Path(save_local).resolve()) if save_local and where == "local" else None,
        smoke=wish.smoke,
        run_key=key.run if key else None,
        pace_key=key.pace if key else None,
    )


def smoke_flags(settings: Any) -> list[str]:
    """What makes a run of the template a short trial of itself, with a result of its own."""
    repository = [f"--output-repo={settings.output_repo}-smoke"] if settings.output_repo else []
    return [f"--max-steps={SMOKE_STEPS}", *repository]


def default_timeout(machine: hardware.Flavor, smoke: bool) -> int:
    """Seconds. A smoke run ends, at the latest, when it has cost SMOKE_MAX_USD."""
    if not smoke:
        return DEFAULT_TIMEOUT_S
    affordable = SMOKE_MAX_USD / machine.usd_per_minute * 60 if machine.usd_per_minute else SMOKE_TIMEOUT_S
    return int(min(SMOKE_TIMEOUT_S, affordable))


def pinned(api: HfApi, module: Any, settings: Any, arguments: list[str], owner: str | None) -> list[str]:
    """The flags that the user left open, so that the job does what was checked and keeps what it makes."""
    flags: dict[str, str | None] = {}
    if owner and hub.is_local(settings.base_model):
        raise UserError(
            "local_model", f"A job cannot see the folder {settings.base_model}.", "Upload it first: hf upload YOU/NAME FOLDER"
        )
    if not settings.base_model_revision and not hub.is_local(settings.base_model):
        with hub.asking(f"model {settings.base_model}"):
            flags["--base-model-revision"] = api.model_info(settings.base_model).sha
    if not settings.dataset_revision:
        flags["--dataset-revision"] = hub.dataset_revision(api, settings.dataset)
    if owner and not settings.output_repo:
        flags["--output-repo"] = f"{owner}/{module.run_name(settings)}"
    if owner and not given("--trackio-space", arguments):
        flags["--trackio-space"] = f"{owner}/trackio"
    return [f"{flag}={value}" for flag, value in flags.items() if value]


def given(flag: str, arguments: list[str]) -> bool:
    return any(argument == flag or argument.startswith(flag + "=") for argument in arguments)


def require_approval(plan: Plan, approve: str | None, earlier: Plan | None) -> None:
    """Raises UserError (approval) unless `approve` is this plan's id, and says what has changed since it was shown."""
    if approve == plan.plan_id:
        return
    if earlier is None:
        raise UserError(
            "unknown_plan",
            f"No plan {approve} was shown on this machine.",
            "Run the command without --approve and approve the id it prints.",
            APPROVAL,
        )
    changed = [
        f"{item.name}: {getattr(earlier, item.name)} → {getattr(plan, item.name)}"
        for item in dataclasses.fields(Plan)
        if getattr(earlier, item.name) != getattr(plan, item.name)
    ]
    raise UserError(
        "plan_changed",
        "What was approved is no longer what would run: " + "; ".join(changed),
        f"Look at the new plan, then: --approve {plan.plan_id}",
        APPROVAL,
    )


def require_budget(plan: Plan, max_usd: float | None) -> None:
    if max_usd is not None and plan.max_usd > max_usd:
        raise UserError(
            "over_budget",
            f"On {plan.flavor} the run can cost up to ${plan.max_usd:.2f}, more than the ${max_usd:.2f} allowed.",
            f"Pass --timeout {int(max_usd / plan.usd_per_minute / plan.attempts)}m at most, a cheaper --flavor, or a higher --max-usd.",
            APPROVAL,
        )


def time_problems(plan: Plan, estimate: dict[str, Any] | None) -> list[Problem]:
    """What the estimate says of the timeout. Raises UserError where not even the best case ends before it."""
    if estimate is None or plan.smoke:
        return []
    low, high, asked = (f"{hours:.1f} h" for hours in (estimate["hours_low"], estimate["hours_high"], plan.timeout_s / 3600))
    enough = math.ceil(estimate["hours_high"] * 60 / 10) * 10
    fix = f"Pass --timeout {enough}m; a job that reaches its timeout is ended."
    if plan.timeout_s < estimate["hours_low"] * 3600:
        raise UserError(
            "timeout_short", f"The run takes {low} to {high} on {plan.flavor}, and would be ended after {asked}.", fix, USAGE
        )
    if plan.timeout_s < estimate["hours_high"] * 3600:
        return [
            Problem(
                "timeout_tight", "warning", f"The run may take up to {high} on {plan.flavor}, and is ended after {asked}.", fix
            )
        ]
    return []
