"""The seam to inference engines: what one is (`engine`), its kinds (`vllm`, `sglang`, `endpoint`), how it runs
(`process`, `layout`), how it is asked (`client`, `requests`; for what DSPy runs, `dspy_lm`)."""
