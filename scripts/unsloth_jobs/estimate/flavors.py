"""The machines a job can rent: their GPUs, their memory and their price per minute."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.hf_api import JobHardwareInfo

from ..errors import HUB, USAGE, UserError
from ..lookup.client import asking, garbled

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
    """A machine. vram_gb is the total over its GPUs; disk_gb and ram_gb are 0 where they are not known; usd_per_minute is charged from
    its start to the job's end.
    """

    name: str
    usd_per_minute: float
    vram_gb: float = 0.0
    gpus: int = 0
    accelerator: str = ""
    disk_gb: float = 0.0
    ram_gb: float = 0.0

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

    def most_usd(self, timeout_s: float, attempts: int = 1) -> float:
        """What a job costs if each attempt uses up its timeout: begun minutes count whole, and a cent that has begun."""
        return cents_up(math.ceil(timeout_s / 60) * attempts, self.usd_per_minute)

    def affordable_s(self, max_usd: float, attempts: int = 1) -> int:
        """The longest timeout, in whole minutes, whose most_usd is within a sum; 0 where not even one minute is."""
        allowed = math.floor(max_usd * 100 + 1e-6) / 100
        price = max(self.usd_per_minute - PRICE_ROUNDING_USD, PRICE_ROUNDING_USD)
        return math.floor(allowed / (price * attempts) + 1e-6) * 60


PRICE_ROUNDING_USD = 0.5e-6  # the Hub states prices in millionths of a dollar: $1 an hour is $0.016667 a minute


def cents_up(minutes: int, usd_per_minute: float) -> float:
    """A sum in dollars with a begun cent counted whole, unless it comes of the rounding of the price alone."""
    if usd_per_minute <= 0:
        return 0.0
    price = max(usd_per_minute - PRICE_ROUNDING_USD, PRICE_ROUNDING_USD)
    return math.ceil(minutes * price * 100 - 1e-6) / 100


LOCAL = Flavor("local", 0.0)


def snapshot_flavors() -> tuple[list[Flavor], str]:
    """The flavors as they were on a stated day, and where they come from."""
    data = json.loads(SNAPSHOT.read_text("utf-8"))
    flavors = [
        Flavor(item["name"], item["usd_per_hour"] / 60, item["vram_gb"], item["gpus"], item["accelerator"], item["disk_gb"])
        for item in data["flavors"]
    ]
    return flavors, f"snapshot of {data['date']} ({data['source']})"


def fetch_flavors(api: HfApi) -> tuple[list[Flavor], str]:
    """The flavors and prices that the Hub states now, without those whose price makes no sense. Raises UserError."""
    return [as_flavor(item) for item in fetch_hardware(api) if not price_fault(item)], f"{api.endpoint}/api/jobs/hardware"


def fetch_flavor(api: HfApi, name: str) -> tuple[Flavor, list[Flavor]]:
    """The flavor of this name at its price of now, and all. Raises UserError, also where that price makes no sense."""
    items = fetch_hardware(api)
    if fault := next((price_fault(item) for item in items if item.name == name), ""):
        raise UserError(
            "unknown_price", f"What {name} costs is not known: {fault}.", "Pass another --flavor, or update this skill.", HUB
        )
    flavors = [as_flavor(item) for item in items if not price_fault(item)]
    return find_flavor(flavors, name), flavors


def fetch_hardware(api: HfApi) -> list[JobHardwareInfo]:
    about = "the list of hardware"
    try:
        with asking(about):
            return api.list_jobs_hardware()
    except (TypeError, AttributeError, ValueError) as error:  # an answer of another shape
        raise garbled(about, error) from error


def price_fault(item: JobHardwareInfo) -> str:
    """Why an item's price cannot be counted with, or ""."""
    if item.unit_label != "minute":
        return f"the Hub prices it per {item.unit_label}, not per minute"
    price: object = item.unit_cost_usd
    if not isinstance(price, int | float) or isinstance(price, bool) or not math.isfinite(price) or price <= 0:
        return f"its price on the Hub is {price!r} dollars a minute"
    return ""


def as_flavor(item: JobHardwareInfo) -> Flavor:
    accelerator = item.accelerator
    return Flavor(
        item.name,
        float(item.unit_cost_usd),
        gigabytes(accelerator.vram) if accelerator else 0.0,
        int(accelerator.quantity) if accelerator else 0,
        accelerator.model if accelerator else "",
        gigabytes(item.ephemeral_storage),
        gigabytes(item.ram),
    )


def gigabytes(text: str) -> float:
    match = re.match(r"([\d.]+)\s*(TB|GB|MB)?", text or "")
    return float(match.group(1)) * {"TB": 1000, "MB": 0.001}.get(match.group(2), 1) if match else 0.0


def current_flavors(api: HfApi) -> tuple[list[Flavor], str]:
    """Live prices, or the dated snapshot where the Hub does not answer; the second value says which."""
    try:
        return fetch_flavors(api)
    except UserError as error:
        flavors, source = snapshot_flavors()
        return flavors, f"{source}, since live prices are unavailable ({error.problem.code})"


def find_flavor(flavors: list[Flavor], name: str) -> Flavor:
    for flavor in flavors:
        if flavor.name == name:
            return flavor
    raise UserError(
        "unknown_flavor", f"There is no flavor {name!r}.", "One of: " + ", ".join(flavor.name for flavor in flavors), USAGE
    )
