"""The published rows are whole, consistent, and kept apart by family."""

import pytest

from apgd.published import IN_DOMAIN, Confidence, Family, published_rows, task_title

B32 = "clip_vit_b32_8"
ROBUST = "clip_vit_b32_8_robustness"
CORRUPTIONS = (
    *("motion_blur", "impulse_noise", "gaussian_noise", "pixelate"),
    *("spatter", "contrast", "jpeg_compression"),
)
TABLES = [
    *((f"clip_vit_b32_{count}", IN_DOMAIN) for count in (8, 14, 20)),
    *((f"clip_vit_l14_{count}", IN_DOMAIN) for count in (8, 14, 20)),
    ("clip_vit_b16_8", IN_DOMAIN),
    *((f"{B32}_unseen_{letter}", "unseen") for letter in "ab"),
    *((ROBUST, protocol) for protocol in (IN_DOMAIN, *CORRUPTIONS)),
    ("flan_t5_base_glue", IN_DOMAIN),
    ("flan_t5_base_glue_lora", IN_DOMAIN),
    ("flan_t5_large_glue_lora", IN_DOMAIN),
]


def row(suite: str, family: Family, method: str, protocol: str = IN_DOMAIN):
    return next(row for row in published_rows(suite, protocol, family) if row.method == method)


def test_known_rows():
    assert row(B32, Family.OPENCLIP, "task_arithmetic").average == 69.1
    assert row(B32, Family.TRANSFORMERS, "task_arithmetic").average == 68.0
    assert row(B32, Family.OPENCLIP, "doge_am").average == 85.9
    unseen = row(f"{B32}_unseen_a", Family.NOT_STATED, "doge", "unseen")
    assert unseen.per_task["mnist"] == 81.3
    ties = row(ROBUST, Family.TRANSFORMERS, "ties", "pixelate")
    assert ties.per_task["stanford-cars"] == 3.3


@pytest.mark.parametrize(("suite", "protocol"), TABLES)
def test_averages_agree_with_the_values_they_are_of(suite, protocol):
    rows = published_rows(suite, protocol)
    assert rows
    for entry in rows:
        if entry.per_task is None:
            assert entry.note or entry.confidence is Confidence.READ
            continue
        if protocol == "unseen":
            tasks = [task for task in entry.unseen_tasks if task in entry.per_task]
            printed = entry.unseen_average
            if not tasks:
                assert printed is None
                continue
        else:
            tasks, printed = list(entry.per_task), entry.average
        mean = sum(entry.per_task[task] for task in tasks) / len(tasks)
        if printed != pytest.approx(mean, abs=0.11):
            assert entry.note, (entry.title, printed, mean)
            assert f"{printed:.1f}" in entry.note


@pytest.mark.parametrize(("suite", "protocol"), TABLES)
def test_every_row_says_where_it_is_from(suite, protocol):
    for entry in published_rows(suite, protocol):
        assert entry.document
        assert entry.where
        assert ".txt" not in entry.document


@pytest.mark.parametrize(("suite", "protocol"), TABLES)
def test_a_family_has_one_row_per_method(suite, protocol):
    parts = [published_rows(suite, protocol, family) for family in Family]
    assert sum(map(len, parts)) == len(published_rows(suite, protocol))
    for rows in parts:
        assert len({entry.method for entry in rows}) == len(rows)


def test_the_paper_s_derived_rows_say_so():
    for method in ("doge_ta", "doge_am"):
        assert row(B32, Family.OPENCLIP, method).confidence is Confidence.DERIVED


def test_no_document_speaks_of_an_embedded_suite():
    assert published_rows("mini_vision") == ()


def test_task_titles():
    assert task_title("stanford-cars") == "Cars"
    assert task_title("elsewhere") == "elsewhere"
