"""What a merge will need, counted by hand, and what is said where it is not there."""

import shutil
from collections import namedtuple
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from apgd import InputError, TaskVectors
from apgd.estimate import Needs, check_disk, check_memory, expected_seconds, needs
from apgd.execution import Here
from apgd.machine import Rates, free_memory, measured_rates
from apgd.methods import methods
from tests.conftest import State

Make = Callable[..., tuple[State, dict[str, State]]]
GIB = 2**30
CPU = torch.device("cpu")
Usage = namedtuple("Usage", "total used free")
Memory = namedtuple("Memory", "available")
WIDE = 6 * 15
MERGED = 12 * 5 + WIDE + 8 * 8 + 7
ALL = MERGED + 5


class Elsewhere:
    """An executor whose machines are not this one."""

    def map(
        self,
        function: Callable[[TaskVectors, Any], Any],
        vectors: TaskVectors,
        items: Sequence[Any],
        bytes_of: Sequence[int],
    ) -> Iterator[tuple[int, Any]]:
        raise NotImplementedError


def found(
    model: Make, *, shard_bytes: int | None, memory: int | None = None
) -> tuple[Needs, TaskVectors]:
    vectors = TaskVectors(*model(3), executor=Here(memory))
    return needs(methods["ties"], vectors, shard_bytes=shard_bytes), vectors


class TestNeeds:
    def test_they_are_counted_from_the_shapes(self, model: Make) -> None:
        counted, _ = found(model, shard_bytes=0)
        assert counted == Needs(
            parameters=ALL,
            merged=MERGED,
            matrices=4,
            read_bytes=4 * (methods["ties"].passes * 4 * MERGED + ALL),
            written_bytes=4 * ALL,
            largest="wide",
            largest_bytes=4 * WIDE * (3 + 6),
            working_bytes=4 * WIDE * (3 + 6) + 2**28,
            result_bytes=2 * 4 * WIDE,
            in_memory=False,
        )

    def test_a_shard_is_held_twice_and_is_no_larger_than_the_model(self, model: Make) -> None:
        assert found(model, shard_bytes=500)[0].result_bytes == 1000
        assert (
            found(model, shard_bytes=10)[0].result_bytes == 2 * 4 * WIDE
        )  # the largest has its own
        assert found(model, shard_bytes=GIB)[0].result_bytes == 8 * ALL

    def test_a_result_in_memory_takes_the_model_and_what_is_added_to_it(self, model: Make) -> None:
        counted, _ = found(model, shard_bytes=None)
        assert counted.result_bytes == 4 * ALL + 4 * MERGED

    def test_types_and_passes_count(self, model: Make) -> None:
        base, experts = model(2)
        half = {n: t.bfloat16() for n, t in base.items()}
        mixed = {"x": half, "y": experts["expert1"]}
        counted = needs(methods["task_arithmetic"], TaskVectors(half, mixed), shard_bytes=None)
        assert counted.read_bytes == (2 + 2 + 4) * MERGED + 2 * ALL
        assert counted.written_bytes == 2 * ALL
        assert counted.result_bytes == 2 * ALL + 4 * MERGED
        assert counted.largest_bytes == 4 * WIDE * (2 + 6)

    def test_tied_parameters_are_merged_once_and_written_twice(self, model: Make) -> None:
        base, experts = model(2)
        tied = base | {"head": base["wide"]}
        both = {e: state | {"head": state["wide"]} for e, state in experts.items()}
        counted = needs(methods["ties"], TaskVectors(tied, both), shard_bytes=0)
        assert (counted.merged, counted.matrices) == (MERGED, 4)
        assert counted.written_bytes == 4 * (ALL + WIDE)

    def test_only_what_is_selected_is_read(self, model: Make) -> None:
        vectors = TaskVectors(*model(2), select=lambda name, _tensor: name == "row")
        counted = needs(methods["weight_averaging"], vectors, shard_bytes=0)
        assert (counted.merged, counted.largest) == (7, "row")
        assert counted.read_bytes == 4 * (3 * 7 + ALL)

    def test_memory_that_is_allowed_counts_and_never_less_than_the_largest_needs(
        self, model: Make
    ) -> None:
        assert found(model, shard_bytes=0, memory=10 * GIB)[0].working_bytes == 10 * GIB
        assert found(model, shard_bytes=0, memory=1)[0].working_bytes == 4 * WIDE * 9
        elsewhere = TaskVectors(*model(3), executor=Elsewhere())
        counted = needs(methods["ties"], elsewhere, shard_bytes=0)
        assert counted.working_bytes == 4 * WIDE * 9

    @pytest.mark.parametrize(
        "name", ["dare_ties", "ties+apgd", "doge_am", "adamerging_plusplus_layer_wise"]
    )
    def test_what_is_done_to_task_vectors_first_counts(self, name: str, model: Make) -> None:
        vectors = TaskVectors(*model(3))
        method = methods[name]
        planned = needs(method, vectors, shard_bytes=0).largest_bytes
        changed = method.transform(vectors, method.parse({}))
        assert planned >= changed.working_bytes("wide") >= 4 * WIDE * (2 * 3 + 6)

    def test_they_read_as_a_sentence(self) -> None:
        text = str(
            Needs(
                parameters=151_300_000, merged=85_000_000, matrices=48, read_bytes=9 * GIB,
                written_bytes=GIB // 2, largest="w", largest_bytes=GIB // 4,
                working_bytes=GIB // 2, result_bytes=GIB, in_memory=True,
            )
        )  # fmt: skip
        assert text == (
            "85.0 M of 151.3 M parameters, in 48 matrices: 1.5 GiB of memory, "
            "9.0 GiB to read, 0.5 GiB to write"
        )


