"""Unaligned sequences in CMU-MOSI's shapes, *derived* from Tux Paint's stamps, with a number from -3 to 3 to predict.

Real: the stamps' English names, their recordings and their pictures (sets/tuxpaint.py). Derived, by fixed arithmetic:

- the features (data/derived.py): words 50 x 768, sound 500 x 5 (10 ms a step, five seconds), picture 375 x 20;
- the target: how alive the thing is that the stamp shows. The scale below is ours, a number for each category, and
  stands for nothing measured; 0 is neither (MOSI's neutral clips), so Has0 and Non0 metrics differ as they do there.

It exercises MulT and the metrics of sentiment at the sizes of the real benchmark. It says nothing about sentiment.
"""

from __future__ import annotations

from dataclasses import replace

from mmsweep.components import register
from mmsweep.data.dataset import Sample
from mmsweep.data.kinds.sequence import SequenceFormat
from mmsweep.data.sets.tuxpaint import StampOptions, Stamps, TuxPaint
from mmsweep.errors import UserError
from mmsweep.tasks.task import Target

ALIVE = {
    "animals": 3.0, "people": 2.4, "plants": 1.8, "food": 0.8, "seasonal": 0.4, "hobbies": 0.0, "sports": 0.0,
    "space": -0.4, "clothes": -0.8, "household": -1.4, "town": -1.8, "vehicles": -2.2, "military": -2.6,
    "symbols": -3.0,
}  # fmt: skip
"""The scale: this project's own, in steps of 0.2 as means of five annotators are."""

SEQUENCES = {
    "text": SequenceFormat(50, 768, "words"),
    "audio": SequenceFormat(500, 5, "sound"),
    "vision": SequenceFormat(375, 20, "picture"),
}
_SOURCES = {"text": "text", "audio": "audio", "vision": "image"}


@register("tuxpaint_sequences")
class TuxPaintSequences(Stamps):
    """The stamps of `TuxPaint` of one language, in the same splits, as sequences with a number."""

    name = "tuxpaint_sequences"
    title = "sequences in CMU-MOSI's shapes with a number from -3 to 3, derived from Tux Paint's stamps"
    modalities = dict.fromkeys(SEQUENCES, "sequence")
    target = Target("regression", signed=True)
    formats = SEQUENCES
    layout = "as tuxpaint; features and target are derived when the data is prepared"

    def __init__(self, options: StampOptions) -> None:
        super().__init__(options)
        if options.language == "all":
            raise UserError(
                "sequences are of one language", key="data.audio.language", found="all", expected="a language"
            )
        self._stamps = TuxPaint(options)

    def splits(self) -> dict[str, list[Sample]]:
        return {name: [self._derived(s) for s in rows] for name, rows in self._stamps.splits().items()}

    @staticmethod
    def _derived(sample: Sample) -> Sample:
        values = {modality: sample.values[source] for modality, source in _SOURCES.items()}
        return replace(sample, values=values, target=ALIVE[sample.target])

    def provenance(self) -> str:
        return (
            f"{self._stamps.provenance()} Derived, not measured: the features of all three sequences, and the number "
            "to predict (how alive each category is, on this project's own scale from -3 to 3)."
        )
