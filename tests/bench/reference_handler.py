"""The reference's handler, as its template has it: the synchronous DSPy program inside an async handler.

python -m tests.bench.reference_handler --port 8002 --api-base http://127.0.0.1:8001/v1 --model NAME --key KEY
"""

import argparse

import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel

from stages.parts.engines.dspy_bridge import using_student
from stages.parts.engines.engine import ServedModel
from stages.parts.engines.process import KINDS
from stages.parts.run import paths
from stages.parts.task.program import IntentClassifier
from stages.parts.task.program_file import Sidecar, load_program, load_sidecar


class Query(BaseModel):
    query: str


def create_app(program: IntentClassifier, sidecar: Sidecar, served: ServedModel) -> FastAPI:
    app = FastAPI()

    @app.post("/classify_intent")
    async def classify_intent(query: Query) -> dict[str, str]:
        with using_student(served, "student", program, sidecar.max_tokens):
            return {"label": program(query=query.query).label}

    return app


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, required=True)
    for name in ("--api-base", "--model", "--key"):
        parser.add_argument(name, required=True)
    given = parser.parse_args()
    sidecar = load_sidecar(paths.SIDECAR)
    program = load_program(paths.PROGRAM, sidecar.labels, sidecar.instructions, sidecar.style)
    served = ServedModel(given.api_base, {"student": given.model}, given.key, KINDS["vllm"])
    # While it answers one query it hangs up on clients whose connection idles: a long keep-alive spares it that.
    uvicorn.run(
        create_app(program, sidecar, served),
        host="127.0.0.1",
        port=given.port,
        log_level="warning",
        timeout_keep_alive=600,
    )
