"""What the errors of vendors and engines mean, in their own words."""

import json
from types import SimpleNamespace

import pytest

from stages.parts.engines.endpoint import HostedEndpoint, message_in
from stages.parts.engines.http_client import EngineBusy, EngineClient, EngineRefuses, QueryRefused, RequestRefused

CLIENT = EngineClient(None, SimpleNamespace(api_base="http://a/v1", key="k", kind=HostedEndpoint("KEY")))  # type: ignore


def failure(status: int, error: object) -> Exception:
    return CLIENT.failure(status, {}, error if isinstance(error, str) else json.dumps(error), "http://a/v1/chat")


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, {"code": "context_length_exceeded", "message": "Your input exceeds the limit."}),
        (400, {"code": 400, "type": "exceed_context_size_error", "message": "request (8218 tokens) exceeds it"}),
        (400, {"code": 400, "message": "the request exceeds the available context size. try increasing it"}),
        (400, {"code": 400, "message": "The input token count (9) exceeds the maximum number of tokens allowed (8)."}),
        (400, {"type": "invalid_request_error", "message": "prompt is too long: 210000 tokens > 200000 maximum"}),
        (400, {"message": "Please reduce the length of the messages or completion."}),
        (413, {"code": "context_length_exceeded", "message": "too large"}),
        (422, "`inputs` must have less than 4096 tokens. Given: 5000"),
    ],
)
def test_a_prompt_with_too_many_tokens_is_known_by_everybodys_words(status, error):
    for body in (error, {"error": error}, [{"error": error}]):
        assert isinstance(failure(status, body), QueryRefused)


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (402, {"message": "Insufficient Balance"}),
        (429, {"code": "insufficient_quota", "message": "You exceeded your current quota"}),
        (429, {"type": "insufficient_quota", "code": None, "message": "You exceeded your current quota"}),
        (429, {"code": "billing_not_active", "message": "Your account is not active"}),
        (400, {"type": "invalid_request_error", "message": "Your credit balance is too low to access the API."}),
        (403, {"code": 403, "message": "This API method requires billing to be enabled.", "status": "DENIED"}),
    ],
)
def test_no_credit_concerns_every_request(status, error):
    found = failure(status, {"error": error})
    assert isinstance(found, EngineRefuses) and "no credit is left" in str(found)


@pytest.mark.parametrize(
    ("status", "error", "kind"),
    [
        (403, {"code": 403, "message": "Flagged: 'my payment of the billing address failed'"}, RequestRefused),
        (400, {"code": "content_filter", "message": "insufficient balance, billing to be enabled"}, RequestRefused),
        (403, {"code": 403, "message": "Moderation", "metadata": {"input": "insufficient credit"}}, RequestRefused),
        (429, {"code": "rate_limit_exceeded", "message": "Add a payment method: insufficient quota"}, EngineBusy),
        (429, {"code": 429, "message": "Check your plan and billing details.", "status": "EXHAUSTED"}, EngineBusy),
    ],
)
def test_a_message_that_repeats_the_query_or_advertises_stops_no_run(status, error, kind):
    assert type(failure(status, {"error": error})) is kind


def test_a_redirect_names_where_to():
    found = CLIENT.failure(301, {"Location": "https://a/v1/chat/completions"}, "", "http://a/v1/chat/completions")
    said = "http://a/v1/chat/completions redirects to https://a/v1/chat/completions: name that address instead"
    assert isinstance(found, EngineRefuses) and str(found) == said


def test_a_wrong_path_is_named_and_a_web_page_is_shown_by_its_words():
    page = (
        "<html><head><style>p {}</style><title>404 Not\nFound</title></head><body><h1>No such page</h1></body></html>"
    )
    said = "the endpoint has no such model or path: 404 Not Found No such page (at http://a/v1/chat)"
    assert str(failure(404, page)) == said


@pytest.mark.parametrize(
    "body", ["", "[]", "3", "null", '"x"', "[" * 9999, '{"error": null}', '{"error": [1]}', "\x00"]
)
def test_any_body_has_a_message_of_one_line(body):
    assert message_in(body) and "\n" not in message_in(body)
