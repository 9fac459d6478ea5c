"""The emulator of csrc/cuda: right kernels pass under every schedule, wrong ones are found and named."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

CSRC = Path(__file__).resolve().parent.parent / "csrc"
COMPILER = shutil.which("g++") or shutil.which("c++")
FLAGS = [
    "-x",
    "c++",
    "-std=c++17",
    "-U_FORTIFY_SOURCE",
    "-DMELODIA_EMULATOR",
    "-fsanitize=alignment",
    f"-I{CSRC}",
]

pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The emulator's own test program."""
    out = str(tmp_path_factory.mktemp("emulator") / "emulator_test")
    source = str(CSRC / "tests/cuda_emulator_test.cu")
    subprocess.run(
        [str(COMPILER), *FLAGS, "-O1", "-Wall", "-Wextra", "-Werror", source, "-o", out], check=True
    )
    return out


def tried(program: str, case: str, schedules: int = 100) -> tuple[int, str]:
    """In how many schedules the case went wrong, and the first error."""
    done = subprocess.run(
        [program, case, str(schedules)], capture_output=True, text=True, check=True, timeout=60
    )
    wrong, _, error = done.stdout.strip().partition(" ")
    return int(wrong), error


@pytest.mark.parametrize(
    "case",
    [
        "all_gather",
        "in_band",
        "through_shared",
        "over_shared",
        "in_cluster",
        "gives_up",
        "product bf16",
        "product fp16",
        "product tf32",
        "not_a_number_tf32",
    ],
)
def test_right_kernels_pass(program: str, case: str) -> None:
    assert tried(program, case, 300) == (0, "")


@pytest.mark.parametrize(
    "case",
    [
        "all_gather without release",
        "all_gather without acquire",
        "all_gather without first barrier",
        "all_gather without last barrier",
        "in_band without epoch",
        "in_band with one buffer",
        "through_shared without wait",
        "over_shared without barrier",
        "in_cluster without first barrier",
    ],
)
def test_missing_order_is_found(program: str, case: str) -> None:
    wrong, _ = tried(program, case)
    assert wrong >= 10


@pytest.mark.parametrize(
    ("case", "error"),
    [
        ("waits_for_ever", "kernel waits_for_ever: deadlock: nobody can go on; block 0: 64 threads spin"),
        ("half_a_barrier", "wait at two barriers, 'half' and 'whole'"),
        ("past_the_end", "block 0 wrote past its shared memory"),
        ("copies_past_the_end", "copies to 16 bytes that are not in its shared memory"),
        ("ends_early", "ends before its copies have arrived"),
        ("ends_early uncommitted", "ends before its copies have arrived"),
        ("reads_beside", "reads 4 bytes that the device does not have, at byte -4 of 4"),
        ("reads_across", "reads 16 bytes that the device does not have, at byte 4088 of 4096"),
        ("writes_beside", "writes 4 bytes that the device does not have, at byte 4 of 4"),
        ("adds_beside", "adds to 4 bytes that the device does not have, at byte 4 of 4"),
        ("copies_beside", "copies 16 bytes that the device does not have, at byte 0 of 4"),
        ("writes_plainly_beside", "somebody wrote beside 4 bytes of global memory"),
        ("copies_unaligned", "copies 16 bytes at an address that is not a multiple of 16"),
        ("reads_unaligned", "reads 8 bytes at an address that is not a multiple of 8"),
        ("reads_plainly_unaligned", "has a pointer that is not aligned, "),
    ],
)
def test_errors_name_the_kernel(program: str, case: str, error: str) -> None:
    wrong, received = tried(program, case)
    assert wrong == 100
    assert error in received
    assert received.startswith(f"kernel {case}: ")


def test_who_reads_beside_global_memory_reads_nan(program: str) -> None:
    assert tried(program, "reads_plainly_beside") == (100, "")


def test_stores_to_blocks_that_have_ended_are_found(program: str) -> None:
    wrong, error = tried(program, "in_cluster without last barrier")
    assert wrong >= 10
    assert "a store to the shared memory of block " in error
    assert error.endswith(", which has ended")
