"""Low-rank adapters (LoRA): read, written, merged like any expert, and extracted again.

How they are trained is in `apgd.lora.training`, which needs PEFT.
"""

from apgd.lora.adapters import ADAPTER_FILES, Adapter, Factors, is_adapter, write_adapter
from apgd.lora.experts import Adapted
from apgd.lora.extraction import Extracted, extract

__all__ = [
    "ADAPTER_FILES",
    "Adapted",
    "Adapter",
    "Extracted",
    "Factors",
    "extract",
    "is_adapter",
    "write_adapter",
]
