"""A hosted teacher behind OpenAI's protocol: where it is, under which name, with which key."""

import os

from stages.parts.engines.endpoint import HostedEndpoint
from stages.parts.engines.engine import ServedModel
from stages.parts.run.errors import UserError
from stages.parts.run.params import HostedTeacherSettings

KEY_NAME = "TEACHER_API_KEY"
# Providers, by DSPy's names, and where each of them speaks OpenAI's protocol.
ADDRESSES = {
    "openai": "https://api.openai.com/v1",
    "anthropic": "https://api.anthropic.com/v1",
    "gemini": "https://generativelanguage.googleapis.com/v1beta/openai",
    "mistral": "https://api.mistral.ai/v1",
    "deepseek": "https://api.deepseek.com/v1",
    "groq": "https://api.groq.com/openai/v1",
    "openrouter": "https://openrouter.ai/api/v1",
    "together_ai": "https://api.together.xyz/v1",
}


def hosted(settings: HostedTeacherSettings) -> ServedModel:
    """A hosted model; raises UserError without a key, or an address."""
    key = os.environ.get(KEY_NAME)
    if not key:
        raise UserError(f"the api profile needs its teacher's key: set {KEY_NAME}")
    provider, _, name = settings.model.partition("/")
    known = provider in ADDRESSES or provider == "hosted_vllm"
    api_base = settings.api_base or ADDRESSES.get(provider)
    if not api_base:
        raise UserError(
            f"teacher.model {settings.model}: where it is served is not known: set teacher.api_base, or begin the "
            f"name with one of "
            f"{', '.join(ADDRESSES)} and a slash"
        )
    return ServedModel(api_base.rstrip("/"), {"base": name if known else settings.model}, key, HostedEndpoint(KEY_NAME))
