"""The kinds of engines there are."""

from stages.parts.engines.engine import EngineKind
from stages.parts.engines.vllm import Vllm

OWN_KIND: EngineKind = Vllm()
"""What the stages and the service start, and what an engine at engine.api_base is."""
