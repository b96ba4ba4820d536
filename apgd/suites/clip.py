"""The paper's vision suites: CLIP's image tower on 8, 14 and 20 tasks, unseen tasks, corruptions.

Two families of experts exist. `--experts published` takes those of the hub (transformers, trained
by FusionBench); `own` fine-tunes as the original OpenCLIP ones were; a folder holds converted
originals. Class names are the published ones; prompt templates are ours, so that zero-shot figures
may differ a little: a comparison looks at them first.
"""

import json
from collections.abc import Iterator, Mapping
from importlib.resources import files
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from apgd.checkpoints import save_weights
from apgd.data import ImageExamples, Split, Task
from apgd.data.examples import image_examples, is_ready
from apgd.data.hub import HubDataset
from apgd.data.prepared import prepare
from apgd.errors import InputError
from apgd.flops import vit_flops
from apgd.hub import hub_file
from apgd.models.activations import vit_activations
from apgd.models.class_token import transformers_embeddings
from apgd.models.clip_files import class_vectors, has_vision_base, vision_base
from apgd.models.clip_geometry import GEOMETRIES, Geometry
from apgd.models.clip_hub import read_vision_tower, vision_encoder
from apgd.models.clip_layouts import PROJECTION
from apgd.models.zero_shot import ZeroShotHead
from apgd.published import Family, task_title
from apgd.suites._suite import FinetuneSettings, Suite
from apgd.suites.facts import vision_datasets

_MERGED = "vision_model.encoder.layers."
_CORRUPTED = ("stanford-cars", "eurosat", "resisc45", "gtsrb")


class ClipSuite(Suite):
    """Image classification by CLIP's frozen text tower and a fine-tuned image tower.

    Args:
        name: identifier.
        what: the end of the title.
        geometry: which CLIP.
        tasks: names of the tasks with an expert.
        unseen: names of the tasks without.
        corrupted: names of the tasks whose test images are also shown corrupted.
        datasets: where the examples of every task come from.
    """

    def __init__(
        self,
        name: str,
        what: str,
        geometry: Geometry,
        tasks: tuple[str, ...],
        unseen: tuple[str, ...] = (),
        corrupted: tuple[str, ...] = (),
        datasets: Mapping[str, HubDataset] = vision_datasets(),
    ) -> None:
        self.name = name
        self.title = f"CLIP {geometry.name}, {what}"
        self.geometry = geometry
        self._datasets = {
            task: datasets[task] if task in corrupted else datasets[task].without_corruptions()
            for task in (*tasks, *unseen)
        }
        self.tasks = tuple(_task(datasets[task]) for task in tasks)
        self.unseen = tuple(_task(datasets[task]) for task in unseen)
        self.corrupted = corrupted
        self.corruptions = datasets[corrupted[0]].corruptions if corrupted else ()
        # About 2,000 steps of 128 are what the epochs of the original recipe come to.
        self.finetune = FinetuneSettings(
            steps=2000,
            batch_size=128,
            learning_rate=1e-5,
            warmup=0.25,
            gradient_checkpointing=geometry.name == "ViT-L-14",
            checkpoint_every=200,
        )
        self.published_suite = name
        self.image_size = geometry.vision.image_size
        self.family = Family.OPENCLIP
        repository = geometry.hub_id.rpartition("/")[2]
        self.published_experts = MappingProxyType(
            {task: f"tanganke/{repository}_{task}" for task in tasks}
        )

    @property
    def stored_as(self) -> str:
        """Suites of one model share their experts."""
        return f"clip-{self.geometry.name}"

    def base_path(self) -> Path:
        """The pretrained image tower with its projection, in transformers' names."""
        return vision_base(self.geometry)

    def build_model(self) -> nn.Module:
        """Transformers' CLIPVisionModelWithProjection with random weights."""
        model: nn.Module = vision_encoder(self.geometry)
        return model

    def head(self, model: nn.Module, task: Task) -> ZeroShotHead:  # noqa: ARG002 - the text tower
        """The frozen text head of a task: class vectors (classes, projection)."""
        classes = class_vectors(self.geometry, task)
        return ZeroShotHead(classes, self.preprocess, encode, encode_class_token)

    def preprocess(self, images: np.ndarray) -> Tensor:
        """Images as CLIP takes them: uint8 (n, size, size, 3) -> float32 (n, 3, size, size)."""
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in (self.geometry.mean, self.geometry.std))
        planes = torch.from_numpy(np.array(images.transpose(0, 3, 1, 2), order="C"))
        return planes.to(torch.float32).div_(255.0).sub_(mean).div_(std)

    def is_trained(self, name: str) -> bool:  # noqa: ARG002 - all of them
        """The whole image tower learns, its projection included."""
        return True

    def is_merged(self, name: str, tensor: Tensor) -> bool:
        """Whether a parameter is a matrix of a linear layer in the image tower's blocks."""
        return name.startswith(_MERGED) and name.endswith("weight") and tensor.ndim == 2

    def datasets(self) -> Mapping[str, HubDataset]:
        """The data set of every task, by the task's name."""
        return {
            name: dataset if name in self.corrupted else dataset.without_corruptions()
            for name, dataset in self._datasets.items()
        }

    def examples(self, task: str, split: Split) -> ImageExamples:
        """The examples of a task's split; downloaded and decoded where they are not there yet."""
        return self._images(task, split, None)

    def corrupted_examples(self, task: str, corruption: str, count: int) -> ImageExamples:
        """The first `count` test examples of a task, as the data set shows them corrupted."""
        if task not in self.corrupted:
            raise InputError(
                f"suite {self.name} shows {', '.join(self.corrupted) or 'nothing'} corrupted, "
                f"but {task} was asked for"
            )
        return self._images(task, Split.TEST, corruption).first(count)

    def _images(self, task: str, split: Split, corruption: str | None) -> ImageExamples:
        dataset = self._dataset(task)
        prepare(dataset if corruption is not None else dataset.without_corruptions())
        size = self.geometry.vision.image_size
        found = image_examples(dataset, split, size=size, corruption=corruption)
        return ImageExamples(found.images, found.labels, found.sha256)

    def has_examples(self, task: str, split: Split) -> bool:
        """Whether a split was downloaded and, unless it is TRAIN, decoded."""
        size = self.geometry.vision.image_size
        return is_ready(self._dataset(task), split, size=size)

    def _dataset(self, task: str) -> HubDataset:
        return self._datasets[self.task(task).name]

    def activation_bytes(self, *, recomputed: bool) -> int:
        """What fine-tuning keeps of one image."""
        sizes = self.geometry.vision
        return vit_activations(
            layers=sizes.layers,
            width=sizes.width,
            mlp_width=sizes.mlp_width,
            tokens=sizes.positions,
            recomputed=recomputed,
        )

    def forward_flops(self) -> float:
        """Of one image through the image tower."""
        sizes = self.geometry.vision
        return vit_flops(
            layers=sizes.layers,
            width=sizes.width,
            mlp_width=sizes.mlp_width,
            tokens=sizes.positions,
            patch=sizes.patch,
            projection=self.geometry.projection,
        )

    def has_base(self) -> bool:
        """Whether the image tower was fetched and converted."""
        return has_vision_base(self.geometry)

    def published_expert(self, task: str) -> Path:
        """The hub's expert of a task, in the folder where its configuration is too."""
        repository = self.published_experts[self.task(task).name]
        hub_file(repository, "config.json")
        return hub_file(repository, "model.safetensors").parent

    def import_expert(self, source: Path, folder: Path) -> Path:
        """An expert in any known layout of CLIP's vision tower; without a projection, the base's.

        Raises:
            InputError: where it is not completely a tower of this model, or is said to need
                another activation.
        """
        projection = load_file(self.base_path())[PROJECTION]
        label = f"the expert {source}"
        state = read_vision_tower(source, self.geometry, label, projection=projection)
        made = folder / "weights.safetensors"
        save_weights(made, state, {"suite": self.stored_as, "activation": self.geometry.activation})
        return made


