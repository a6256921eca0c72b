"""The verbs that look at what goes in: validate, list, data."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from mmsweep.cli.common import AsJson, Overrides, StudyOrDataset, studying
from mmsweep.cli.printing import out
from mmsweep.components import REGISTRIES
from mmsweep.errors import UserError
from mmsweep.record.files import json_text

data = typer.Typer(no_args_is_help=True, help="Datasets: what there is, what is found, prepare once.")


def validate(
    files: Annotated[list[Path], typer.Argument(help="Study files.", metavar="FILE...")], as_json: AsJson = False
) -> None:
    """Check study files without starting anything; every problem is named with its file, line and key."""
    problems = {}
    for file in files:
        try:
            with studying(file, None) as study:
                from mmsweep.assembly.checks import check_sweep, missing_weights

                check_sweep(study)
                missing = missing_weights(study)
            if not as_json:
                print(f"{file}: ok, {len(study.search)} searched keys")
                for problem in missing:
                    print(f"{file}: not on this machine yet: {problem}")
        except UserError as problem:
            problems[str(file)] = str(problem)
    if as_json:
        print(json_text({str(f): problems.get(str(f)) for f in files}))
    else:
        for text in problems.values():
            print(f"mmsweep: {text}", file=sys.stderr)
    if problems:
        raise typer.Exit(2)


def list_components(
    name: Annotated[str | None, typer.Argument(help="Show this component's options.", metavar="[NAME]")] = None,
    as_json: AsJson = False,
) -> None:
    """List what a study may choose by name (methods, datasets, backbones and so on), or show the options of one."""
    found = {  # a kind whose file another kind's components import joins the registries while they are listed
        registry.noun: [registry.about(component) for component in registry if name in (None, component)]
        for registry in REGISTRIES
    }
    if not any(found.values()):
        raise UserError("no component has this name", key="NAME", found=name, expected="a name of `mmsweep list`")
    if as_json:
        print(json_text(found))
        return
    for noun, components in found.items():
        for about in components:
            out.print(f"[bold]{noun} {about['name']}[/bold]: {escape(about['what'])}")
            for key, option in about["options"].items() if name else ():
                out.print(f"  {key} ({json_text(option['default'])}): {option['what']}", markup=False)


@data.command("list")
def data_list(as_json: AsJson = False) -> None:
    """The datasets that studies may name."""
    from mmsweep.data.options import DATASETS

    cards = [dataset.card() for dataset in DATASETS.values()]
    if as_json:
        print(json_text([asdict(card) for card in cards]))
        return
    for card in cards:
        rows = ", ".join(f"{n} {split}" for split, n in card.rows.items())
        kinds = ", ".join(card.modalities) or "any"
        out.print(f"[bold]{card.name}[/bold]: {card.title}\n  modalities: {kinds}; rows: {rows or 'yours'}")
        out.print(f"  get: {card.get}" + ("" if card.reader else " (not read yet: dry runs only)"), markup=False)


@data.command("check")
def data_check(study_file: StudyOrDataset, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Read a study's dataset (or one by its name: tuxpaint data.root=…) and say what was found and what is missing."""
    from mmsweep.assembly.build import make_builder
    from mmsweep.data.check import check, named_builder

    if (builder := named_builder(str(study_file), overrides or [])) is not None:
        findings = check(builder)
    else:
        with studying(study_file, overrides) as study:
            findings = check(make_builder(study), study.data.on_bad)
    print(json_text(findings) if as_json else "\n".join(findings))
    if any(line.startswith("error: ") for line in findings):
        raise typer.Exit(1)


@data.command("prepare")
def data_prepare(study_file: StudyOrDataset, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Decode a study's dataset once, into the cache that training maps."""
    from mmsweep.assembly.build import prepare_data
    from mmsweep.data.check import named_builder

    if (builder := named_builder(str(study_file), overrides or [])) is not None:
        raise UserError(
            "the data is here; how its rows are prepared depends on a study's encoders",
            found=builder.name,
            expected=f"a study whose data.dataset is {builder.name}",
        )
    with studying(study_file, overrides) as study:
        found = prepare_data(study)
    rows = {name: len(split) for name, split in found.splits.items()}
    if as_json:
        print(
            json_text(
                {
                    "rows": rows,
                    "fingerprint": found.fingerprint,
                    "skipped": len(found.skipped),
                    "folder": str(found.folder),
                }
            )
        )
    else:
        print(f"{', '.join(f'{n} {s}' for s, n in rows.items())} rows in {found.folder} ({len(found.skipped)} skipped)")
