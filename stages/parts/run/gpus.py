"""The GPUs of this machine."""

import shutil
import subprocess

from stages.parts.run.errors import UserError


def gpu_memory() -> list[int]:
    """Bytes of memory of each NVIDIA GPU; raises UserError where there is none. Asked before anything large is downloaded."""
    memory: list[int] = []
    if shutil.which("nvidia-smi"):
        query = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
        answer = subprocess.run(query, capture_output=True, text=True, check=False)
        memory = [int(line) * 2**20 for line in answer.stdout.split()] if answer.returncode == 0 else []
    if not memory:
        raise UserError("this profile needs an NVIDIA GPU and nvidia-smi finds none: use profile=embedded, or a machine with GPUs")
    return memory
