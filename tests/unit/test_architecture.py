"""The house of DESIGN §3, held by reading the source: imports point down, and each library has one home."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

import mmsweep

ROOT = Path(mmsweep.__file__).parent
# Bottom to top. A part may import the floors below its own, and parts of its own floor as long as no circle closes.
FLOORS = [
    {"__init__", "components", "ending", "environment_faults", "errors", "transfer"},
    {"availability", "record", "tasks"},  # tasks below data: a dataset says which task its target is for
    {"data", "models"},
    {"readers"},  # DESIGN §3 has them above assembly; so low they import no study, and `check` may ask for an address
    {"methods"},
    {"study"},
    {"training"},
    {"assembly"},
    {"sweep"},
    {"cli"},
    {"__main__"},
]
LONGEST_FILE = 400
FILES = sorted(ROOT.rglob("*.py"))
BESIDE = sorted(path for part in ("tests", "benchmarks", "scripts") for path in (ROOT.parent / part).rglob("*.py"))


@dataclass(frozen=True)
class Import:
    file: str
    line: int
    module: str

    @property
    def library(self) -> str:
        return self.module.split(".")[0]


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(path: Path) -> Iterator[Import]:
    """Every import of a file, inside functions too; `from a import b` counts as a.b, since b may be a module."""
    name = str(path.relative_to(ROOT))
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (Import(name, node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}:{node.lineno}: a relative import"
            yield from (Import(name, node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def part_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported_part(found: Import) -> str | None:
    """The part of mmsweep that an import names; None for other libraries."""
    if found.library != "mmsweep":
        return None
    name = [*found.module.split("."), "__init__"][1]
    return name if (ROOT / name).is_dir() or (ROOT / f"{name}.py").exists() else "__init__"


def floor(part: str) -> int:
    return next(height for height, parts in enumerate(FLOORS) if part in parts)


def edges() -> dict[str, set[str]]:
    """Which parts each part imports, itself left out."""
    found: dict[str, set[str]] = {part_of(path): set() for path in FILES}
    for path in FILES:
        found[part_of(path)] |= {p for i in imports(path) if (p := imported_part(i))} - {part_of(path)}
    return found


def circle(graph: dict[str, set[str]]) -> list[str]:
    """A circle of a graph, or nothing."""
    free: set[str] = set()

    def walk(node: str, path: list[str]) -> list[str]:
        if node in path:
            return [*path[path.index(node) :], node]
        if node in free:
            return []
        for other in sorted(graph.get(node, ())):
            if closed := walk(other, [*path, node]):
                return closed
        free.add(node)
        return []

    return next((c for node in sorted(graph) if (c := walk(node, []))), [])


def test_every_part_has_its_floor() -> None:
    parts = {part_of(path) for path in FILES}
    known = set().union(*FLOORS)
    assert parts - known == set(), "say in FLOORS (and DESIGN §3) where these belong"
    assert {
        "data",
        "models",
        "methods",
        "training",
        "sweep",
        "cli",
        "study",
    } <= parts  # the test reads the real package


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_down(path: Path) -> None:
    own = part_of(path)
    upward = [
        f"{found.file}:{found.line} imports {found.module}"
        for found in imports(path)
        if (other := imported_part(found)) and other != own and floor(other) > floor(own)
    ]
    assert upward == []


def test_no_circles_between_parts() -> None:
    assert circle(edges()) == []
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"a"}}) == ["a", "b", "c", "a"]  # the finder finds


def test_no_circles_between_files() -> None:
    """Imports inside functions count too."""
    names = {".".join(["mmsweep", *path.relative_to(ROOT).with_suffix("").parts]): path for path in FILES}
    names = {name.removesuffix(".__init__"): path for name, path in names.items()}
    graph: dict[str, set[str]] = {}
    for name, path in names.items():
        modules = {found.module for found in imports(path)}
        graph[name] = {m if m in names else m.rpartition(".")[0] for m in modules} & names.keys() - {name}
    assert graph["mmsweep.cli"] and circle(graph) == []


def test_the_record_imports_no_heavy_library() -> None:
    heavy = ("torch", "ray", "mlflow", "optuna", "matplotlib", "transformers")
    using = {i.file.split("/")[0] for path in FILES for i in imports(path) if i.module.startswith(heavy)}
    assert "training" in using and "record" not in using


@pytest.mark.parametrize(("library", "home"), [("ray", "sweep"), ("mlflow", "readers/mlflow")])
def test_a_library_has_one_home(library: str, home: str) -> None:
    using = {i.file for path in FILES for i in imports(path) if i.library == library}
    assert using and all(file.startswith(f"{home}/") for file in using)


def test_nothing_is_unpickled() -> None:
    """No pickle, no torch.load, no YAML loader that builds objects, no np.load that may."""
    wrong = []
    for path in FILES:
        own = path.relative_to(ROOT)
        wrong += [
            f"{i.file}:{i.line} imports {i.module}"
            for i in imports(path)
            if i.library in ("pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal")
        ]
        safe_loaders = {"SafeLoader", "CSafeLoader"} | {
            node.name
            for node in ast.walk(tree(path))
            if isinstance(node, ast.ClassDef) and any(ast.unparse(base).endswith("SafeLoader") for base in node.bases)
        }
        for call in (node for node in ast.walk(tree(path)) if isinstance(node, ast.Call)):
            name = ast.unparse(call.func)
            keywords = {k.arg: ast.unparse(k.value) for k in call.keywords}
            place = f"{own}:{call.lineno} calls {name}"
            if name == "torch.load" or name.startswith(("yaml.unsafe", "yaml.full")):
                wrong.append(place)
            elif name in ("yaml.load", "yaml.load_all", "yaml.compose"):
                if keywords.get("Loader", "").rpartition(".")[2] not in safe_loaders:
                    wrong.append(place)
            elif name in ("np.load", "numpy.load") and keywords.get("allow_pickle") != "False":
                wrong.append(f"{place} without allow_pickle=False")
            elif keywords.get("allow_pickle") == "True" or keywords.get("trust_remote_code") == "True":
                wrong.append(place)
    assert wrong == []


def test_no_file_is_too_long() -> None:
    lines = {
        str(path.relative_to(ROOT.parent)): len(path.read_text(encoding="utf-8").splitlines())
        for path in [*FILES, *BESIDE]
    }
    assert {"mmsweep/cli/train.py", "tests/unit/test_architecture.py", "benchmarks/scenario_cost.py"} <= lines.keys()
    assert {name for name, count in lines.items() if count > LONGEST_FILE} == set()