def encode(model: nn.Module, pixels: Tensor) -> Tensor:
    """Unit embeddings of preprocessed images: (n, 3, size, size) -> (n, projection)."""
    embedded: Tensor = model(pixel_values=pixels).image_embeds
    return nn.functional.normalize(embedded, dim=-1)


def encode_class_token(model: nn.Module, pixels: Tensor) -> Tensor:
    """As `encode` up to rounding, without what embeddings do not depend on."""
    embedded = transformers_embeddings(model, pixels)
    if embedded is None:
        return encode(model, pixels)
    return nn.functional.normalize(embedded, dim=-1)


def _task(dataset: HubDataset) -> Task:
    if dataset.class_names is None:
        raise InputError(f"a task of CLIP must have classes, but {dataset.name} has none")
    return Task(
        name=dataset.name,
        title=task_title(dataset.name),
        stands_for=dataset.name,
        class_names=dataset.class_names,
        templates=tuple(_TEMPLATES.get(dataset.name, _ANY)),
    )


_TEMPLATES: Mapping[str, list[str]] = json.loads(
    (files("apgd.suites.facts") / "templates.json").read_text(encoding="utf-8")
)
_ANY = ("a photo of a {}.",)
_ALL = tuple(_TEMPLATES)
_UNSEEN = {"a": ("mnist", "eurosat"), "b": ("resisc45", "svhn")}


def _suites(prefix: str, geometry: Geometry, counts: tuple[int, ...]) -> Iterator[ClipSuite]:
    for count in counts:
        yield ClipSuite(f"{prefix}_{count}", f"{count} tasks", geometry, _ALL[:count])
    eight = f"{prefix}_8"
    for letter, unseen in _UNSEEN.items():
        seen = tuple(task for task in _ALL[:8] if task not in unseen)
        what = f"6 tasks, {' and '.join(map(task_title, unseen))} unseen"
        yield ClipSuite(f"{eight}_unseen_{letter}", what, geometry, seen, unseen)
    what = "4 tasks under 7 corruptions"
    yield ClipSuite(f"{eight}_robustness", what, geometry, _CORRUPTED, corrupted=_CORRUPTED)


CLIP_SUITES: tuple[ClipSuite, ...] = (
    *_suites("clip_vit_b32", GEOMETRIES["ViT-B-32"], (8, 14, 20)),
    *_suites("clip_vit_b16", GEOMETRIES["ViT-B-16"], (8,)),
    *_suites("clip_vit_l14", GEOMETRIES["ViT-L-14"], (8, 14, 20)),
)
