"""The verbs for a study's inputs: validate, list, data."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from mmsweep.cli.common import AsJson, Overrides, StudyOrDataset, prepared, studying
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


def init(
    manifest: Annotated[Path, typer.Argument(help="A CSV, TSV, JSONL or Parquet file.", metavar="MANIFEST")],
    target: Annotated[str | None, typer.Option(help="The column to predict; guessed unless given.")] = None,
    out_file: Annotated[Path | None, typer.Option("--out", help="The study; default MANIFEST's name, .yaml.")] = None,
) -> None:
    """Write a commented study for your own file, guessing what its columns hold."""
    from mmsweep.assembly.checks import check_sweep
    from mmsweep.data.guess import guess
    from mmsweep.study.starter import starter

    path = out_file or Path(f"{manifest.stem}.yaml")
    if path.exists():
        raise UserError("the file exists already", file=path, hint="Name another with --out")
    guesses = guess(manifest, target)
    text = starter(manifest, path.parent, guesses)
    path.write_text(text, encoding="utf-8")
    try:
        with studying(path, None) as study:
            check_sweep(study)
    except BaseException:  # Ctrl-C too: what lies there has been validated
        path.unlink()
        raise
    for modality in guesses.modalities:
        columns = ", ".join(modality.columns)
        out.print(f"input {modality.name}: {columns} ({modality.kind}; {modality.why})", markup=False)
    out.print(f"target: {guesses.target} ({guesses.task}; {guesses.notes[guesses.target]})", markup=False)
    for role in ("split", "group", "id"):
        if column := getattr(guesses, role):
            out.print(f"{role}: {column}", markup=False)
    for column, note in guesses.notes.items():
        if column != guesses.target:
            out.print(f"left out: {column} ({note})", markup=False)
    print(f"{path} is written. Next: mmsweep data check {path}")


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
        if card.licence:
            out.print(f"  licence: {card.licence}", markup=False)
        out.print(f"  get: {card.get}", markup=False)


@data.command("check")
def data_check(
    study_file: StudyOrDataset,
    overrides: Overrides = None,
    decode: Annotated[bool, typer.Option("--decode", help="Decode every value as well.")] = False,
    as_json: AsJson = False,
) -> None:
    """Read a study's dataset (or one by its name: tuxpaint data.root=…) and say what was found and what is missing.

    Exits with 1 where the data cannot be used as it is.
    """
    from mmsweep.assembly.build import formats_of, make_builder
    from mmsweep.data.check import check, named_builder

    if (builder := named_builder(str(study_file), overrides or [])) is not None:
        if decode:
            raise UserError("only a study's encoders say how values are decoded", key="--decode", found=builder.name,
                            expected=f"a study whose data.dataset is {builder.name}")  # fmt: skip
        result = check(builder, builder.options.max_bad)
    else:
        with studying(study_file, overrides) as study:
            builder = make_builder(study)
            result = check(builder, study.data.max_bad, formats_of(study, builder) if decode else None)
    print(json_text(result.to_json()) if as_json else "\n".join(result.lines))
    if not result.usable:
        raise typer.Exit(1)


@data.command("prepare")
def data_prepare(study_file: StudyOrDataset, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Decode a study's dataset once, into the cache that training reads."""
    from mmsweep.data.check import named_builder

    if (builder := named_builder(str(study_file), overrides or [])) is not None:
        raise UserError(
            "preparing rows depends on a study's encoders",
            found=builder.name,
            expected=f"a study whose data.dataset is {builder.name}",
        )
    with studying(study_file, overrides) as study:
        ready = prepared(study)
    rows = {name: len(split) for name, split in ready.splits.items()}
    if as_json:
        facts = {"fingerprint": ready.fingerprint, "skipped": len(ready.skipped), "folder": str(ready.folder)}
        listed = {"bad_rows": str(ready.bad_rows_file)} if ready.skipped else {}
        print(json_text({"rows": rows, **facts, **listed}))
    else:
        print(f"{', '.join(f'{n} {s}' for s, n in rows.items())} rows in {ready.folder}")
