import numpy as np
import pytest

from apgd.data import ImageExamples, Split
from apgd.data.reader import LeakError, SplitReader


class Source:
    def examples(self, task: str, split: Split) -> ImageExamples:
        return ImageExamples(np.zeros((5, 2, 2, 3), np.uint8), np.arange(5))


def test_only_allowed_splits_are_read_and_counted() -> None:
    reader = SplitReader(Source(), {Split.VALIDATION}, limit=3)
    assert reader.examples("a", Split.VALIDATION).labels.tolist() == [0, 1, 2]
    for split in (Split.TEST, Split.TRAIN):
        with pytest.raises(LeakError, match=f"the {split} split of task a must not be read"):
            reader.examples("a", split)
    assert dict(reader.reads) == {Split.VALIDATION: 1}
