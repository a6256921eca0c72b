"""What is imported where somebody waits for it: processes that start one after the other must each import little."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.report_factory import make_sweep


def loaded(statement: str) -> set[str]:
    """The modules that a fresh interpreter holds after a statement."""
    code = f"{statement}\nimport sys\nprint('\\n'.join(sys.modules))"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


@pytest.mark.parametrize(
    ("module", "without"),
    [
        ("mmsweep.sweep.train_function", {"torch", "ray", "transformers"}),  # the supervisor unpickles its names
        ("mmsweep.sweep.hosts", {"torch", "transformers"}),  # the supervisor's own
        ("mmsweep.sweep.board", {"torch", "transformers"}),
        ("mmsweep.sweep.trial", {"torch", "transformers"}),
        ("mmsweep.assembly.checks", {"transformers.modeling_utils"}),  # a wrong study is told so soon
        ("mmsweep.sweep.start", {"mlflow", "matplotlib", "optuna", "ray.tune"}),  # imported while Ray starts
    ],
)
def test_little_is_imported_where_somebody_waits(module, without):
    found = loaded(f"import {module}")
    assert module in found and not found & without


@pytest.mark.parametrize("verb", [["--help"], ["show"], ["show", "--json"], ["best"], ["report"]])
def test_what_is_shown_needs_no_torch(verb: list[str], tmp_path: Path) -> None:
    folder = [] if verb == ["--help"] else [str(make_sweep(tmp_path / "s", trials=2))]
    code = f"import sys; sys.argv = {['mmsweep', *verb[:1], *folder, *verb[1:]]!r}; from mmsweep.cli import main\n"
    code += "try:\n    main()\nfinally:\n    print(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout and not set(done.stderr.split()) & {"torch", "ray", "mlflow"}


def test_what_prepares_data_imports_no_network() -> None:
    study = Path(__file__).parents[2] / "search_spaces" / "quickstart.yaml"
    found = loaded(
        "from pathlib import Path; from mmsweep.assembly import build; from mmsweep.study import Study; "
        "build.prepare = lambda builder, formats, *rest, **more: print(*formats); "
        f"build.prepare_data(Study.load(Path({str(study)!r}), []))"
    )
    assert {"image", "text"} <= found and "transformers.modeling_utils" not in found
    package = "mmsweep.models.backbones."
    assert {name for name in found if name.startswith(package)} == {f"{package}dual_encoder"}  # which the study names
