"""Where pretrained weights come from: a hub name, a folder, a file, an installed package, or what ships with mmsweep.

Offline is normal: everything is looked for on this machine first, and a missing name is one message that says where it
was looked for and how to provide it. No file is unpickled: safetensors, or torch's weights-only reader.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers
from safetensors import SafetensorError, safe_open

from mmsweep.data.kinds.kind import Format
from mmsweep.errors import UserError
from mmsweep.models.families.family import FAMILIES, Family
from mmsweep.models.input_formats import Inputs, Preprocessing

SHIPPED = Path(__file__).parent.parent / "assets" / "encoders"

# What a dry run needs to know of the networks that the papers name, so that it works with nothing on disk.
# https://huggingface.co/NAME/blob/main/config.json of each.
ARCHITECTURES: dict[str, Any] = {
    "openai/clip-vit-base-patch16": lambda: transformers.CLIPVisionConfig(patch_size=16),
    "openai/clip-vit-base-patch32": lambda: transformers.CLIPVisionConfig(patch_size=32),
    "bert-base-uncased": lambda: transformers.BertConfig(),
    "google-bert/bert-base-uncased": lambda: transformers.BertConfig(),
    "MIT/ast-finetuned-audioset-10-10-0.4593": lambda: transformers.ASTConfig(),
    "facebook/dinov2-base": lambda: transformers.Dinov2Config(image_size=518, patch_size=14),
    "google/vit-base-patch16-224-in21k": lambda: transformers.ViTConfig(),
    "dandelin/vilt-b32-mlm": lambda: transformers.ViltConfig(image_size=384, patch_size=32),
    # The three that scripts/lift_encoders.py lifts out of packages, by their folders' names.
    "vit_s14": lambda: transformers.Dinov2Config(hidden_size=384, num_attention_heads=6, image_size=518, patch_size=14),
    "minilm_l6": lambda: transformers.BertConfig(
        hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536
    ),
    "whisper_tiny_encoder": lambda: transformers.WhisperConfig(
        d_model=384, encoder_layers=4, encoder_attention_heads=6, encoder_ffn_dim=1536
    ),
}
ARCHITECTURES |= {
    "facebook/dinov2-small": ARCHITECTURES["vit_s14"],
    "openai/whisper-tiny.en": ARCHITECTURES["whisper_tiny_encoder"],
}

NOT_HERE = "no weights found"
"""The problem of a network that is not on this machine, and may be elsewhere."""


@dataclass(frozen=True)
class Architecture:
    """An encoder's shape, with or without weights at hand.

    Args:
        family: how to drive it.
        key: the study's key that names it, for messages.
        config: transformers' configuration; of timm the model's name.
        folder: where weights, tokenizer and preprocessing lie; None where nothing is on disk.
        pooler: whether the checkpoint holds a pooling layer.
    """

    key: str
    family: type[Family]
    config: Any
    folder: Path | None
    pooler: bool = True

    def format(self, inputs: Inputs, config: Any = None) -> Format:
        """How its inputs are made. Raises UserError where it does not read what the study wants.

        Args:
            config: of the network that was built; None: the checkpoint's, of a family that is `described` by it.
        """
        config = self.family.config(self.config) if config is None else config
        return self.family.format(config, Preprocessing(self.folder), str(self.folder or ""), inputs)

    def network(self, weights: bool) -> Any:
        """The network: loaded, or (for counting, on the current default device) with initial values."""
        try:
            if weights:
                return self.family.load(str(self.folder), self.config, self.pooler)
            return self.family.build(self.config, self.pooler)
        except UserError as problem:
            raise problem.placed(key=self.key) from problem.__cause__


def locate(source: str, name: str, key: str, files: bool = True) -> Architecture:
    """Find an encoder.

    Args:
        source: transformers, timm or mmsweep.
        name: as `EncoderOptions.name`.
        key: the study's key, for messages.
        files: whether its files must be there; without them an architecture that is known by name is enough.

    Raises:
        UserError: not found; says where it was looked for and how to provide it.
    """
    if source == "timm":
        return Architecture(key, FAMILIES[source], name, None)
    folder, config = find(source, name, key, files)
    family = FAMILIES.get(config.model_type)
    if family is None:
        raise UserError(
            "no encoder of this architecture",
            file=folder,
            key=key,
            found=config.model_type,
            expected=f"one of {', '.join(FAMILIES)}",
        )
    return Architecture(key, family, config, folder, folder is None or has_pooler(folder))


def find(source: str, name: str, key: str, files: bool = True) -> tuple[Path | None, Any]:
    """A network's folder (None: nothing is on disk) and transformers' configuration; arguments as `locate`'s.

    Raises:
        UserError: not found; says where it was looked for and how to provide it.
    """
    looked: list[str] = []
    if files and "${" in name:
        raise UserError(
            "an environment variable is not set", key=key, found=name, hint="It says where the weights lie."
        )
    folder = _shipped(name, key) if source == "mmsweep" else _folder(name, looked)
    known = ARCHITECTURES.get(name) or ARCHITECTURES.get(Path(name).name)
    if folder is None and not files and known is not None:
        return None, known()
    if folder is None:
        folder = hub_folder(name, looked, key, fetch=files)
    return folder, _config(folder)


def require(source: str, name: str, key: str, fetch: bool) -> None:
    """See that a network's files are on this machine, and fetch them where they may be fetched.

    Args:
        source, name, key: as `locate`'s; the source `file` is one file.
        fetch: False only looks.

    Raises:
        UserError: they are not; says where it was looked for and how to provide them.
    """
    if "${" in name:
        raise UserError("an environment variable is not set", key=key, found=name, hint="It says where weights lie.")
    if source == "file":
        if not Path(name).is_file():
            raise UserError(NOT_HERE, key=key, found=name, expected="a .safetensors file")
        return
    if source == "timm":
        if known := hub_name_of_timm(name):
            hub_folder(known, [], key, fetch)
        return
    looked: list[str] = []
    folder = (
        _shipped(name, key) if source == "mmsweep" else _folder(name, looked) or hub_folder(name, looked, key, fetch)
    )
    _config(folder)
    if not any(path for ending in (".safetensors", ".bin") for path in folder.glob(f"*{ending}")):
        raise UserError("a network's folder without weights", file=folder, key=key, expected="model.safetensors in it")


def _shipped(name: str, key: str) -> Path:
    folder = SHIPPED / name
    if not (folder / "config.json").exists():
        there = ", ".join(sorted(p.parent.name for p in SHIPPED.glob("*/config.json")))
        raise UserError("no such encoder ships with mmsweep", key=key, found=name, expected=f"one of {there}")
    return folder


def _folder(name: str, looked: list[str]) -> Path | None:
    if name.startswith("package:"):
        package, _, inner = name.removeprefix("package:").partition("/")
        spec = importlib.util.find_spec(package.replace("-", "_"))
        if spec is None or not spec.submodule_search_locations:
            looked.append(f"installed package {package!r} (pip install {package.replace('_', '-')})")
            return None
        path = Path(spec.submodule_search_locations[0]) / inner
    else:
        path = Path(name).expanduser()
    if path.is_file():
        path = path.parent
    if (path / "config.json").exists():
        return path.resolve()
    looked.append(f"folder {path} with a config.json")
    return None


def hub_name_of_timm(name: str) -> str | None:
    """Where timm takes a model's weights from; None: from somewhere else than the hub."""
    import timm

    known = None if name.startswith("local-dir:") else timm.get_pretrained_cfg(name)
    return known.hf_hub_id if known is not None else None


