"""The command line: each verb parses its arguments, calls one function and prints. Errors are caught here only."""

from __future__ import annotations

import os
import sys
import tempfile
import traceback
from typing import Any

import typer
from typer.core import TyperGroup

from mmsweep.cli import inputs, results, train
from mmsweep.ending import exit_code, print_interrupted
from mmsweep.errors import UserError


class _Carried(Exception):
    """Carries KeyboardInterrupt and EOFError to `main`; Typer would turn both into its own exit."""


class _Verbs(TyperGroup):
    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (KeyboardInterrupt, EOFError) as end:
            raise _Carried from end


app = typer.Typer(
    cls=_Verbs,
    add_completion=True,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Which configuration keeps working when a modality is missing: sweeps with Ray, Optuna and MLflow.",
)
for verb in (train.tune, train.train, results.evaluate, results.report, results.show, results.best):
    app.command()(verb)
app.command()(inputs.validate)
app.command()(inputs.init)
app.command()(train.submit)
app.command("list")(inputs.list_components)
app.add_typer(inputs.data, name="data")


def main() -> None:
    """Run the command line; exits with 0, 1 (a failure), 2 (wrong input), or 130, 143 or 129 (a signal)."""
    try:
        code = app(standalone_mode=False)
    except UserError as problem:
        print(f"mmsweep: {problem}", file=sys.stderr)
        sys.exit(2)
    except typer.Exit as end:
        sys.exit(end.exit_code)
    except (_Carried, KeyboardInterrupt, typer.Abort) as end:
        if isinstance(end.__cause__, EOFError):
            sys.exit(_unexpected(end.__cause__))
        print_interrupted(sys.argv[1:])
        sys.exit(exit_code(end.__cause__ or end))
    except OSError as problem:  # a full or missing disk, or an impossible path
        file = f"{problem.filename}: " if problem.filename is not None else ""
        print(f"mmsweep: {file}{problem.strerror or problem}", file=sys.stderr)
        sys.exit(1)
    except Exception as problem:
        if not hasattr(problem, "format_message"):
            sys.exit(_unexpected(problem))
        if not problem.format_message():  # without a verb, the help was printed
            sys.exit(2)
        print(f"mmsweep: {problem.format_message()}", file=sys.stderr)
        sys.exit(2)
    sys.exit(code if isinstance(code, int) else 0)


def _unexpected(problem: Exception) -> int:
    """Print an unexpected error in one line with the path of its traceback; with $MMSWEEP_DEBUG, raise it."""
    if os.environ.get("MMSWEEP_DEBUG"):
        raise problem
    reason = " ".join(str(problem).split())[:300]
    with tempfile.NamedTemporaryFile("w", prefix="mmsweep-", suffix=".log", delete=False, encoding="utf-8") as file:
        file.writelines(traceback.format_exception(problem))
    print(f"mmsweep: {type(problem).__name__}: {reason or 'no reason given'} (traceback: {file.name})", file=sys.stderr)
    return 1
