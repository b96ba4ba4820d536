import numpy as np
import pytest

from apgd import InputError
from apgd.data import ImageExamples, Split, TextExamples
from apgd.data.reader import LeakError, SplitReader
from tune.evaluators import CheckedExamples


class Source:
    def examples(self, task: str, split: Split) -> ImageExamples:
        return ImageExamples(np.zeros((5, 2, 2, 3), np.uint8), np.arange(5))


def test_only_allowed_splits_are_read_and_counted() -> None:
    reader = SplitReader(Source(), {Split.VALIDATION}, limit=3)
    assert reader.examples("a", Split.VALIDATION).labels.tolist() == [0, 1, 2]
    for split in (Split.TEST, Split.TRAIN):
        with pytest.raises(LeakError, match=f"the {split} split of task a must not be read"):
            reader.examples("a", split)
        with pytest.raises(LeakError, match=f"the {split} split of task a must not be read"):
            reader.inputs("a", split)
    assert dict(reader.reads) == {Split.VALIDATION: 1}
    assert not hasattr(reader.inputs("a", Split.VALIDATION), "labels")
    assert dict(reader.reads) == {"validation": 1, "validation, unlabelled": 1}


def test_other_examples_than_the_run_began_with_are_refused() -> None:
    class Two(Source):
        calls = 0

        def examples(self, task: str, split: Split) -> ImageExamples:
            self.calls += 1
            return super().examples(task, split)

    source = Two()
    known = source.examples("a", Split.TEST).sha256
    checked = CheckedExamples(source, {("a", "test"): known, ("b", "test"): "0" * 64})  # type: ignore[arg-type]
    assert checked.examples("a", Split.TEST) is checked.examples("a", Split.TEST)
    assert source.calls == 2  # read once, and once above
    with pytest.raises(InputError, match="test examples of b must have the hash 000000000000"):
        checked.examples("b", Split.TEST)
    assert len(checked.examples("c", Split.TEST)) == 5  # nothing is known of it


class Many(Source):
    def examples(self, task: str, split: Split) -> ImageExamples:
        return ImageExamples(
            np.arange(90, dtype=np.uint8).repeat(12).reshape(-1, 2, 2, 3), np.arange(90)
        )


def test_a_share_is_the_same_for_all_and_part_of_larger_ones() -> None:
    whole = Many().examples("a", Split.VALIDATION)
    before: set[int] = set()
    for share, count in ((0.001, 1), (1 / 9, 10), (1 / 3, 30), (0.5, 45), (0.99, 89)):
        part = whole.part(share)
        labels = part.labels.tolist()
        assert len(part) == len(labels) == count
        assert labels == sorted(set(labels))
        assert before <= set(labels)
        assert part.images[:][:, 0, 0, 0].tolist() == labels  # inputs and answers stay together
        assert part.sha256 == whole.part(share).sha256
        before = set(labels)
    assert whole.part(1.0) is whole
    # It is drawn, and not the first so many, which may all be of one class.
    assert max(whole.part(1 / 9).labels) > 45


def test_rows_of_images_and_texts() -> None:
    rows = np.array([1, 4, 7])
    images = Many().examples("a", Split.VALIDATION).at(rows)
    assert images.labels.tolist() == [1, 4, 7]
    assert images.images.shape == (3, 2, 2, 3)
    assert images.first(2).labels.tolist() == [1, 4]
    assert images.images[1:][:, 0, 0, 0].tolist() == [4, 7]
    assert images.at(np.array([0, 2])).images[:][:, 1, 1, 2].tolist() == [1, 7]
    assert len(images.unlabelled()) == 3
    texts = TextExamples(tuple("abcdefgh"), tuple("ABCDEFGH")).at(rows)
    assert (texts.inputs, texts.targets) == (("b", "e", "h"), ("B", "E", "H"))
    assert texts.at(np.array([2])).inputs == ("h",)


def test_a_reader_gives_a_share_and_on_demand_the_whole() -> None:
    reader = SplitReader(Many(), {Split.VALIDATION}, limit=45, share=1 / 3)
    labels = reader.examples("a", Split.VALIDATION).labels
    assert len(labels) == 15
    assert max(labels) < 45
    assert len(reader.inputs("a", Split.VALIDATION)) == 15
    whole = reader.whole()
    assert len(whole.examples("a", Split.VALIDATION)) == 45
    with pytest.raises(LeakError):
        whole.examples("a", Split.TEST)
    # All of it is counted in one place.
    assert dict(reader.reads) == {"validation": 2, "validation, unlabelled": 1}
    assert whole.reads is reader.reads
