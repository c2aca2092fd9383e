"""The service: the chosen pair behind HTTP (http/) and over files (batch/). Imports stages.parts, never the other way.

__main__      `make serve`
service       queries, whatever protocol brings them: a bounded number in flight, counts
student       the chosen pair and the engine that serves it
supervisor    keeps the engine running
answer_cache  predictions that are known already
traffic       what follows a prediction: escalation, kept rows, audits
schemas       requests and responses: the OpenAPI document
export        one folder for vLLM, transformers and the hub
"""
