"""A small study file, as a user writes one."""

from __future__ import annotations

from pathlib import Path

TEXT = """\
name: small
data: {dataset: openclipart, text: {length: 24}}
model:
  encoders:
    image: {source: mmsweep, name: clipart_image}
    text:
      source: mmsweep
      name: clipart_text
method:
  name: cmpt
  align_weight: 2e-1
train:
  optimizer: {lr: 1E-3, weight_decay: .5}
  schedule: {power: 9.0e-1}
scenarios:
  evaluate:
    - complete
    - {missing: text}
    - {available: {image: 1.0, text: 0.3}}
search:
  method.align_weight: {log_uniform: [1e-2, 1]}
  model.lora.rank: {choice: [1, 2, 4]}
  train.epochs: {int: [2, 6], step: 2}
  method.masking.probability: {uniform: [0, 0.9], when: {method.name: cmpt}}
"""


def small_file(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(TEXT)
    return path


def changed(file: Path, old: str, new: str) -> Path:
    text = file.read_text()
    assert text.count(old) == 1
    file.write_text(text.replace(old, new))
    return file