def hub_folder(name: str, looked: list[str], key: str, fetch: bool = True) -> Path:
    """The folder of a network in the hub's cache, fetched where that is allowed.

    Raises:
        UserError: it is not there; says where it was `looked` for.
    """
    from huggingface_hub import constants, snapshot_download

    wanted = ["*.json", "*.txt", "*.model", "*.safetensors"]
    if not name.startswith(("package:", "/", ".", "~")) and name.count("/") <= 1:
        for offline in (True, False) if fetch else (True,):
            try:
                return Path(snapshot_download(name, allow_patterns=wanted, local_files_only=offline))
            except (
                Exception
            ):  # the hub client raises a dozen kinds for "not there" and "no network"; all mean: not found
                continue
        looked.append(f"the hub's cache {constants.HF_HUB_CACHE}")
        looked += ["the hub itself (no answer, or no such name)"] if fetch else []
    raise UserError(
        NOT_HERE,
        key=key,
        found=name,
        expected="a network that lies on this machine or on the hub",
        hint=f"Looked for: {'; '.join(looked)}. Give a folder that transformers can load (config.json and "
        "model.safetensors), `package:NAME/path`, or copy the hub's files into its cache on a machine with network.",
    )


def _config(folder: Path) -> Any:
    try:
        return transformers.AutoConfig.from_pretrained(str(folder), local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"the encoder's configuration cannot be read ({str(error).splitlines()[0]})", file=folder / "config.json"
        ) from error


def has_pooler(folder: Path) -> bool:
    """Whether a checkpoint holds a pooling layer; assumed where it is not one safetensors file."""
    file = folder / "model.safetensors"
    if not file.exists():
        return True
    try:
        with safe_open(str(file), framework="pt") as tensors:
            return any("pooler." in name for name in tensors.keys())  # noqa: SIM118 - no mapping
    except (OSError, SafetensorError) as error:
        raise UserError(f"the encoder's weights cannot be read ({error})", file=file) from error
