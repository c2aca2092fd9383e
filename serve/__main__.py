"""Serve the pair that `optimize` chose: vLLM with the adapter, and the program behind POST /classify_intent.

python -m serve [--port 8000]
"""

import argparse
import sys
from pathlib import Path

import uvicorn

from serve.app import create_app
from stages.parts import lm, paths
from stages.parts.errors import UserError
from stages.parts.params import load_params
from stages.parts.program_file import Sidecar, load_program, load_sidecar
from stages.parts.records import folder_sha256
from stages.parts.stage import end_on_sigterm
from stages.parts.vllm_server import HOST, check_port, serve_student


def check_weights(sidecar: Sidecar) -> None:
    """Raise UserError where base or adapter are not those that the program was chosen with."""
    for folder, expected in ((sidecar.base, sidecar.base_sha256), (sidecar.adapter, sidecar.adapter_sha256)):
        if not Path(folder).is_dir():
            raise UserError(f"{folder} is missing: run `dvc repro` or `dvc checkout`")
        if folder_sha256(Path(folder)) != expected:
            raise UserError(f"{folder} is not what {paths.SIDECAR} was made with: run `dvc repro` or `dvc checkout`")


def serve(port: int) -> None:
    params = load_params()
    sidecar = load_sidecar(paths.SIDECAR)
    check_weights(sidecar)
    check_port(port)
    program = load_program(paths.PROGRAM, sidecar.labels, sidecar.instructions, sidecar.style)
    adapter = Path(sidecar.adapter)
    with serve_student(Path(sidecar.base), {adapter.name: adapter}, params, params.profiles[sidecar.profile].student) as served:
        student_lm = lm.student_lm(served.names[adapter.name], served.api_base, sidecar.style)
        with lm.using(student_lm):
            program(query="ready?")  # up means that a real query has passed through
        config = uvicorn.Config(create_app(program, student_lm), host=HOST, port=port, log_level="warning")
        listener = config.bind_socket()
        listener.listen()  # from here on a client may connect, so that the next line is true
        print(f"serving on http://{HOST}:{port}/classify_intent", flush=True)
        uvicorn.Server(config).run(sockets=[listener])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m serve", description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, default=8000, help="port on 127.0.0.1 (default: 8000)")
    end_on_sigterm()
    try:
        serve(parser.parse_args().port)
    except UserError as error:
        sys.exit(f"serve: {error}")


if __name__ == "__main__":
    main()
