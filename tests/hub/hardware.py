"""The machines that Jobs run on, with the prices of August 2026."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Hardware:
    """One flavor. `vram` is the total over its GPUs."""

    name: str
    usd_per_hour: float
    cpus: int
    ram: int
    disk: int
    gpu: str | None = None
    gpus: int = 0
    vram: int = 0

    def info(self) -> dict:
        usd_per_minute = self.usd_per_hour / 60
        return {
            "name": self.name,
            "prettyName": self._pretty_name(),
            "cpu": f"{self.cpus} vCPU",
            "ram": f"{self.ram} GB",
            "ephemeralStorage": f"{self.disk} GB",
            "accelerator": self._accelerator(),
            "unitCostMicroUSD": round(usd_per_minute * 1_000_000),
            "unitCostUSD": round(usd_per_minute, 6),
            "unitLabel": "minute",
        }

    def _pretty_name(self) -> str:
        if self.gpu is None:
            return self.name.replace("-", " ").title().replace("Cpu", "CPU")
        return f"{self.gpus}x Nvidia {self.gpu}" if self.gpus > 1 else f"Nvidia {self.gpu}"

    def _accelerator(self) -> dict | None:
        if self.gpu is None:
            return None
        return {
            "type": "gpu",
            "model": self.gpu,
            "quantity": str(self.gpus),
            "vram": f"{self.vram} GB",
            "manufacturer": "Nvidia",
        }


HARDWARE = {
    hardware.name: hardware
    for hardware in [
        Hardware("cpu-basic", 0.01, 2, 16, 50),
        Hardware("cpu-upgrade", 0.03, 8, 32, 50),
        Hardware("cpu-xl", 1.00, 16, 124, 1000),
        Hardware("cpu-performance", 1.90, 32, 256, 1024),
        Hardware("t4-small", 0.40, 4, 15, 50, "T4", 1, 16),
        Hardware("t4-medium", 0.60, 8, 30, 100, "T4", 1, 16),
        Hardware("l4x1", 0.80, 8, 30, 400, "L4", 1, 24),
        Hardware("l4x4", 3.80, 48, 186, 3200, "L4", 4, 96),
        Hardware("a10g-small", 1.00, 4, 15, 110, "A10G", 1, 24),
        Hardware("a10g-large", 1.50, 12, 46, 200, "A10G", 1, 24),
        Hardware("a10g-largex2", 3.00, 24, 92, 1000, "A10G", 2, 48),
        Hardware("a10g-largex4", 5.00, 48, 184, 2000, "A10G", 4, 96),
        Hardware("l40sx1", 1.80, 8, 62, 380, "L40S", 1, 48),
        Hardware("l40sx4", 8.30, 48, 382, 3200, "L40S", 4, 192),
        Hardware("l40sx8", 23.50, 192, 1534, 6500, "L40S", 8, 384),
        Hardware("a100-large", 2.50, 12, 142, 1000, "A100", 1, 80),
        Hardware("a100x4", 10.00, 48, 568, 4000, "A100", 4, 320),
        Hardware("a100x8", 20.00, 96, 1136, 8000, "A100", 8, 640),
        Hardware("rtx-pro-6000", 2.75, 23, 256, 475, "RTX PRO 6000", 1, 96),
        Hardware("rtx-pro-6000x2", 5.50, 46, 512, 950, "RTX PRO 6000", 2, 192),
        Hardware("rtx-pro-6000x4", 11.00, 92, 1024, 1900, "RTX PRO 6000", 4, 384),
        Hardware("rtx-pro-6000x8", 22.00, 184, 2048, 3800, "RTX PRO 6000", 8, 768),
        Hardware("h200", 5.00, 23, 256, 3000, "H200", 1, 141),
        Hardware("h200x2", 10.00, 46, 512, 6000, "H200", 2, 282),
        Hardware("h200x4", 20.00, 92, 1024, 12000, "H200", 4, 564),
        Hardware("h200x8", 40.00, 184, 2048, 24000, "H200", 8, 1128),
    ]
}
