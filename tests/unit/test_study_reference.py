"""docs/study.md says what is in force, and a section that is given in part has the defaults of one that is left out."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from mmsweep.errors import UserError
from mmsweep.study import Study

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "scripts"))
import study_reference  # noqa: E402

SMALLEST: dict[str, Any] = {
    "name": "smallest",
    "data": {"dataset": "openclipart"},
    "model": {"encoders": {"image": {"name": "a"}, "text": {"name": "b"}}},
    "method": {"name": "cmpt"},
}

GIVEN = {"name", "data.dataset", "model.encoders", "method.name"}


def written_defaults() -> dict[str, str]:
    """Dotted key -> the default that the reference shows."""
    found, section = {}, ""
    for line in study_reference.render().splitlines():
        if heading := re.match(r"## `([^`]+)`(?: of (.*))?", line):
            section = "" if heading[1] == "study" else heading[1] + "."
            chosen = {"data": "openclipart", "method": "cmpt"}.get(heading[1].split(".")[0])
            if heading[2] and f"`{chosen}`" not in heading[2]:
                section = f"<of {heading[2]}>."  # not in the study that this is compared with
        elif row := re.match(r"\| `(\w+)` \| .*? \| (.*?) \| ", line.replace("\\|", "/")):
            found[section + row[1]] = row[2]
    return found


def test_the_reference_shows_the_defaults_in_force() -> None:
    study, compared = Study.parse(SMALLEST), 0
    for key, written in written_defaults().items():
        if written in ("", "required") or "<" in key:
            continue
        value: Any = study
        for part in key.split("."):
            value = getattr(value, part, PydanticUndefined)
        if value is PydanticUndefined or (value is None and written != "null"):
            continue  # a section that is left out as a whole: model.lora is not, data.target is
        if isinstance(value, list) and value and isinstance(value[0], BaseModel):
            continue
        expected = "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
        if key not in GIVEN:
            written = re.sub(r"^null \(.*\)$", "null", written)  # what null stands for
            assert written == expected.replace("|", "/"), key
            compared += 1
    assert compared > 70
    assert written_defaults()["sweep.scheduler.name"] == study.sweep.scheduler.name == "none"


def test_a_section_given_in_part_has_the_defaults_of_one_left_out() -> None:
    def compare(section: BaseModel, path: str) -> int:
        compared = 0
        for name, info in type(section).model_fields.items():
            value = getattr(section, name)
            if isinstance(value, BaseModel):
                compared += compare(value, f"{path}.{name}")
            elif not info.is_required() and path.count(".") >= 1 and name != "mode":  # follows the metric
                assert value == info.get_default(call_default_factory=True), f"{path}.{name}"
                compared += 1
        return compared

    left_out = {k: v for k, v in Study.parse(SMALLEST) if k not in SMALLEST and isinstance(v, BaseModel)}
    assert sum(compare(section, f".{name}") for name, section in left_out.items()) > 40


def test_a_scheduler_names_itself() -> None:
    """`scheduler: {grace_epochs: 2}` could mean the default (none) or the first rule of the list (asha)."""
    with pytest.raises(UserError, match=r"sweep.scheduler.name: this key is missing"):
        Study.parse({**SMALLEST, "sweep": {"scheduler": {"grace_epochs": 2}}})
