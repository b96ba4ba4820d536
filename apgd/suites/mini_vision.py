"""The embedded suite: CLIP at toy size on ten rendered tasks, nothing to download.

Eight tasks have the shape of the paper's eight, two more are never shown to any expert. All are
drawn in code (apgd.data.rendering), except for the handwritten digits, which are real and come with
scikit-learn. The base model was trained by experiments/pretrain_mini.py.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
from torch import Tensor, nn

from apgd.data import ImageExamples, Split, Task
from apgd.data.corruptions import CORRUPTIONS, corrupt
from apgd.data.rendered import RenderedStore
from apgd.data.rendering import (
    AERIAL,
    DIGITS,
    HANDWRITTEN_SIZES,
    LANDCOVER,
    LETTERS,
    SCENES,
    SHAPES,
    SHIFTED,
    SIGNS,
    TEXTURES,
    VEHICLES,
    Subject,
    handwritten,
    render,
)
from apgd.errors import InputError
from apgd.models.clip import (
    CONTEXT_LENGTH,
    IMAGE_SIZE,
    class_vectors,
    encode,
    encode_class_token,
    mini_clip,
    mini_clip_flops,
    preprocess,
)
from apgd.models.tokenizer import WordTokenizer
from apgd.models.zero_shot import ZeroShotHead
from apgd.suites._assets import asset
from apgd.suites._settings import SHORT_ADAPTATION
from apgd.suites._suite import FinetuneSettings, Suite

_SEED = 20250504
_CORRUPTION_SEED = 0
_SIZES = {Split.TRAIN: 5000, Split.VALIDATION: 400, Split.TEST: 2400}
_BLOCKS = "visual.transformer.resblocks."


@dataclass(frozen=True, kw_only=True)
class _Recipe:
    """A task, and what its pictures show."""

    task: Task
    subject: Subject | None
    """None for the pictures that are not rendered."""
    splits: tuple[Split, ...] = tuple(Split)


def _recipe(
    name: str,
    title: str,
    stands_for: str | None,
    subject: Subject,
    templates: tuple[str, ...],
    *,
    real: bool = False,
) -> _Recipe:
    return _Recipe(
        task=Task(
            name=name,
            title=title,
            stands_for=stands_for,
            class_names=subject.class_names,
            templates=templates,
        ),
        subject=None if real else subject,
        splits=tuple(Split) if stands_for else (Split.VALIDATION, Split.TEST),
    )


_SEEN = (
    _recipe(
        "scenes",
        "Scenes",
        "sun397",
        SCENES,
        ("a photo of a {}", "a view of a {}", "the {} scene"),
    ),
    _recipe(
        "vehicles",
        "Vehicles",
        "stanford-cars",
        VEHICLES,
        ("a photo of a {}", "a {} on the road", "a {} seen from the side"),
    ),
    _recipe(
        "aerial",
        "Aerial objects",
        "resisc45",
        AERIAL,
        ("an aerial photo of a {}", "a {} seen from above", "an aerial view of a {}"),
    ),
    _recipe(
        "landcover",
        "Land cover",
        "eurosat",
        LANDCOVER,
        ("a satellite image of {}", "{} seen from space", "land cover {}"),
    ),
    _recipe(
        "numerals",
        "Numerals",
        "svhn",
        DIGITS,
        ("a photo of the digit {}", "the printed number {}", "a printed digit {}"),
    ),
    _recipe(
        "signs",
        "Traffic signs",
        "gtsrb",
        SIGNS,
        ("a {} traffic sign", "a photo of a {} sign", "the traffic sign {}"),
    ),
    _recipe(
        "handwriting",
        "Handwriting",
        "mnist",
        DIGITS,
        ("a handwritten digit {}", "the handwritten number {}", "a photo of the digit {}"),
        real=True,
    ),
    _recipe(
        "textures",
        "Textures",
        "dtd",
        TEXTURES,
        ("a {} texture", "a photo of a {} surface", "a {} pattern"),
    ),
)
_UNSEEN = (
    _recipe(
        "letters",
        "Letters",
        None,
        LETTERS,
        ("the letter {}", "a photo of the letter {}", "a printed letter {}"),
    ),
    _recipe(
        "shapes",
        "Shapes",
        None,
        SHAPES,
        ("a {} shape", "the shape of a {}", "a photo of a {} shape"),
    ),
)
_RECIPES = {recipe.task.name: recipe for recipe in (*_SEEN, *_UNSEEN)}

PINNED: Mapping[tuple[str, Split], str] = MappingProxyType(
    {
        ("scenes", Split.TRAIN): (
            "08b57d3f8e7b1de3e25ca9dfed474760e09444f006e5b1180d5e4e2000905c7b"
        ),
        ("scenes", Split.VALIDATION): (
            "38c6f7b2e382318e2bec595869ac50f4abace2ca3818207d07e65bc3cf3773e4"
        ),
        ("scenes", Split.TEST): (
            "df7d4344f48e6a58ea2ecc9a1fa69f8eb29e7e29fe79067ffce931b4fee21fdc"
        ),
        ("vehicles", Split.TRAIN): (
            "b2a9aa9466f6f70a9bfb4ccd9b597e83d4eb1c38ac6f68a331fdcf7babc6f226"
        ),
        ("vehicles", Split.VALIDATION): (
            "d0bb37e624cfbbf18cda6dd85c6778ea9738411922b4e2f837d259ca1926c7a7"
        ),
        ("vehicles", Split.TEST): (
            "c90d757b30e8bf00c41f8f45c3d8edbddfc2e528ec1fd77fab8c2a159b7decdf"
        ),
        ("aerial", Split.TRAIN): (
            "ef84b6a1283fa1571abd9df906385a6ccec168f42b6067c3c97f89f569052f99"
        ),
        ("aerial", Split.VALIDATION): (
            "139f7065b2abd3cabff8b8ed10b2437bdf77ca7de451e9fe1f04e5ffa23bc4b1"
        ),
        ("aerial", Split.TEST): (
            "4d5c331c518723d05bc8fd67a90aeb1f52b4010e5404f375267f87bb51fc0c2c"
        ),
        ("landcover", Split.TRAIN): (
            "0ad0f5208d37bd950d4e33c8b4ac21995a8de7c712795780ab0d83230e657ac7"
        ),
        ("landcover", Split.VALIDATION): (
            "bce6547154af500343f0ac71fc18c8e435058407a1878b23cc816502450b068f"
        ),
        ("landcover", Split.TEST): (
            "f091913c657c6b61de077f2fd16839f593c2bd203acf97c9351e69d89b0b774f"
        ),
        ("numerals", Split.TRAIN): (
            "ca097c53c57f02409cadf35ea9b36bfa8d259a3debec731bf352caedbd3b34e3"
        ),
        ("numerals", Split.VALIDATION): (
            "2499601e8cbb9619d3fb548e962c15acde8d3f0922f061f4e0ce88d1f88f8a5a"
        ),
        ("numerals", Split.TEST): (
            "296b69d8fb7bda7f24aae8f9eb6529192d3be3dd4b82047cc55161bafd23050d"
        ),
        ("signs", Split.TRAIN): (
            "0a059a74ed475f8a4e349b11fea2096bde97eeb2d551435e1f94c8a9309b2994"
        ),
        ("signs", Split.VALIDATION): (
            "cb70224066c8e3688da721375ca47524c9509dfb19c31cd3bb230195e289ab45"
        ),
        ("signs", Split.TEST): ("b04e3b26aed09e56a9641814645dc5a68973fae8b9db4a516b81016a8a7ff5fd"),
        ("handwriting", Split.TRAIN): (
            "cc54d092f9fba9e818c19b9515ad401519e545c65a4b6199fc14b38c0ee98a78"
        ),
        ("handwriting", Split.VALIDATION): (
            "1fb0723f251044e4eb0ab7db895da67aaed3721335eeae1cb7fb4c66f91739c5"
        ),
        ("handwriting", Split.TEST): (
            "a03c791099bca644d5dd71babcace5345580d0fa8a429a63e4e3f5e3180cff31"
        ),
        ("textures", Split.TRAIN): (
            "0e60bc4b4512e125f0c858aac1079c6068f7e33d2407ad786c8e3a47a4bebd68"
        ),
        ("textures", Split.VALIDATION): (
            "03c8a81c19ccd0af32035777d8232ccd2f70cc8a553013d665aa4c2805e62e4b"
        ),
        ("textures", Split.TEST): (
            "c23997920272fa7ab55f193789b1602d1a0d6cb47ba1dc90b902650c9cfaf4b2"
        ),
        ("letters", Split.VALIDATION): (
            "e87b6cfc26c009c7916cce2979de85e0088184993e345af140c9647d720bcd91"
        ),
        ("letters", Split.TEST): (
            "2668024c3daed4cf25db86680dd9936adba933f49e6c2366be96ec2b3c7a721b"
        ),
        ("shapes", Split.VALIDATION): (
            "f92911a592f4fe587c7e89e51754cd802dbb01f6c332ec5def5d40c02e03e266"
        ),
        ("shapes", Split.TEST): (
            "48eeb855da3a837f876223c41c52ce401022bac4bf028043b86d173e963d4b5c"
        ),
    }
)
"""`ImageExamples.sha256` of every split, by task and split.

