"""Ceilings are plausible, short to measure, and measured once."""

import time

import torch

from deepnarrow.measure.ceilings import ceilings, elapsed, gemm_gflops, read_bandwidth


def test_ceilings_are_finite_and_kept() -> None:
    found = ceilings()
    assert found.threads == torch.get_num_threads()
    assert found.gemm("float32") > 0.1
    assert found.gemm("bfloat16") > 0.01
    assert found.bandwidth_gbs > 0.1
    assert ceilings() is found


def test_measuring_products_keeps_to_its_time() -> None:
    began = time.perf_counter()
    assert gemm_gflops("float32", seconds=0.05) > 0
    assert time.perf_counter() - began < 5  # the first, smallest size always runs


def test_another_number_of_threads_is_another_ceiling() -> None:
    before = torch.get_num_threads()
    found = ceilings()
    try:
        torch.set_num_threads(before + 1)
        assert ceilings() is not found
    finally:
        torch.set_num_threads(before)


def test_close_working_sets_share_a_measurement() -> None:
    assert read_bandwidth(1_000_000) == read_bandwidth(1_010_000)
    assert read_bandwidth(1) > 0


def test_elapsed_is_in_seconds() -> None:
    assert 0.01 <= elapsed(lambda: time.sleep(0.01), torch.device("cpu")) < 1
