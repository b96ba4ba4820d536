from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from apgd.data import Split
from apgd.errors import InputError
from apgd.models.clip import preprocess
from apgd.models.tokenizer import WordTokenizer
from apgd.suites import suites
from apgd.suites.mini_vision import MINI_VISION, PINNED

RENDERED_WHOLE = [
    (task.name, Split.VALIDATION) for task in (*MINI_VISION.tasks, *MINI_VISION.unseen)
]


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """A cache of its own, so that pictures are really rendered, once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("APGD_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def base() -> nn.Module:
    model = MINI_VISION.build_model()
    model.load_state_dict(load_file(MINI_VISION.base_path()), strict=True)
    return model.eval()


def test_found_by_being_there() -> None:
    assert suites["mini_vision"] is MINI_VISION


def test_tasks_stand_for_the_papers_in_its_order() -> None:
    assert [(task.name, task.stands_for) for task in MINI_VISION.tasks] == [
        ("scenes", "sun397"),
        ("vehicles", "stanford-cars"),
        ("aerial", "resisc45"),
        ("landcover", "eurosat"),
        ("numerals", "svhn"),
        ("signs", "gtsrb"),
        ("handwriting", "mnist"),
        ("textures", "dtd"),
    ]
    assert [task.name for task in MINI_VISION.unseen] == ["letters", "shapes"]
    assert all(task.stands_for is None for task in MINI_VISION.unseen)
    assert set(MINI_VISION.corrupted) <= {task.name for task in MINI_VISION.tasks}
    for task in (*MINI_VISION.tasks, *MINI_VISION.unseen):
        assert 10 <= len(task.class_names) <= 16
        assert all(template.count("{}") == 1 for template in task.templates)


def test_every_split_is_pinned() -> None:
    seen = {(task.name, split) for task in MINI_VISION.tasks for split in Split}
    unseen = {
        (task.name, split)
        for task in MINI_VISION.unseen
        for split in (Split.VALIDATION, Split.TEST)
    }
    assert set(PINNED) == seen | unseen
    assert len(set(PINNED.values())) == len(PINNED)


@pytest.mark.parametrize(("task", "split"), RENDERED_WHOLE)
def test_validation_splits_are_what_was_pinned(task: str, split: Split) -> None:
    examples = MINI_VISION.examples(task, split)
    assert examples.sha256 == PINNED[task, split]
    assert len(examples) == (200 if task == "handwriting" else 400)
    counts = np.bincount(examples.labels, minlength=len(MINI_VISION.task(task).class_names))
    assert counts.max() - counts.min() <= 2


@pytest.mark.parametrize("split", list(Split))
def test_all_splits_of_real_pictures_are_what_was_pinned(split: Split) -> None:
    assert MINI_VISION.examples("handwriting", split).sha256 == PINNED["handwriting", split]


def test_pinned_values_of_one_split() -> None:
    examples = MINI_VISION.examples("signs", Split.TEST)
    assert len(examples) == 2400
    assert examples.labels[:12].tolist() == [11, 1, 6, 11, 12, 10, 13, 5, 8, 7, 12, 3]
    assert examples.images[0, 16, 16].tolist() == [72, 72, 98]


def test_no_picture_is_in_two_splits() -> None:
    for task in ("signs", "handwriting"):
        pictures = [
            MINI_VISION.examples(task, split).images.reshape(-1, 32 * 32 * 3) for split in Split
        ]
        together = np.concatenate(pictures)
        assert len({row.tobytes() for row in together}) == len(together)


def test_other_pictures_than_pinned_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = {**PINNED, ("shapes", Split.VALIDATION): "0" * 64}
    monkeypatch.setattr("apgd.suites.mini_vision.PINNED", wrong)
    with pytest.raises(InputError, match=r"task shapes, split validation .*000000000000.*pillow"):
        MINI_VISION.examples("shapes", Split.VALIDATION)


def test_unknown_task_or_split() -> None:
    with pytest.raises(InputError, match=r"'cats'.*scenes.*shapes"):
        MINI_VISION.examples("cats", Split.TEST)
    with pytest.raises(InputError, match=r"'letters'.*train"):
        MINI_VISION.examples("letters", Split.TRAIN)


def test_base_is_small_and_in_single_precision() -> None:
    path = MINI_VISION.base_path()
    assert path.stat().st_size <= 4 * 2**20
    assert path.is_relative_to(Path(suites["mini_vision"].base_path()).parents[1])
    assert {tensor.dtype for tensor in load_file(path).values()} == {torch.float32}


def test_merged_are_the_matrices_of_the_image_blocks(base: nn.Module) -> None:
    merged = [name for name, p in base.state_dict().items() if MINI_VISION.is_merged(name, p)]
    assert len(merged) == 4 * 4
    assert all(name.startswith("visual.transformer.resblocks.") for name in merged)
    assert sum("in_proj_weight" in name for name in merged) == 4


def test_head_has_a_scaled_unit_vector_per_class(base: nn.Module) -> None:
    task = MINI_VISION.task("vehicles")
    head = MINI_VISION.head(base, task).classes
    assert head.shape == (len(task.class_names), 64)
    assert head.dtype == torch.float32
    assert not head.requires_grad
    scale = base.get_parameter("logit_scale").exp().item()
    torch.testing.assert_close(head.norm(dim=1), torch.full((len(head),), scale))
    # Row k is class k's own mean over the templates.
    texts = MINI_VISION.tokenizer([text.format(task.class_names[3]) for text in task.templates])
    with torch.no_grad():
        mean = base.encode_text(texts, normalize=True).mean(dim=0)  # type: ignore[operator]
    torch.testing.assert_close(head[3], scale * mean / mean.norm())


def test_base_is_between_chance_and_experts(base: nn.Module) -> None:
    accuracies = {}
    for task in (*MINI_VISION.tasks, *MINI_VISION.unseen):
        examples = MINI_VISION.examples(task.name, Split.VALIDATION)
        head = MINI_VISION.head(base, task).classes
        with torch.no_grad():
            seen = base.encode_image(  # type: ignore[operator]
                preprocess(examples.images), normalize=True
            )
        right = (seen @ head.T).argmax(dim=1) == torch.from_numpy(examples.labels)
        accuracies[task.name] = right.float().mean().item()
        assert accuracies[task.name] > 1.5 / len(task.class_names), task.name
    mean = np.mean([accuracies[task.name] for task in MINI_VISION.tasks])
    assert 0.40 <= mean <= 0.62


def test_preprocess() -> None:
    images = np.zeros((2, 32, 32, 3), dtype=np.uint8)
    images[1, 3, 5, 2] = 255
    planes = preprocess(images)
    assert planes.shape == (2, 3, 32, 32)
    assert planes.dtype == torch.float32
    assert planes[1, 2, 3, 5] == 2.0
    assert planes[0].eq(-2.0).all()
    with pytest.raises(InputError, match="float32"):
        preprocess(images.astype(np.float32))


def test_tokenizer_numbers_words_and_ends_with_the_highest() -> None:
    tokenizer = WordTokenizer(["b", "a", "c"], 6)
    assert tokenizer.vocab_size == 6
    assert tokenizer(["c A", "b"]).tolist() == [[4, 3, 1, 5, 0, 0], [4, 2, 5, 0, 0, 0]]
    assert tokenizer("a").tolist() == [[4, 1, 5, 0, 0, 0]]
    assert tokenizer([]).shape == (0, 6)


def test_tokenizer_refuses_what_it_does_not_know() -> None:
    tokenizer = WordTokenizer(["a"], 4)
    with pytest.raises(InputError, match="'dog'"):
        tokenizer(["a dog"])
    with pytest.raises(InputError, match="at most 2 words"):
        tokenizer(["a a a"])


def test_all_prompts_fit_the_text_tower() -> None:
    for task in (*MINI_VISION.tasks, *MINI_VISION.unseen):
        texts = [text.format(name) for text in task.templates for name in task.class_names]
        assert MINI_VISION.tokenizer(texts).max() == MINI_VISION.tokenizer.vocab_size - 1