Whoever changes how a task is rendered gets the new hash from `MINI_VISION.render(task, split)`, and
a suite whose figures do not compare with the old one's.
"""


def caption_words() -> set[str]:
    """All words of the class names and the prompt templates: what the text tower can read."""
    return {
        word
        for recipe in _RECIPES.values()
        for text in (*recipe.task.class_names, *recipe.task.templates)
        for word in text.replace("{}", " ").split()
    }


class MiniVision(Suite):
    """See the module."""

    name = "mini_vision"
    title = "Toy CLIP on ten rendered 32-pixel tasks"
    tasks = tuple(recipe.task for recipe in _SEEN)
    unseen = tuple(recipe.task for recipe in _UNSEEN)
    corrupted = ("vehicles", "landcover", "aerial", "signs")
    corruptions = CORRUPTIONS
    corruption_limit = 500  # every worker makes them anew
    shortened = SHORT_ADAPTATION
    published_suite = "clip_vit_b32_8"
    image_size = IMAGE_SIZE
    finetune = FinetuneSettings(steps=200, batch_size=64, learning_rate=5e-4)

    def __init__(self) -> None:
        self._store = RenderedStore()
        self.tokenizer = WordTokenizer(caption_words(), CONTEXT_LENGTH)

    def base_path(self) -> Path:
        """The base model's weights: a full CLIP, in float32."""
        return asset("mini_vision.safetensors")

    def build_model(self) -> nn.Module:
        """A fresh CLIP with random weights."""
        model: nn.Module = mini_clip(self.tokenizer.vocab_size)
        return model

    def head(self, model: nn.Module, task: Task) -> ZeroShotHead:
        """The frozen text head of a task: class vectors (classes, 64)."""
        classes = class_vectors(model, self.tokenizer, task)
        return ZeroShotHead(classes, preprocess, encode, encode_class_token)

    def is_trained(self, name: str) -> bool:
        """Whether a parameter belongs to the image tower."""
        return name.startswith("visual.")

    def is_merged(self, name: str, tensor: Tensor) -> bool:
        """Whether a parameter is a matrix of a linear layer in the image tower's blocks."""
        return name.startswith(_BLOCKS) and name.endswith("weight") and tensor.ndim == 2

    def examples(self, task: str, split: Split) -> ImageExamples:
        """The examples of a task's split, from the cache on disk or rendered (a second or two).

        Splits are independent of each other, so that several processes may prepare them at once.

        Raises:
            InputError: for an unknown task or split, or where rendering gives other pictures than
                were pinned.
        """
        self._recipe(task, split)
        return self._store.get(
            f"task {task}, split {split}", PINNED[task, split], lambda: self.render(task, split)
        )

    def corrupted_examples(self, task: str, corruption: str, count: int) -> ImageExamples:
        """The first `count` test examples of a task, under a corruption.

        Raises:
            InputError: for a task that is not among `corrupted`, or an unknown corruption.
        """
        if task not in self.corrupted:
            raise InputError(
                f"only {', '.join(self.corrupted)} are shown corrupted, but {task} was asked for"
            )
        shown = self.examples(task, Split.TEST).first(count)
        return ImageExamples(corrupt(shown.images[:], corruption, _CORRUPTION_SEED), shown.labels)

    def has_examples(self, task: str, split: Split) -> bool:
        """Whether a split is in the cache on this machine."""
        self._recipe(task, split)
        return self._store.has(PINNED[task, split])

    def example_count(self, task: str, split: Split) -> int:
        """How many examples are rendered, or for the handwritten digits, taken."""
        recipe = self._recipe(task, split)
        return HANDWRITTEN_SIZES[split] if recipe.subject is None else _SIZES[split]

    def forward_flops(self) -> float:
        """Of one picture through the image tower."""
        return mini_clip_flops()

    def render(self, task: str, split: Split) -> ImageExamples:
        """The examples of a task's split, rendered now, whatever is cached or pinned.

        Raises:
            InputError: for an unknown task or split.
        """
        recipe = self._recipe(task, split)
        if recipe.subject is None:
            return handwritten(split, split_rng(task, None))
        return render(recipe.subject, SHIFTED[task], _SIZES[split], split_rng(task, split))

    def _recipe(self, task: str, split: Split) -> _Recipe:
        recipe = _RECIPES[self.task(task).name]
        if split not in recipe.splits:
            known = ", ".join(recipe.splits)
            raise InputError(f"task {task!r} has no split {split!r}; it has {known}")
        return recipe


def split_rng(task: str, split: Split | None) -> np.random.Generator:
    """The random numbers of a task's split: a stream of its own for each."""
    key = hashlib.sha256(f"{task}/{split or 'all'}".encode()).digest()
    return np.random.default_rng([_SEED, int.from_bytes(key[:8], "big")])


MINI_VISION = MiniVision()
