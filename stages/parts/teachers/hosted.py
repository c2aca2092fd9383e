"""A hosted teacher behind OpenAI's protocol: its address, its name there, its key, and the price of its tokens."""

import os
import re

from stages.parts.engines.budget import Price
from stages.parts.engines.endpoint import HostedEndpoint
from stages.parts.engines.engine import ServedModel
from stages.parts.run.errors import UserError
from stages.parts.run.params import HostedTeacherSettings

KEY_NAME = "TEACHER_API_KEY"
# Providers by DSPy's names, and the address at which each speaks OpenAI's protocol.
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


def hosted_model(settings: HostedTeacherSettings) -> ServedModel:
    """Return where and under which name the model is served; raises UserError without a key or an address."""
    key = os.environ.get(KEY_NAME, "").strip()  # files and secrets end in a line end
    if not key:
        raise UserError(f"the api profile needs its teacher's key: set {KEY_NAME}")
    if not re.fullmatch(r"[!-~]+", key):
        raise UserError(f"{KEY_NAME} holds a blank or a character that no key has: set it anew")
    provider, _, name = settings.model.partition("/")
    known = provider in ADDRESSES or provider == "hosted_vllm"
    api_base = settings.api_base or ADDRESSES.get(provider)
    if not api_base:
        raise UserError(
            f"teacher.model {settings.model}: its address is not known: set teacher.api_base, or begin the name with "
            f"one of {', '.join(ADDRESSES)} and a slash"
        )
    return ServedModel(api_base.rstrip("/"), {"base": name if known else settings.model}, key, HostedEndpoint(KEY_NAME))


def check_votes(settings: HostedTeacherSettings) -> None:
    """Raise UserError for votes that could only repeat one answer."""
    if settings.votes == 1:
        return
    if "seed" in settings.options:
        raise UserError("teacher.votes: votes differ by their seed: remove it from teacher.options, or set votes to 1")
    if settings.options.get("temperature") == 0:
        raise UserError(
            "teacher.votes: votes at temperature 0 are alike: remove it from teacher.options, or set votes to 1"
        )


def known_price(settings: HostedTeacherSettings) -> Price | None:
    """Return the price in params.yaml, else the one in DSPy's table; None if neither has the model.

    The table comes with DSPy and is as old as the installed version.
    """
    if settings.price:
        return Price(settings.price.prompt, settings.price.completion)
    # Else DSPy downloads a newer table, and waits where there is no network.
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
    from dspy.clients.model_metadata import model_info, rate

    provider, _, model = settings.model.partition("/")
    entry = model_info(provider, model)
    prompt, completion = rate(entry, "input_cost_per_token"), rate(entry, "output_cost_per_token")
    return None if prompt is None or completion is None else Price(1e6 * prompt, 1e6 * completion)
