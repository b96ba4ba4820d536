"""What a score depends on is in its key."""

import subprocess
import sys

from tune import stages

# They pass on what others compute, describe it, or refuse bad input.
_BESIDE = {
    "apgd",
    "apgd.cost",
    "apgd.errors",
    "apgd.estimate",
    "apgd.files",
    "apgd.finetune",
    "apgd.flops",
    "apgd.hub",
    "apgd.local_copies",
    "apgd.locks",
    "apgd.machine",
    "apgd.merging",
    "apgd.microbatches",
    "apgd.mixture",
    "apgd.pickled",
    "apgd.published",
    "apgd.registry",
    "apgd.sandbox",
    "apgd.source",
    "apgd.streaming",
    "apgd.summary",
    "apgd.training",
}
_LISTING = """
import sys
import tune.evaluators
from apgd.methods import methods
from apgd.suites import suites
list(methods), list(suites)
print(*sorted(name for name in sys.modules if name.split(".")[0] == "apgd"))
"""


def test_every_module_that_scores_is_in_the_key() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _LISTING], capture_output=True, text=True, check=True
    )
    imported = done.stdout.split()
    assert "apgd.methods.tsv_m" in imported
    in_key = stages._SCORING_CODE

    def covered(module: str) -> bool:
        return any(module == part or module.startswith(f"{part}.") for part in in_key)

    assert [m for m in imported if not covered(m) and m not in _BESIDE] == []
    assert [module for module in _BESIDE if covered(module)] == []
