"""Which GPUs a machine shows, on a stub nvidia-smi: CUDA_VISIBLE_DEVICES counts, and odd values are no traceback."""

import psutil
import pytest

from stages.parts.run import machine as machines
from stages.parts.run.errors import UserError
from stages.parts.run.machine import MIB, visible_gpus
from tests.gpus import A100, H100, stub_nvidia_smi


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A maker of machines: GPUs of nvidia-smi, and what CUDA_VISIBLE_DEVICES is."""

    def with_gpus(*gpus: str, visible: str | None = None, **stub: str) -> None:
        for name, value in stub_nvidia_smi(tmp_path / "bin", *gpus, **stub).items():
            monkeypatch.setenv(name, value)
        if visible is None:
            monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        else:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)

    return with_gpus


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        (None, [0, 1, 2]),
        ("1", [1]),
        ("2,0", [2, 0]),
        (" 2 , 0 ", [2, 0]),
        ("GPU-bbbb-1111", [1]),
        ("GPU-cc,GPU-aa", [2, 0]),
        ("0,7,1", [0]),  # CUDA ignores what follows an entry that names nothing
        ("1,-1,0", [1]),
    ],
)
def test_cuda_visible_devices_counts_as_for_cuda(machine, visible, expected):
    machine(H100, A100, H100, visible=visible)
    assert [gpu.index for gpu in visible_gpus()] == expected


@pytest.mark.parametrize("visible", ["", "-1", "NoDevFiles", "7", "GPU-zzzz", "MIG-aaaa"])
def test_a_value_that_hides_all_gpus_is_named(machine, visible):
    machine(H100, visible=visible)
    with pytest.raises(UserError, match=f"CUDA_VISIBLE_DEVICES='{visible}' shows none of this machine's GPUs"):
        visible_gpus()


@pytest.mark.parametrize(
    ("script", "cause"),
    [
        ("exit 9", "it ends with code 9"),
        ("echo No devices were found >&2; exit 6", "No devices were found"),
        ("echo Failed to initialize NVML: Driver/library version mismatch; exit 18", "version mismatch"),
        ("printf '\\377\\n'; exit 1", "\ufffd"),
        ("true", "finds none"),
        ("printf '\\377garbage\\n'", "finds none"),
        ("exec sleep 9", "does not answer within 1 s"),
    ],
)
def test_no_gpu_is_one_line_with_the_cause_that_nvidia_smi_names(machine, monkeypatch, script, cause):
    monkeypatch.setattr(machines, "SMI_S", 1)
    machine(script=script)
    with pytest.raises(UserError, match="needs an NVIDIA GPU") as refused:
        visible_gpus()
    assert cause in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize("visible", ["0,0", "1,0,1", "0,GPU-aaaa"])
def test_a_gpu_that_is_named_twice_is_not_counted_twice(machine, visible):
    machine(H100, A100, visible=visible)
    with pytest.raises(UserError, match=f"CUDA_VISIBLE_DEVICES='{visible}' names a GPU twice"):
        visible_gpus()


def test_memory_capability_and_driver_are_read(machine):
    machine(A100)
    [gpu] = visible_gpus()
    assert (gpu.memory, gpu.free) == (81920 * MIB, 81000 * MIB)
    assert (gpu.capability, gpu.driver, gpu.name) == ((8, 0), "580.65.06", "NVIDIA A100-SXM4-80GB")


@pytest.mark.parametrize("value", ["[N/A]", "[Not Supported]"])
def test_a_gpu_that_shares_the_processors_memory_has_all_of_it(machine, value):
    machine(f"NVIDIA GB10, {value}, {value}, 12.1, 580.65.06, [N/A]")
    [gpu] = visible_gpus()
    assert gpu.memory == psutil.virtual_memory().total and gpu.capability == (12, 1)


def test_a_broken_gpu_is_one_line(machine):
    machine("NVIDIA H100, [Unknown Error], [Unknown Error], 9.0, 580.65.06, Disabled")
    with pytest.raises(UserError, match=r"nvidia-smi reports \[Unknown Error\] as the memory of GPU 0"):
        visible_gpus()


SLICES = """GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-aaaa-1111)
  MIG 1g.10gb     Device  0: (UUID: MIG-1111-aaaa)
  MIG 3g.40gb     Device  1: (UUID: MIG-2222-bbbb)"""
MIG = H100.replace("Disabled", "Enabled")


@pytest.mark.parametrize(
    ("visible", "gib"), [(None, 9.5), ("0", 9.5), ("MIG-2222", 38.0), ("MIG-2222-bbbb,MIG-1111-aaaa", 38.0)]
)
def test_a_slice_has_its_own_memory(machine, visible, gib):
    machine(MIG, visible=visible, slices=SLICES)
    first = visible_gpus()[0]
    assert first.is_slice and first.memory == pytest.approx(gib * 2**30)


def test_a_whole_gpu_comes_before_a_slice(machine):
    machine(MIG, A100, slices=SLICES)
    assert [(gpu.index, gpu.is_slice) for gpu in visible_gpus()] == [(1, False)]


def test_mig_mode_without_slices_shows_nothing(machine):
    machine(MIG, slices=SLICES.splitlines()[0])
    with pytest.raises(UserError, match="needs an NVIDIA GPU"):
        visible_gpus()
