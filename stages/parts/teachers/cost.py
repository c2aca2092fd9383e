"""What a hosted teacher's tokens cost."""

import os

from stages.parts.engines.budget import Price
from stages.parts.run.params import HostedTeacherSettings


def known_price(settings: HostedTeacherSettings) -> Price | None:
    """The price in params.yaml, or DSPy's table's, which comes with DSPy and is as old as it; None where neither knows
    the model.
    """
    if settings.price:
        return Price(settings.price.prompt, settings.price.completion)
    # else it would download a newer one, or wait for a network that is not there
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
    from dspy.clients.model_metadata import model_info, rate

    provider, _, model = settings.model.partition("/")
    known = model_info(provider, model)
    prompt, completion = rate(known, "input_cost_per_token"), rate(known, "output_cost_per_token")
    return None if prompt is None or completion is None else Price(1e6 * prompt, 1e6 * completion)
