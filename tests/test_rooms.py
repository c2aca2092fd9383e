"""The house: imports point one way, each file belongs to a room and says what it is, each type has its own name."""

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from tests.conftest import ROOT

PARTS = ROOT / "stages/parts"
BELOW = {"run", "task", "data", "engines"}
# Room -> the rooms it may import from.
KNOWS = {
    "run": {"run"},
    "task": {"run", "task"},
    "data": {"run", "task", "data"},
    "engines": BELOW,
    "weights": {"run", "weights"},
    "encoder": {"run", "task", "weights", "encoder"},
    "teachers": BELOW | {"weights", "encoder", "teachers"},
    "students": BELOW | {"encoder", "numbers", "students"},
    "training": {"run", "training"},
    "numbers": {"run", "task", "data", "encoder", "numbers"},
    "tracking": BELOW | {"numbers", "students", "tracking"},
    "traffic": BELOW | {"teachers", "students", "numbers", "encoder", "traffic"},
    "review": {"run", "task", "data", "encoder", "numbers", "review"},
    "preflight": BELOW | {"weights", "students", "teachers", "preflight"},
    "tuning": BELOW | {"encoder", "weights", "teachers", "numbers", "preflight", "tuning"},
}


def product_files() -> Iterator[Path]:
    for top in ("stages", "serve"):
        yield from (ROOT / top).rglob("*.py")


def imported_modules(file: Path) -> set[str]:
    """The modules of this project that a file imports, dotted."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if (
            isinstance(node, ast.ImportFrom)
            and node.module
            and node.module.split(".")[0] in ("stages", "serve", "tests")
        ):
            for alias in node.names:
                inner = ROOT / node.module.replace(".", "/") / f"{alias.name}.py"
                found.add(f"{node.module}.{alias.name}" if inner.exists() else node.module)
    return found


def test_rooms_know_only_the_rooms_before_them():
    assert {path.name for path in PARTS.iterdir() if path.is_dir() and not path.name.startswith("_")} == set(KNOWS)
    assert {path.name for path in PARTS.glob("*.py")} == {"__init__.py"}
    for room, known in KNOWS.items():
        for file in (PARTS / room).rglob("*.py"):
            for module in imported_modules(file):
                top, inner, *rest = module.split(".")
                assert (top, inner) == ("stages", "parts") and (not rest or rest[0] in known), (
                    f"{file.relative_to(ROOT)} imports {module}"
                )


def named_paths(file: Path) -> set[str]:
    """The strings of a file, but for docstrings, that begin with a folder of the repository that stands above parts."""
    tree = ast.parse(file.read_text())
    documentation = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
        and isinstance(node.body[0], ast.Expr)
    }
    strings = {
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documentation
    }
    return {text for text in strings if re.match(r"(serve|tests)[/.]\w", text)}


def test_rooms_name_no_file_above_them():
    """A path or a module in a string is an import that the test above can't see."""
    assert {str(file): found for file in PARTS.rglob("*.py") if (found := named_paths(file))} == {}


def test_stages_know_parts_alone_and_serve_knows_no_stage():
    for file in [*(ROOT / "stages").glob("*.py"), *(ROOT / "serve").rglob("*.py")]:
        allowed = ("stages.parts",) if file.parent.name == "stages" else ("stages.parts", "serve")
        for module in imported_modules(file):
            assert module.startswith(allowed), f"{file.relative_to(ROOT)} imports {module}"
    core = [module for file in (ROOT / "serve").glob("[a-z]*.py") for module in imported_modules(file)]
    assert not [module for module in core if module.startswith("serve.batch")]


def test_a_type_name_is_defined_once():
    """Classes, and aliases such as `Body = Mapping[str, Any]`."""
    places = defaultdict(list)
    for file in product_files():
        tree = ast.parse(file.read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                places[node.name].append(str(file.relative_to(ROOT)))
        for node in tree.body:
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Subscript | ast.BinOp):
                for name in (target.id for target in node.targets if isinstance(target, ast.Name)):
                    if re.fullmatch(r"[A-Z]\w*[a-z]\w*", name):  # CONSTANTS may repeat
                        places[name].append(str(file.relative_to(ROOT)))
    assert not {name: found for name, found in places.items() if len(found) > 1}


def test_every_file_says_what_it_is():
    silent = [
        str(file.relative_to(ROOT)) for file in product_files() if not ast.get_docstring(ast.parse(file.read_text()))
    ]
    assert not silent