class TestMemory:
    @pytest.fixture
    def free(self, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
        def set_free(cpu: int, cuda: int = 0) -> None:
            amounts = {"cpu": cpu, "cuda": cuda}
            monkeypatch.setattr("apgd.estimate.free_memory", lambda device: amounts[device.type])

        return set_free

    def test_a_matrix_too_large(self, model: Make, free: Callable[..., None]) -> None:
        free(4 * WIDE * 9 - 1)
        with pytest.raises(
            InputError,
            match=r"for wide \(6 x 15\) with 3 experts, but cpu has .*; merge fewer experts at a "
            r"time \(--expert\), or less of the model \(--suite, select\)",
        ):
            check_memory(*found(model, shard_bytes=0, memory=1))
        free(4 * WIDE * 9 + 2 * 4 * WIDE)  # and the shard, twice
        check_memory(*found(model, shard_bytes=0, memory=1))

    @pytest.mark.parametrize("memory", [10 * GIB, None])
    def test_too_much_side_by_side(
        self, memory: int | None, model: Make, free: Callable[..., None]
    ) -> None:
        free(2**27)
        with pytest.raises(
            InputError, match=r"but cpu has 0.1 GiB free; allow less .* side by side \(--memory\)"
        ):
            check_memory(*found(model, shard_bytes=0, memory=memory))

    def test_a_result_too_large(self, model: Make, free: Callable[..., None]) -> None:
        wanted = 4 * WIDE * 9 + 4 * (ALL + MERGED)
        free(wanted - 1)
        with pytest.raises(
            InputError, match=r"with the result in memory.* write it to a folder .*--out FOLDER"
        ):
            check_memory(*found(model, shard_bytes=None, memory=1))
        check_memory(*found(model, shard_bytes=0, memory=1))
        free(wanted)
        check_memory(*found(model, shard_bytes=None, memory=1))

    def test_a_gpu_too_small(self, model: Make, free: Callable[..., None]) -> None:
        free(cpu=GIB, cuda=1000)
        vectors = TaskVectors(*model(3), device="cuda", executor=Here(1))
        with pytest.raises(InputError, match=r"but cuda has .*; merge on the CPU \(--device cpu\)"):
            check_memory(needs(methods["ties"], vectors, shard_bytes=0), vectors)

    def test_with_a_gpu_the_result_is_beside_it(
        self, model: Make, free: Callable[..., None]
    ) -> None:
        vectors = TaskVectors(*model(3), device="cuda", executor=Here(1))
        wanted = needs(methods["ties"], vectors, shard_bytes=None)
        free(cpu=4 * (ALL + MERGED), cuda=4 * WIDE * 9)
        check_memory(wanted, vectors)
        free(cpu=4 * (ALL + MERGED) - 1, cuda=4 * WIDE * 9)
        with pytest.raises(InputError, match="with the result in memory"):
            check_memory(wanted, vectors)

    def test_other_machines_are_not_asked(self, model: Make, free: Callable[..., None]) -> None:
        free(0)
        vectors = TaskVectors(*model(3), executor=Elsewhere())
        check_memory(needs(methods["ties"], vectors, shard_bytes=0), vectors)


def test_the_disk_is_that_of_the_nearest_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def usage(path: Path) -> Any:
        asked.append(path)
        return Usage(GIB, 0, GIB)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    (tmp_path / "made").mkdir()
    check_disk(GIB, tmp_path / "made")
    check_disk(GIB, tmp_path / "a" / "b")
    assert asked == [tmp_path / "made", tmp_path]
    with pytest.raises(InputError, match=rf"1\.5 GiB on disk, but {tmp_path} has 1\.0 GiB .*--out"):
        check_disk(3 * GIB // 2, tmp_path / "new")


class TestSeconds:
    @pytest.fixture(autouse=True)
    def rates(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("apgd.estimate.measured_rates", lambda _device: Rates(1e9, 1e9))

    def seconds(self, vectors: TaskVectors, method: str = "doge_ta", **params: Any) -> float:
        return expected_seconds(methods[method], methods[method].parse(params), vectors)

    def test_every_method_takes_some(self, model: Make) -> None:
        for name in methods:
            assert self.seconds(TaskVectors(*model(2)), name) > 0

    def test_more_work_takes_longer(self, model: Make) -> None:
        vectors = TaskVectors(*model(2))
        usual = self.seconds(vectors)
        assert usual > self.seconds(vectors, solver="exact") > 0
        assert usual > 2 * self.seconds(vectors, iterations=100)
        assert usual > self.seconds(vectors, basis_size=0)
        alone = self.seconds(TaskVectors(*model(1)), basis_size=1)
        assert self.seconds(vectors, basis_size=1) > alone
        assert usual > self.seconds(vectors, "task_arithmetic")
        part = TaskVectors(*model(2), select=lambda name, _tensor: name == "wide")
        assert usual > self.seconds(part)

    def test_slower_machines_take_longer(
        self, model: Make, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        vectors = TaskVectors(*model(2))
        usual = self.seconds(vectors)
        monkeypatch.setattr("apgd.estimate.measured_rates", lambda _device: Rates(5e8, 5e8))
        assert self.seconds(vectors) == pytest.approx(2 * usual)


def test_rates_are_measured_once() -> None:
    rates = measured_rates(CPU)
    assert rates.gemm_flops > 1e8
    assert rates.triad_bytes > 1e8
    assert measured_rates(CPU) is rates


class TestFreeMemory:
    @pytest.fixture
    def group(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
        def write(limit: str, used: str) -> None:
            (tmp_path / "limit").write_text(limit)
            (tmp_path / "used").write_text(used)
            monkeypatch.setattr("apgd.machine._CGROUP_LIMIT", tmp_path / "limit")
            monkeypatch.setattr("apgd.machine._CGROUP_USED", tmp_path / "used")
            monkeypatch.setattr("apgd.machine._CGROUP_CACHE", tmp_path / "stat")

        return write

    def test_a_container_has_what_its_limit_leaves(self, group: Callable[[str, str], None]) -> None:
        group(f"{3 * 2**20}\n", f"{2**20}\n")
        assert free_memory(CPU) == 2 * 2**20
        group(f"{2**20}\n", f"{3 * 2**20}\n")
        assert free_memory(CPU) == 0

    @pytest.mark.parametrize(
        ("limit", "used"), [("max\n", "5\n"), ("damaged", ""), ("9" * 18, "0")]
    )
    def test_without_a_limit_it_has_what_the_machine_has(
        self,
        limit: str,
        used: str,
        group: Callable[[str, str], None],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(psutil, "virtual_memory", lambda: Memory(5 * GIB))
        group(limit, used)
        assert free_memory(CPU) == 5 * GIB

    def test_without_control_groups_too(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("apgd.machine._CGROUP_LIMIT", tmp_path / "none")
        assert 0 < free_memory(CPU) <= psutil.virtual_memory().total
