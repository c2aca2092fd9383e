import copy
import re
from typing import Any

import pytest
import yaml

from stages.parts.run.errors import UserError
from stages.parts.run.params import load_params, parse_params
from tests.conftest import ROOT


@pytest.fixture
def values() -> Any:
    return copy.deepcopy(yaml.safe_load((ROOT / "params.yaml").read_text()))


def test_every_profile_is_valid_and_an_empty_value_takes_the_profiles_own(values):
    found = {profile: parse_params({**values, "profile": profile}) for profile in values["profiles"]}
    reasons = "chain_of_thought"
    assert {name: (params.top_n, params.program.style) for name, params in found.items()} == {
        "embedded": (25, "direct"),
        "smollm": (25, "direct"),
        "llama": (25, "direct"),
        "api": (25, "direct"),
        "tutorial": (77, reasons),
    }
    values["program"]["style"], values["top_n"] = reasons, 3
    assert (parse_params(values).program.style, parse_params(values).top_n) == (reasons, 3)


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        (("lora", "rank"), 8, "params.yaml: lora.rank: there is no such parameter"),
        (("lora", "r"), "8", "params.yaml: lora.r: Input should be a valid integer (got '8')"),
        (("report", "cpu_price_per_hour"), float("inf"), "report.cpu_price_per_hour: Input should be a finite number"),
        (("lora", "r"), 0, "params.yaml: lora.r: Input should be greater than 0 (got 0)"),
        (("lora", "r"), True, "params.yaml: lora.r: Input should be a valid integer (got True)"),
        (("profiles", "embedded", "top_n"), "all", "params.yaml: top_n: Input should be a valid integer (got 'all')"),
        (("profile",), "lama", "no profile is called 'lama'; there are embedded, smollm, llama, api, tutorial"),
        (
            ("raw", "source"),
            "cvs",
            "params.yaml: raw.source: Input should be 'sample', 'csv', 'folder', 'url' or 'hub' (got 'cvs')",
        ),
        (
            ("profiles", "llama", "teacher", "weights", "revision"),
            "main",
            "params.yaml: profiles.llama.teacher.weights.revision: String should match",
        ),
        (("raw", "hub", "revision"), "main", "params.yaml: raw.hub.revision: String should match"),
        (
            ("profiles", "embedded", "teacher", "rows"),
            799,
            "embedded.teacher.rows: 799 are too few to hold out 400: make it 800 or more",
        ),
        (
            ("profiles", "llama", "student", "kind"),
            "hub",
            "llama.student is called profiles.llama.student.kind:",
        ),
        (
            ("profiles", "llama", "student", "model"),
            "a/b",
            "is called profiles.llama.student.weights.repository",
        ),
        (
            ("profiles", "llama", "teacher", "revision"),
            "1" * 40,
            "profiles.llama.teacher.weights.revision",
        ),
        (("encoder",), "nune", "params.yaml: encoder: Input should be a valid dictionary"),
        (
            ("profiles", "embedded", "student", "kind"),
            "huge",
            "params.yaml: profiles.embedded.student: Input tag 'huge'",
        ),
    ],
)
def test_a_wrong_parameter_is_one_clear_line(values, path, value, says):
    block = values
    for key in path[:-1]:
        block = block[key]
    block[path[-1]] = value
    with pytest.raises(UserError) as caught:
        parse_params(values)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("path", "says"),
    [
        (("rest",), "rest is called other_labels: rename it"),
        (("runtime", "threads"), "runtime.threads is called runtime.max_in_flight: rename it"),
        (("report", "price_per_hour"), "report.price_per_hour is called report.cpu_price_per_hour: rename it"),
        (
            ("profiles", "embedded", "train", "clip"),
            "profiles.embedded.train.clip is called profiles.embedded.train.max_grad_norm",
        ),
    ],
)
def test_an_old_name_says_the_new_one(values, path, says):
    """In its block, in the profile in force, and in another profile's block once that is in force."""
    block = values
    for key in path[:-1]:
        block = block[key]
    block[path[-1]] = 8
    with pytest.raises(UserError, match=f"^params.yaml: {re.escape(says)}"):
        parse_params(values)


def test_params_of_another_shape_are_one_clear_line(values):
    for change in ({"profile": ["embedded"]}, {"profiles": ["embedded"]}, {"profiles": {"embedded": 3}}, {"lora": 3}):
        with pytest.raises(UserError, match=r"params\.yaml: ") as caught:
            parse_params({**values, **change})
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"\xff", b"[" * 100_000, b"{", b"", b"3"])
def test_a_file_that_is_no_yaml_is_one_clear_line(tmp_path, content):
    (tmp_path / "params.yaml").write_bytes(content)
    with pytest.raises(UserError) as caught:
        load_params(tmp_path / "params.yaml")
    assert "params.yaml" in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(UserError, match="is a folder"):
        load_params(tmp_path)


def test_a_missing_parameter_is_named(values):
    del values["train"]["method"]
    with pytest.raises(UserError, match=r"train\.method: it is missing"):
        parse_params(values)
