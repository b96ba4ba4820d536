"""The published rows are whole, consistent, and kept apart by family."""

import pytest

from apgd.errors import InputError
from apgd.published import Confidence, Family, published_rows, task_title

CORRUPTIONS = (
    *("motion_blur", "impulse_noise", "gaussian_noise", "pixelate"),
    *("spatter", "contrast", "jpeg_compression"),
)


def row(protocol: str, family: Family, method: str):
    return next(row for row in published_rows(protocol, family) if row.method == method)


def test_known_rows():
    assert row("in-domain", Family.OPENCLIP, "task_arithmetic").average == 69.1
    assert row("in-domain", Family.TRANSFORMERS, "task_arithmetic").average == 68.0
    assert row("in-domain", Family.OPENCLIP, "doge_am").average == 85.9
    assert row("unseen", Family.NOT_STATED, "doge").per_task["mnist"] == 81.3
    assert row("pixelate", Family.TRANSFORMERS, "ties").per_task["stanford-cars"] == 3.3


@pytest.mark.parametrize("protocol", ["in-domain", "unseen", "clean", *CORRUPTIONS])
def test_averages_agree_with_the_values_they_are_of(protocol):
    for entry in published_rows(protocol):
        if entry.per_task is None:
            assert entry.confidence is Confidence.DERIVED
            assert entry.note
            continue
        tasks = entry.unseen_tasks or tuple(entry.per_task)
        mean = sum(entry.per_task[task] for task in tasks) / len(tasks)
        printed = entry.unseen_average if entry.unseen_tasks else entry.average
        assert printed == pytest.approx(mean, abs=0.11), entry.title


def test_every_row_says_where_it_is_from():
    for protocol in ("in-domain", "unseen", "clean", *CORRUPTIONS):
        for entry in published_rows(protocol):
            assert entry.document
            assert entry.where
            assert ".txt" not in entry.document


def test_families_are_disjoint_and_together_everything():
    for protocol in ("in-domain", "unseen"):
        parts = [published_rows(protocol, family) for family in Family]
        assert sum(map(len, parts)) == len(published_rows(protocol))


def test_the_paper_s_derived_rows_say_so():
    for method in ("doge_ta", "doge_am"):
        assert row("in-domain", Family.OPENCLIP, method).confidence is Confidence.DERIVED


def test_unknown_protocol_lists_the_known_ones():
    with pytest.raises(InputError, match="in-domain, unseen, clean"):
        published_rows("zero-shot")


def test_task_titles():
    assert task_title("stanford-cars") == "Cars"
    assert task_title("elsewhere") == "elsewhere"
