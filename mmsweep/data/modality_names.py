"""Which names a modality of the user's own may have.

A modality's name becomes a file of prepared data, a submodule of networks, a part of metric names and a word of
scenarios (`missing-text`, `{shares: {image+text: 1}}`), so it is a plain word that none of these uses itself.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

LONGEST = 40
_PLAIN = re.compile(rf"[A-Za-z][A-Za-z0-9_]{{0,{LONGEST - 1}}}")
EXPECTED = (
    f"a letter followed by letters, digits or _ ({LONGEST} characters at most), and no word that mmsweep or PyTorch "
    "uses itself"
)

SCENARIO_WORDS = frozenset({"both", "complete"})
PREPARED_FILES = frozenset({"ids", "natural", "targets"})
# fmt: off
MODULE_WORDS = frozenset({
    "T_destination", "add_module", "apply", "bfloat16", "buffers", "call_super_init", "children", "clear",
    "compile", "copy", "cpu", "cuda", "double", "dump_patches", "eval", "extra_repr", "float", "forward",
    "fromkeys", "get", "get_buffer", "get_extra_state", "get_parameter", "get_submodule", "half", "ipu", "items",
    "join", "keep", "keys", "load_state_dict", "modules", "mtia", "named_buffers", "named_children",
    "named_modules", "named_parameters", "parameters", "pop", "popitem", "register_backward_hook",
    "register_buffer", "register_forward_hook", "register_forward_pre_hook", "register_full_backward_hook",
    "register_full_backward_pre_hook", "register_load_state_dict_post_hook", "register_load_state_dict_pre_hook",
    "register_module", "register_parameter", "register_state_dict_post_hook", "register_state_dict_pre_hook",
    "requires_grad_", "set_extra_state", "set_submodule", "setdefault", "share_memory", "slot_view", "smart_apply",
    "stacked", "state_dict", "to", "to_empty", "train", "training", "type", "update", "values", "xpu", "zero_grad",
})
# fmt: on
"""Attributes of PyTorch's ModuleDict and ParameterDict, under which networks keep their parts by modality.

transformers gives every module `smart_apply` once it has loaded a network.
"""


class Misnamed(NamedTuple):
    """A name that no modality can have."""

    name: Any
    why: str
    expected: str = EXPECTED


def misnamed(names: Sequence[Any]) -> Misnamed | None:
    """The first of a study's modalities that cannot be called so; None where all can."""
    seen: dict[str, str] = {}
    for name in names:
        if not isinstance(name, str) or not _PLAIN.fullmatch(name):
            return Misnamed(name, "this is no name for a modality")
        if name in MODULE_WORDS or name.lower() in SCENARIO_WORDS | PREPARED_FILES or "_from_" in name:
            return Misnamed(name, "this name is taken")
        if (other := seen.setdefault(name.lower(), name)) != name:
            return Misnamed(name, f"this name differs from {other!r} only in case", "names that differ otherwise")
    return None
