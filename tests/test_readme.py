"""What the README says of methods and experiments is there."""

import re
from pathlib import Path

import pytest

from apgd.methods import methods
from apgd.suites import suites

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def _named() -> set[str]:
    return set(re.findall(r"`([a-z0-9_…]+)`", README))


@pytest.mark.parametrize("name", list(methods))
def test_every_method_is_named(name: str) -> None:
    family = {n.removesuffix("…") for n in _named() if n.endswith("…")}
    assert name in _named() or any(name.startswith(part) for part in family)


def test_what_a_lost_machine_costs_is_what_suites_say() -> None:
    (said,) = re.findall(
        r"every (\d+) steps for CLIP,\s(\d+) for Flan-T5 in full, (\d+) with LoRA", README
    )
    names = ("clip_vit_b32_8", "flan_t5_base_glue", "flan_t5_base_glue_lora")
    assert [int(steps) for steps in said] == [
        suites[name].finetune.checkpoint_every for name in names
    ]


def test_scripts_that_are_named_exist() -> None:
    found = set(re.findall(r"experiments/\w+\.py", README))
    found |= {
        f"experiments/{name}.py" for name in re.findall(r"python -m experiments\.(\w+)", README)
    }
    assert len(found) > 4
    assert [path for path in sorted(found) if not (ROOT / path).exists()] == []
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", README)
    assert [link for link in links if not (ROOT / link).exists()] == []
