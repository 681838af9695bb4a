"""The machines a job can rent: their GPUs, their memory and their price per minute."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.hf_api import JobHardwareInfo

from .errors import USAGE, UserError
from .hub import asking

SNAPSHOT = Path(__file__).with_name("flavors.json")


@dataclass(frozen=True)
class GPU:
    """bf16_tflops: dense bf16 (T4: fp16) peak of one GPU, from its maker's data sheet."""

    bf16_tflops: float
    bf16: bool = True


GPUS = {
    "T4": GPU(65, bf16=False), "L4": GPU(121), "A10G": GPU(70), "L40S": GPU(362), "A100": GPU(312),
    "H100": GPU(989), "H200": GPU(989), "RTX PRO 6000": GPU(503),
}  # fmt: skip


@dataclass(frozen=True)
class Flavor:
    """A machine. vram_gb is the total over its GPUs; disk_gb is 0 where it is not known; usd_per_minute is charged from
    its start to the job's end.
    """

    name: str
    usd_per_minute: float
    vram_gb: float = 0.0
    gpus: int = 0
    accelerator: str = ""
    disk_gb: float = 0.0

    @property
    def gpu(self) -> GPU | None:
        """The GPU's figures, where its model is known. The Hub says "A10G", "Nvidia A10G" and the like."""
        known = sorted(GPUS, key=len, reverse=True)
        return next((GPUS[name] for name in known if name.lower() in self.accelerator.lower()), None)

    @property
    def bf16_flops(self) -> float:
        """Peak arithmetic of one GPU per second; 0 where its model is not known."""
        return self.gpu.bf16_tflops * 1e12 if self.gpu else 0.0

    @property
    def bf16(self) -> bool:
        return self.gpu is not None and self.gpu.bf16

    @property
    def usd_per_hour(self) -> float:
        return self.usd_per_minute * 60


LOCAL = Flavor("local", 0.0)


def snapshot() -> tuple[list[Flavor], str]:
    """The flavors as they were on a stated day, and where they come from."""
    data = json.loads(SNAPSHOT.read_text("utf-8"))
    flavors = [
        Flavor(item["name"], item["usd_per_hour"] / 60, item["vram_gb"], item["gpus"], item["accelerator"], item["disk_gb"])
        for item in data["flavors"]
    ]
    return flavors, f"snapshot of {data['date']} ({data['source']})"


def live(api: HfApi) -> tuple[list[Flavor], str]:
    """The flavors and prices that the Hub states now. Raises UserError."""
    with asking("the list of hardware"):
        answer = api.list_jobs_hardware()
    return [from_hub(item) for item in answer], f"{api.endpoint}/api/jobs/hardware"


def from_hub(item: JobHardwareInfo) -> Flavor:
    if item.unit_label != "minute":
        raise UserError(
            "unknown_price_unit",
            f"The Hub prices {item.name} per {item.unit_label}, not per minute.",
            "Update this skill: it would count wrongly.",
        )
    accelerator = item.accelerator
    return Flavor(
        item.name,
        item.unit_cost_usd,
        gigabytes(accelerator.vram) if accelerator else 0.0,
        int(accelerator.quantity) if accelerator else 0,
        accelerator.model if accelerator else "",
        gigabytes(item.ephemeral_storage),
    )


def gigabytes(text: str) -> float:
    match = re.match(r"([\d.]+)\s*(TB|GB|MB)?", text or "")
    return float(match.group(1)) * {"TB": 1000, "MB": 0.001}.get(match.group(2), 1) if match else 0.0


def current(api: HfApi) -> tuple[list[Flavor], str]:
    """Live prices, or the dated snapshot where the Hub does not answer; the second value says which."""
    try:
        return live(api)
    except UserError as error:
        flavors, source = snapshot()
        return flavors, f"{source}, since live prices cannot be had ({error.problem.code})"


def find(flavors: list[Flavor], name: str) -> Flavor:
    for flavor in flavors:
        if flavor.name == name:
            return flavor
    raise UserError(
        "unknown_flavor", f"There is no flavor {name!r}.", "One of: " + ", ".join(flavor.name for flavor in flavors), USAGE
    )
