"""What is known of GPUs by name, and of this machine."""

from pathlib import Path

import pytest

from cluster import accelerators
from cluster.accelerators import (
    ACCELERATORS,
    UNKNOWN,
    cpu_model,
    describe_gpu,
    find_accelerator,
    visible_gpus,
)


@pytest.mark.parametrize(
    ("called", "name"),
    [
        ("A100", "A100"),
        ("NVIDIA A100-SXM4-40GB", "A100-40G"),
        ("NVIDIA A100-SXM4-80GB", "A100-80G"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H100 PCIe", "H100-PCIe"),
        ("NVIDIA H200", "H200"),
        ("Tesla V100-SXM2-16GB", "V100"),
        ("Tesla T4", "T4"),
        ("NVIDIA L4", "L4"),
        ("NVIDIA L40S", "L40S"),
        ("NVIDIA GeForce RTX 4090", "RTX-4090"),
        ("rtx4090", "RTX-4090"),
        ("NVIDIA RTX A6000", "A6000"),
    ],
)
def test_a_type_is_found_by_any_of_its_names(called, name):
    assert find_accelerator(called) is ACCELERATORS[name]


@pytest.mark.parametrize("called", ["", "GPU", "T400", "NVIDIA Quadro K2000", "A1000"])
def test_what_only_looks_like_a_type_is_none(called):
    assert find_accelerator(called) is None
    assert describe_gpu(called) is UNKNOWN


def test_a_size_that_is_not_told_is_the_smallest():
    assert ACCELERATORS["A100"].memory == 40e9 == ACCELERATORS["A100-40G"].memory


def test_peaks_go_by_precision_and_are_not_sustained():
    a100 = ACCELERATORS["A100"]
    assert (a100.peak("fp32"), a100.peak("bf16")) == (19.5, 312.0)
    assert a100.sustained("bf16") == pytest.approx(124.8)


@pytest.mark.parametrize(
    ("text", "model"),
    [
        ("processor\t: 0\nmodel name\t: Some CPU @ 2 GHz\n", "Some CPU @ 2 GHz"),
        ("CPU implementer\t: 0x41\nCPU part\t: 0xd0c\n", "0x41 0xd0c"),
        ("nothing of use\n", "cpu"),
        (None, "cpu"),
    ],
)
def test_the_processor_is_named_as_the_kernel_does(tmp_path, monkeypatch, text, model):
    path = tmp_path / "cpuinfo"
    if text is not None:
        path.write_text(text)
    monkeypatch.setattr(
        accelerators, "Path", lambda given: path if given == "/proc/cpuinfo" else Path(given)
    )
    assert cpu_model() == model


def test_gpus_are_read_from_the_drivers_files(tmp_path, monkeypatch):
    for number, text in enumerate(["Model: \t\t NVIDIA H200\nIRQ: 7\n", "IRQ: 8\n"]):
        folder = tmp_path / f"0000:0{number}:00.0"
        folder.mkdir()
        (folder / "information").write_text(text)
    monkeypatch.setattr(accelerators, "Path", lambda given: tmp_path)
    assert visible_gpus() == ["NVIDIA H200", "GPU"]
    monkeypatch.setattr(accelerators, "Path", lambda given: tmp_path / "absent")
    assert visible_gpus() == []
