"""The kinds of engines there are, by the names that params.yaml gives them."""

from collections.abc import Mapping

from stages.parts.engines.engine import EngineKind
from stages.parts.engines.sglang import Sglang
from stages.parts.engines.vllm import Vllm
from stages.parts.run.params import EngineName

KINDS: Mapping[EngineName, EngineKind] = {"vllm": Vllm(), "sglang": Sglang()}
