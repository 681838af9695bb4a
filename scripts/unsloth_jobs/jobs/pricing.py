"""What an export or an evaluation costs on each flavor, cheapest first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from huggingface_hub import HfApi

from .. import template
from ..errors import USAGE, UserError
from ..estimate import other_jobs
from ..estimate.cost import Recommended, Wish, find_wished, timeout_for
from ..estimate.flavors import Flavor
from ..lookup.model_info import Model
from . import evaluating, preflight

GPU_ROOM = 1.3  # of the weights: what answering takes beside them


@dataclass(frozen=True)
class Priced:
    """A flavor and what the job takes on it. reason: why it does not fit, or ""."""

    flavor: Flavor
    estimate: dict[str, Any]
    reason: str = ""

    def as_json(self) -> dict[str, Any]:
        return {"flavor": self.flavor.name, "fits": not self.reason, "reason": self.reason, **self.estimate}


def price_job(
    api: HfApi, module: template.Template, settings: Any, flavors: list[Flavor]
) -> tuple[list[Priced], other_jobs.ExportSizes | None]:
    """Raises UserError where the models cannot be read."""
    if template.evaluates(module):
        settings, models = evaluating.resolve_models(api, settings, is_job=True)
        model = require_shapes(api, settings.base_model or models[0].id, settings.base_model_revision or None)
        size = evaluating.size_of(settings, models)
        bits = 4.5 if settings.load_in_4bit else 16
        needed = model.parameters * bits / 8 / 1e9 * GPU_ROOM + 1
        found = [
            Priced(one, other_jobs.estimate_evaluation(one, model, size), gpu_misfit(one, needed))
            for one in flavors
            if one.gpus == 1
        ]
        return ranked(found), None
    adapter = preflight.find_adapter(api, settings)
    model = require_shapes(api, adapter.base, settings.base_model_revision or adapter.base_revision)
    sizes = other_jobs.export_sizes(model, settings.wanted)
    found = [
        Priced(one, other_jobs.estimate_export(one, sizes, settings.compare_tokens), export_misfit(one, sizes))
        for one in flavors
        if not one.gpus
    ]
    return ranked(found), sizes


def require_shapes(api: HfApi, name: str, revision: str | None) -> Model:
    if model := preflight.find_base(api, name, revision, is_job=True):
        return model
    fix = "Submit it with a --timeout: that bounds what it costs."
    raise UserError("unknown_size", f"The weights of {name} cannot be measured from here.", fix, USAGE)


def gpu_misfit(flavor: Flavor, needed: float) -> str:
    return "" if flavor.vram_gb >= needed else f"{flavor.vram_gb:.0f} GB of memory, {needed:.1f} needed"


def export_misfit(flavor: Flavor, sizes: other_jobs.ExportSizes) -> str:
    try:
        preflight.require_export_fits(flavor, sizes)
    except UserError as error:
        return error.problem.message
    return ""


def ranked(found: list[Priced]) -> list[Priced]:
    return sorted(found, key=lambda one: (bool(one.reason), one.estimate["usd_high"]))


def recommend(found: list[Priced], wish: Wish = Wish()) -> Recommended | None:  # noqa: B008
    """The cheapest that fits, or the one that was wished for, with a timeout that it will not reach."""
    hours = {one.flavor.name: one.estimate["hours_high"] for one in found}
    offers = [as_recommended(one) for one in found if not one.reason]
    return find_wished(offers, hours, wish)


def as_recommended(one: Priced) -> Recommended:
    timeout = timeout_for(one.estimate["hours_high"])
    return Recommended(one.flavor.name, timeout, one.flavor.most_usd(timeout), "")
