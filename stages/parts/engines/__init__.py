"""The seam to inference engines, one file a subject.

engine          what an engine is: launch, kind, served model; the protocol that vllm, sglang and endpoint implement
vllm, sglang    kinds that this project starts; vllm_guard and sglang_server run in those engines' own processes
endpoint        models that others serve behind OpenAI's protocol, and their words for errors
layout          how a model is laid over GPUs
process         an engine's process: start, health, end; the registry of kinds
errors          the tree of errors
http_client     one request over HTTP
completions     the answer in a response, in one form whatever a vendor sends
requests        a program's requests, the predictions in completions, and a row's outcome
rate_limit      requests in flight and a minute
budget          tokens and dollars spent, and the limit on them
caching_client  many requests: stored answers, retries, rate limit and budget together
batch_api       vendors' batch APIs
dspy_bridge     the same engines as DSPy language models
"""
