"""The documentation against the code: every command, link, path and parameter that a README names exists."""

import re
import shlex
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml
from dvc.cli import parse_args

from stages.parts.run.params import Params, parse_params
from tests.conftest import ROOT, tracked_files
from tests.run.test_pipeline_file import set_param

READMES = [path for path in tracked_files() if path.suffix == ".md" and "templates" not in path.parts]
MAKEFILE = (ROOT / "Makefile").read_text()
VALUES = yaml.safe_load((ROOT / "params.yaml").read_text())
CHECKED = {"make", "dvc", "python", "python3", "pip", "."}
FROM_OUTSIDE = {"aws", "curl", "docker", "git", "kubectl", "openssl", "apt-get", "promtool", "vllm", "hf", "export"}
FROM_OUTSIDE |= {"serve"}  # of Ray
PIP_INSTALL = r"(\.venv[\w-]*)/bin/(?:python -m )?(pip install [^`\n]*)"


def blocks(text: str) -> Iterator[str]:
    """The lines of code blocks: fenced ones, of consoles those behind the prompt, and indented ones."""
    for language, block in re.findall(r"```(\w*)\n(.*?)```", text, re.DOTALL):
        if language == "console":
            yield from (line.removeprefix("$ ") for line in block.splitlines() if line.startswith("$ "))
        elif language in ("sh", "bash"):
            yield from block.splitlines()
    outside = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    yield from (line.strip() for line in outside.splitlines() if re.match(r" {4}\S", line))


def commands(text: str) -> Iterator[list[str]]:
    """The commands of a README's code blocks, as words, without the variables before them."""
    joined = re.sub(r"\\\n\s*", " ", text)
    for line in blocks(joined):
        line = re.sub(r"(^|\s)#.*", "", line)
        words = shlex.split(re.sub(r"\s*(&&|;|\|)\s*", " && ", line))
        command: list[str] = []
        for word in [*words, "&&"]:
            if word == "&&":
                if command:
                    yield command
                command = []
            elif command or not re.match(r"[A-Z_]+=", word):
                command.append(word)


COMMANDS = [(readme, command) for readme in READMES for command in commands((ROOT / readme).read_text())]


def named(program: str) -> list[tuple[Path, list[str]]]:
    return [(readme, command) for readme, command in COMMANDS if Path(command[0]).name == program]


def check_change(change: str) -> Params:
    """Parameters with one change, as `-S` makes it; raises UserError where it is none."""
    values = yaml.safe_load((ROOT / "params.yaml").read_text())
    set_param(values, change.split(",")[0])
    return parse_params(values)


def test_there_are_commands_of_each_kind():
    """Guards the reading itself: a README whose blocks are not found would pass everything below."""
    assert len(named("make")) > 15 and len(named("dvc")) > 15 and len(named("python")) > 5


@pytest.mark.parametrize("readme", READMES, ids=str)
def test_programs_are_known(readme):
    """A misspelt program is not skipped in silence."""
    for found, command in COMMANDS:
        assert found != readme or (Path(command[0]).name or command[0]) in CHECKED | FROM_OUTSIDE, command


def test_make_targets_and_their_variables_exist():
    for readme, (_, *words) in named("make"):
        for word in words:
            name, is_variable, _ = word.partition("=")
            if is_variable:
                assert f"$({name}" in MAKEFILE or f"({name})" in MAKEFILE or f",{name}" in MAKEFILE, (readme, word)
            elif name != "bench-*":
                assert re.search(rf"^{re.escape(name)}:.*## ", MAKEFILE, re.MULTILINE), f"{readme}: make {word}"


def test_dvc_takes_its_commands_and_changes_name_parameters():
    for readme, (_, *words) in named("dvc"):
        args = parse_args([word for word in words if word != "…"])
        for change in getattr(args, "set_param", None) or []:
            assert check_change(change), f"{readme}: -S {change}"


