"""The verbs for a study's inputs: validate, list, data."""

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

data = typer.Typer(no_args_is_help=True, help="List, check and prepare datasets.")


def validate(
    files: Annotated[list[Path], typer.Argument(help="Study files.", metavar="FILE...")], as_json: AsJson = False
) -> None:
    """Check study files; every problem is printed with its file, line and key. Nothing is started."""
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
    """List the components that a study may choose (methods, datasets, backbones and so on), or one's options."""
    kinds = {  # importing components may add to REGISTRIES while it is listed
        registry.noun: [registry.about(component) for component in registry if name in (None, component)]
        for registry in REGISTRIES
    }
    if not any(kinds.values()):
        raise UserError("no component has this name", key="NAME", found=name, expected="a name of `mmsweep list`")
    if as_json:
        print(json_text(kinds))
        return
    for noun, components in kinds.items():
        for about in components:
            out.print(f"[bold]{noun} {about['name']}[/bold]: {escape(about['what'])}")
            for key, option in about["options"].items() if name else ():
                out.print(f"  {key} ({json_text(option['default'])}): {option['what']}", markup=False)


@data.command("list")
def data_list(as_json: AsJson = False) -> None:
    """List the datasets that a study may choose."""
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
    """Read a study's dataset, or one by its name (tuxpaint data.root=…), and print what is present and missing."""
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
    """Decode a study's dataset once, into the cache that training reads."""
    from mmsweep.assembly.build import prepare_data
    from mmsweep.data.check import named_builder

    if (builder := named_builder(str(study_file), overrides or [])) is not None:
        raise UserError(
            "preparing rows depends on a study's encoders",
            found=builder.name,
            expected=f"a study whose data.dataset is {builder.name}",
        )
    with studying(study_file, overrides) as study:
        prepared = prepare_data(study)
    rows = {name: len(split) for name, split in prepared.splits.items()}
    skipped, folder = len(prepared.skipped), str(prepared.folder)
    if as_json:
        facts = {"rows": rows, "fingerprint": prepared.fingerprint, "skipped": skipped, "folder": folder}
        print(json_text(facts))
    else:
        print(f"{', '.join(f'{n} {s}' for s, n in rows.items())} rows in {folder} ({skipped} skipped)")
