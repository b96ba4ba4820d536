"""Lanes: everything is called once, on one thread each, and threads are as before."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from threadpoolctl import threadpool_info

from apgd.lanes import lanes


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("most", [None, 1, 2])
def test_every_item_is_worked_on_once(threads: int, most: int | None) -> None:
    torch.set_num_threads(threads)
    done = []
    with lanes(most) as each:
        assert torch.get_num_threads() == 1
        each(done.append, range(17))
        each(done.append, [])
    assert sorted(done) == list(range(17))
    assert torch.get_num_threads() == threads


def test_lanes_compute_on_one_thread_and_side_by_side() -> None:
    torch.set_num_threads(3)
    together = threading.Barrier(3, timeout=120)
    seen = []

    def work(_item: int) -> None:
        together.wait()  # passes only where three are at work at once
        seen.append(torch.get_num_threads())

    with lanes() as each:
        each(work, range(3))
    assert seen == [1, 1, 1]


@pytest.mark.parametrize("failing", [0, 1])
def test_an_error_in_a_lane_is_raised_and_threads_are_restored(failing: int) -> None:
    torch.set_num_threads(2)

    def work(item: int) -> None:
        if item == failing:
            raise ValueError(f"item {item}")

    with pytest.raises(ValueError, match=f"item {failing}"), lanes() as each:
        each(work, range(4))
    assert torch.get_num_threads() == 2


def test_lanes_may_be_entered_from_several_threads() -> None:
    """BLAS stays limited until the last one leaves, and then has its threads again."""
    torch.set_num_threads(2)
    with lanes():
        pass
    before = blas_threads()
    inside, left = threading.Barrier(2, timeout=120), threading.Event()

    def first() -> None:
        with lanes():
            inside.wait()
        left.set()

    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(first)
        with lanes():
            inside.wait()
            assert left.wait(120)
            assert set(blas_threads()) == {1}
        running.result()
    assert blas_threads() == before


def blas_threads() -> list[int]:
    return [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]


def test_threads_that_start_later_have_the_old_number() -> None:
    torch.set_num_threads(2)
    with lanes() as each:
        each(lambda _item: None, range(2))
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(torch.get_num_threads).result() == 2
