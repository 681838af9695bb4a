"""An adapter that training goes on from: --base-model names it, and what it is decides rank, alpha and targets."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from .adapter import CONFIG, WEIGHTS
from .flags import as_flag
from .lora import Shapes, adaptable, alpha_of, leaf, rank_of
from .report import Stop
from .run import run_name
from .secrets import quotation
from .setting import AUTO
from .settings import TrainingSettings

BASE_ID = re.compile(r"[\w.-]{1,96}(/[\w.-]{1,96})?", re.ASCII)  # the oldest models have no owner
PART = re.compile(r"base_model\.model\.(.+)\.lora_([AB])\.weight")  # of an adapter, as PEFT names its tensors
# Values in adapter_config.json that make an adapter more than two small matrices beside each of its linear layers.
EXTRAS = {
    "use_dora": "DoRA", "modules_to_save": "layers that were trained whole", "trainable_token_indices": "trained tokens",
    "target_parameters": "LoRA on stacked experts", "rank_pattern": "ranks that differ from layer to layer",
    "alpha_pattern": "alphas that differ from layer to layer", "lora_bias": "biases", "use_qalora": "QALoRA",
    "layer_replication": "repeated layers", "alora_invocation_tokens": "an activated LoRA", "use_bdlora": "BD-LoRA",
}  # fmt: skip
QUOTED = 100  # characters of a name in an adapter's files
PLAIN_STARTS = (True, False, None, "gaussian", "orthogonal", "eva")  # initialisations that leave the base's weights alone
Adapted = TypeVar("Adapted", bound=TrainingSettings)


@dataclass(frozen=True)
class Parent:
    """A LoRA adapter that training goes on from.

    revision and base_revision: commits or branches, None for a folder and where the adapter does not say. rank, alpha, and
    scaled_by_root (rsLoRA) as PEFT has them; modules: shape (out, in) of each layer that it adapts, by the name in its file.
    folder: where its files are, on the machine that trains.
    """

    name: str
    revision: str | None
    base: str
    base_revision: str | None
    rank: int
    alpha: int
    scaled_by_root: bool
    modules: dict[str, tuple[int, int]]
    has_tokenizer: bool
    folder: Path | None = None

    @property
    def targets(self) -> list[str]:
        return sorted({leaf(name) for name in self.modules})

    @property
    def merging(self) -> str:
        """How it becomes a whole model, which a new adapter can be trained on."""
        merged = "the folder that it makes" if Path(self.name).exists() else f"{self.name}-merged"
        export = f"templates/export.py --adapter {shlex.quote(self.name)} --quantizations none"
        return f"merge it first (uv run {export}), then pass --base-model {merged}."


def is_adapter(files: set[str]) -> bool:
    """Whether a repository or folder with these files is an adapter: then it is one, also beside a merged model."""
    whole = {"model.safetensors", "model.safetensors.index.json"} & files and "config.json" in files
    return CONFIG in files and (WEIGHTS in files or not whole)


def read_parent(
    name: str,
    revision: str | None,
    config: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    has_tokenizer: bool,
    folder: Path | None = None,
) -> Parent:
    """An adapter from its adapter_config.json and the shapes of its tensors. Raises Stop where training cannot go on from it."""
    base = config.get("base_model_name_or_path")
    if not isinstance(base, str) or not (BASE_ID.fullmatch(base) or (revision is None and Path(base).is_dir())):
        raise Stop(
            "bad_adapter",
            f"{name} is an adapter, and does not name the model that it was trained on by an id on the Hub.",
            f"Write that id into its {CONFIG}, as base_model_name_or_path.",
        )
    kind = str(config.get("peft_type"))
    if kind != "LORA":
        raise Stop(
            "unsupported_adapter",
            f"{name} is an adapter of another kind ({quotation(kind, QUOTED)}), and only a LoRA adapter is gone on from here.",
            f"To train a new LoRA on its base, without what this one learned: --base-model {base}",
        )
    rank, alpha = whole_number(config.get("r")), whole_number(config.get("lora_alpha"))
    if rank is None or alpha is None:
        raise Stop("bad_adapter", f"{name}: rank and alpha in its {CONFIG} are no whole numbers.", "Name another adapter.")
    stated = config.get("revision")
    base_revision = stated if isinstance(stated, str) and re.fullmatch(r"[\w./-]+", stated) else None
    modules, others = modules_of(shapes, rank)
    found = Parent(
        name, revision, base, base_revision, rank, alpha, bool(config.get("use_rslora")), modules, has_tokenizer, folder
    )
    extras = [title for key, title in EXTRAS.items() if config.get(key)]
    extras += ["biases"] if config.get("bias") not in (None, "none") else []
    extras += ["an initialisation that changes the base"] if config.get("init_lora_weights") not in PLAIN_STARTS else []
    if extras or others or not modules:
        tensors = f"such as {quotation(others[0], QUOTED)}" if others else "and no other"
        what = ", ".join(extras) or f"tensors that are no LoRA matrices of rank {rank}, {tensors}"
        message = f"{name} is no plain LoRA: it has {what}. Such an adapter is not gone on from here."
        raise Stop("unsupported_adapter", message, f"To train on what it learned, {found.merging}")
    return found


def whole_number(value: Any) -> int | None:
    return int(value) if isinstance(value, int | float) and float(value).is_integer() and value >= 1 else None


def modules_of(shapes: Mapping[str, tuple[int, ...]], rank: int) -> tuple[dict[str, tuple[int, int]], list[str]]:
    """Shape (out, in) of each layer that has both its LoRA matrices among these tensors, and the tensors that are no such pair."""
    parts: dict[str, dict[str, tuple[int, ...]]] = {}
    others = []
    for name, shape in shapes.items():
        if match := PART.fullmatch(name):
            parts.setdefault(match[1], {})[match[2]] = shape
        else:
            others.append(name)
    modules = {}
    for name, pair in parts.items():
        down, up = pair.get("A", ()), pair.get("B", ())
        if len(down) == len(up) == 2 and down[0] == up[1] == rank:
            modules[name] = (up[0], down[1])
        else:
            others.append(name)
    return modules, others


def placed(parent: Parent, linears: Shapes) -> dict[str, str]:
    """The name in its file of each layer that an adapter is for, by the layer's name in the model. Raises Stop on a misfit.

    What stands before a layer's number may differ between the two: transformers has renamed that of some models.
    """
    there = {within_stack(name): name for name in adaptable(linears)}
    names = {there.get(within_stack(name), ""): name for name in parent.modules}
    wrong = [name for name, shape in parent.modules.items() if linears.get(there.get(within_stack(name), "")) != shape]
    if wrong or len(names) < len(parent.modules):
        wrong = wrong or list(parent.modules)
        raise Stop(
            "bad_adapter",
            f"{parent.name} does not fit {parent.base}: {len(wrong)} of its {len(parent.modules)} layers are not among those "
            f"that get an adapter here, in the same shape, such as {quotation(wrong[0], QUOTED)}.",
            f"If it is of another model, correct base_model_name_or_path in its {CONFIG}. If not, {parent.merging}",
        )
    return names


def within_stack(name: str) -> str:
    """A module's name from its layer's number on."""
    found = re.search(r"\d+\..*", name)
    return found[0] if found else name


def with_lora_values(settings: Adapted, parent: Parent | None) -> Adapted:
    """The settings with rank, alpha and targets: as given, the adapter's, or the defaults. Raises Stop on two that differ."""
    if parent is None:
        return replace(settings, lora_r=rank_of(settings), lora_alpha=alpha_of(settings))
    values = {"lora_r": parent.rank, "lora_alpha": parent.alpha}
    wrong = [name for name, value in values.items() if getattr(settings, name) not in (AUTO, value)]
    asked = {name.strip() for name in settings.target_modules.split(",")}
    wrong += ["target_modules"] if asked not in ({AUTO}, set(parent.targets)) else []
    if wrong:
        given = " ".join(as_flag(name, getattr(settings, name)) for name in wrong)
        theirs = f"rank {parent.rank}, alpha {parent.alpha}, on {', '.join(parent.targets)}"
        raise Stop(
            "adapter_conflict",
            f"Training goes on from the adapter {parent.name} ({theirs}), which {given} contradicts.",
            f"Leave that out, to take the adapter's. For a new adapter on what it learned, {parent.merging}",
        )
    return replace(settings, lora_r=parent.rank, lora_alpha=parent.alpha, target_modules=",".join(parent.targets))


def settings_on_base(settings: Adapted, parent: Parent) -> Adapted:
    """The settings of a run that goes on from an adapter, with the model under it: what is loaded, merged and named as base."""
    return replace(
        settings, run_name=run_name(settings), base_model=parent.base, base_model_revision=parent.base_revision or ""
    )


def require_apart(settings: TrainingSettings, parent: Parent) -> None:
    """Raises Stop where the result would replace the adapter that it goes on from, unless that is pinned by its commit."""
    if settings.output_repo == parent.name and not settings.base_model_revision:
        pinned = f" --base-model-revision {parent.revision}" if parent.revision else ""
        raise Stop(
            "parent_replaced",
            f"The result would replace {parent.name}, the adapter that it goes on from.",
            f"Name another --output-repo. Or, to replace it and keep it in the history: --base-model {parent.name}{pinned}",
        )
    if parent.folder and Path(settings.save_local).resolve() == parent.folder.resolve():
        message = f"The result would replace the files in {parent.name}, the adapter that it goes on from."
        raise Stop("parent_replaced", message, "Name another --save-local.")
