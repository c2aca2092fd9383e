"""One training over many devices: `accelerate launch` of a stage, with the configurations in accelerate/ beside this
file.
"""

import importlib.util
import subprocess
import sys
from pathlib import Path

import torch

from stages.parts.run.errors import UserError
from stages.parts.run.machine import dying_with_parent

CONFIGURATIONS = Path(__file__).parent / "accelerate"
REHEARSAL = 2  # processes on a machine without a GPU (gloo), where this only shows that it works


def launch(kind: str, module: str) -> None:
    """Run `python -m module` in a process for each GPU, or two on a CPU, and wait; raises UserError where it can't or
    one of them fails.
    """
    gpus = torch.cuda.device_count()
    if not gpus and kind != "ddp":
        raise UserError(
            f"runtime.parallel {kind} needs GPUs and there is none: use none, or ddp, which also runs on a CPU"
        )
    if kind == "zero3" and importlib.util.find_spec("deepspeed") is None:
        raise UserError(
            "runtime.parallel zero3 needs DeepSpeed, which the locks leave out: .venv/bin/pip install deepspeed, "
            "or use fsdp"
        )
    line = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(CONFIGURATIONS / f"{kind}.yaml")]
    line += ["--num_processes", str(gpus or REHEARSAL), "--main_process_port", "0", "-m", module]
    with subprocess.Popen([*dying_with_parent(), *line]) as processes:
        try:
            code = processes.wait()
        except BaseException:
            processes.terminate()
            raise
    if code:
        raise UserError(f"a process of the parallel training failed with code {code}; what it said stands above")