def source_of(module: str) -> str:
    """The source of what `python -m` runs, with that of the modules beside it, which may parse the arguments."""
    spec = find_spec(module)
    assert spec and spec.origin, f"there is no module {module}"
    if spec.submodule_search_locations:
        spec = find_spec(f"{module}.__main__")
        assert spec and spec.origin, f"{module} is no command"
    return Path(spec.origin).read_text()


def test_modules_and_their_flags_exist():
    for readme, (_, *words) in [*named("python"), *named("python3")]:
        if words[:1] != ["-m"] or words[1] in ("venv", "pytest", "pip"):
            continue
        source = source_of(words[1])
        for flag in (word.partition("=")[0] for word in words[2:] if word.startswith("--")):
            assert f'"{flag}"' in source, f"{readme}: {words[1]} has no {flag}"


def pins(lock: str) -> dict[str, str]:
    return dict(re.findall(r"^([\w.-]+)==(\S+)", (ROOT / lock).read_text(), re.MULTILINE))


def test_no_optional_install_changes_a_package_of_the_environment():
    """What a reader installs must not break what the next line has them run: it has an environment of its own, or a
    lock that agrees with the environment's.
    """
    for readme in READMES:
        for python, line in re.findall(PIP_INSTALL, (ROOT / readme).read_text()):
            if python == ".venv":
                [lock] = re.findall(r"-r (requirements-\w+\.lock)", line) or pytest.fail(f"{readme}: {line}")
                own, added = pins("requirements-cpu.lock"), pins(lock)
                changed = {name for name in own.keys() & added if own[name] != added[name]}
                # aiobotocore pins it; boto3 is here for vLLM's own downloads, which nothing uses
                assert changed <= {"botocore"}, f"{readme}: {lock}"
    optional = re.findall(r"(\S+)/bin/python -m pip.*-r (requirements-\S+)", MAKEFILE)
    assert {lock: python for python, lock in optional} == {
        "requirements-$*.lock": "@.venv-$*",
        "requirements-tracking.lock": "@.venv-tracking",
    }, "make installs them beside .venv, never into it"


def test_requirements_and_folders_in_commands_exist():
    for readme, command in COMMANDS:
        for word in command:
            if re.match(r"(requirements-|serve/deploy/|tests/|stages/)\S+", word):
                assert (ROOT / word.partition("::")[0]).exists(), f"{readme}: {' '.join(command)}"


def anchor(heading: str) -> str:
    """GitHub's anchor of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("readme", READMES, ids=str)
def test_links_lead_somewhere(readme):
    for target in re.findall(r"\]\(([^)\s]+)\)", (ROOT / readme).read_text()):
        if "://" in target:
            continue
        path, _, fragment = target.partition("#")
        file = (ROOT / readme).parent / path if path else ROOT / readme
        assert file.exists(), f"{readme}: {target}"
        if fragment:
            text = (file / "README.md" if file.is_dir() else file).read_text()
            assert fragment in map(anchor, re.findall(r"^#+ (.*)$", text, re.MULTILINE)), f"{readme}: {target}"


def has_parameter(block: str, key: str) -> bool:
    """Whether params.yaml has `block.key`, at the top or in a profile."""
    holders = [VALUES, *VALUES["profiles"].values()]
    return any(isinstance(holder.get(block), dict) and key in holder[block] for holder in holders)


@pytest.mark.parametrize("readme", READMES, ids=str)
def test_parameters_exist(readme):
    """`block.key` between backticks, where block is one of params.yaml; notes tell of other days."""
    if readme.name == "NOTES.md":
        pytest.skip("entries keep the names of their day")
    words = {*VALUES, *VALUES["profiles"]["api"]} - {"profiles", "report", "serve"} | {"report", "serve"}
    for block, key in re.findall(r"`(\w+)\.([a-z_]+)[`:=]", (ROOT / readme).read_text()):
        if block in words and key not in ("py", "json", "md", "yaml", "csv", "jsonl", "many", "batch", "app"):
            assert has_parameter(block, key), f"{readme}: there is no {block}.{key} in params.yaml"
