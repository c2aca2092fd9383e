"""One classifier replica on a Ray of its own, for tests/bench/serve.py; runs where params.yaml and models/ are.

python -m tests.bench.ray_classifier --api-base http://127.0.0.1:8001/v1 --port 8000
"""

import argparse
import threading
from pathlib import Path

import ray
from ray import serve
from ray.serve.config import HTTPOptions

from serve.ray_serve.apps import RayEndpoint, classifier
from stages.parts.run.machine import end_on_sigterm

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--api-base", required=True)
    parser.add_argument("--port", type=int, required=True)
    given = parser.parse_args()
    end_on_sigterm()
    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False)
    try:
        serve.start(http_options=HTTPOptions(port=given.port))
        app = classifier(RayEndpoint(folder=str(Path.cwd()), api_base=given.api_base, open=False))
        app._bound_deployment = app._bound_deployment.options(max_ongoing_requests=512)  # as in serve/deploy/ray.yaml
        serve.run(app, route_prefix="/")
        threading.Event().wait()
    finally:
        serve.shutdown()
        ray.shutdown()
