"""A stub nvidia-smi: the program that says which GPUs a machine has, for machines that have none."""

import os
import shlex
from pathlib import Path

H100 = "NVIDIA H100 80GB HBM3, 81559, 81000, 9.0, 580.65.06, Disabled"
A100 = "NVIDIA A100-SXM4-80GB, 81920, 81000, 8.0, 580.65.06, Disabled"


def stub_nvidia_smi(folder: Path, *gpus: str, slices: str = "", script: str = "") -> dict[str, str]:
    """Write nvidia-smi for these GPUs and return the environment in which it is found first.

    A GPU is `name, MiB, free MiB, capability, driver, MIG mode`; its index is its place, its UUID GPU-aaaa, GPU-bbbb,
    ... `slices` are the lines that `nvidia-smi -L` prints; `script` replaces all of it.
    """
    rows = []
    for index, gpu in enumerate(gpus):
        name, rest = gpu.split(", ", 1)
        rows.append(f"{index}, GPU-{chr(ord('a') + index) * 4}-1111, {name}, {rest}")
    listing = shlex.quote("\n".join(rows))
    folder.mkdir(parents=True, exist_ok=True)
    program = folder / "nvidia-smi"
    program.write_text(
        "#!/bin/sh\n"
        + (script or f'case "$1" in -L) printf "%s\\n" {shlex.quote(slices)};; *) printf "%s\\n" {listing};; esac')
        + "\n"
    )
    program.chmod(0o755)
    return {"PATH": f"{folder}:{os.environ['PATH']}"}
