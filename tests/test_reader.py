import numpy as np
import pytest

from apgd import InputError
from apgd.data import ImageExamples, Split
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
