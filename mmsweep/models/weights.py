"""Finds pretrained weights: by hub name, in a folder, file or installed package, or among those shipped with mmsweep.

This machine is searched first, since it may be offline. The error for a missing network lists the places that were
searched and says how to provide it. No file is unpickled: weights are safetensors, or read by torch's weights-only
reader.
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
from mmsweep.models.options import Sizes

SHIPPED = Path(__file__).parent.parent / "assets" / "encoders"

# Configurations of the papers' networks, so that a dry run needs no files: https://huggingface.co/NAME/blob/main/config.json
ARCHITECTURES: dict[str, Any] = {
    "openai/clip-vit-base-patch16": lambda: transformers.CLIPVisionConfig(patch_size=16),
    "openai/clip-vit-base-patch32": lambda: transformers.CLIPVisionConfig(patch_size=32),
    "bert-base-uncased": lambda: transformers.BertConfig(),
    "google-bert/bert-base-uncased": lambda: transformers.BertConfig(),
    "MIT/ast-finetuned-audioset-10-10-0.4593": lambda: transformers.ASTConfig(),
    "facebook/dinov2-base": lambda: transformers.Dinov2Config(image_size=518, patch_size=14),
    "google/vit-base-patch16-224-in21k": lambda: transformers.ViTConfig(),
    "dandelin/vilt-b32-mlm": lambda: transformers.ViltConfig(image_size=384, patch_size=32),
    # The three encoders that scripts/lift_encoders.py extracts from packages, by their folders' names.
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
"""The error text for a network that is not on this machine but may exist elsewhere."""


@dataclass(frozen=True)
class Architecture:
    """An encoder's architecture, with or without weights on this machine.

    Args:
        key: the study's key that names it, for messages.
        family: the class that runs it.
        config: transformers' configuration; the model's name for timm; the network's shape for scratch.
        folder: folder of weights, tokenizer and preprocessing; None if no files are present.
        pooler: whether the checkpoint holds a pooling layer.
    """

    key: str
    family: type[Family]
    config: Any
    folder: Path | None
    pooler: bool = True

    def format(self, inputs: Inputs, config: Any = None) -> Format:
        """The format of its inputs. Raises UserError if it cannot read the study's inputs.

        Args:
            config: configuration of the built network; None: the checkpoint's, for families that it `described`.
        """
        config = self.family.config(self.config) if config is None else config
        return self.family.format(config, Preprocessing(self.folder), str(self.folder or ""), inputs)

    def network(self, weights: bool) -> Any:
        """The network, loaded or with initial values (for counting, on the current default device)."""
        try:
            if weights and not self.family.fresh:
                return self.family.load(str(self.folder), self.config, self.pooler)
            return self.family.build(self.config, self.pooler)
        except UserError as problem:
            raise problem.placed(key=self.key) from problem.__cause__


def locate(
    source: str, name: str, key: str, files: bool = True, inputs: Inputs | None = None, sizes: Sizes | None = None
) -> Architecture:
    """Find an encoder.

    Args:
        source: transformers, timm, mmsweep or scratch.
        name: as `EncoderOptions.name`.
        key: the study's key, for messages.
        files: whether its files must exist; otherwise an architecture that is known by name is enough.
        inputs, sizes: for scratch, the one modality that the network reads, and its sizes.

    Raises:
        UserError: it was not found; lists the searched places and how to provide it.
    """
    if source == "timm":
        return Architecture(key, FAMILIES[source], name, None)
    if source == "scratch":
        if name not in FAMILIES or not FAMILIES[name].fresh:
            known = ", ".join(name for name, family in FAMILIES.items() if family.fresh)
            raise UserError("no such network of mmsweep's own", key=key, found=name, expected=known)
        try:
            return Architecture(key, FAMILIES[name], FAMILIES[name].shape(inputs or Inputs(), sizes or Sizes()), None)
        except UserError as problem:
            raise problem.placed(key=key) from None
    folder, config = find(source, name, key, files)
    family = FAMILIES.get(config.model_type)
    if family is None:
        raise UserError(
            "mmsweep has no encoder of this architecture",
            file=folder,
            key=key,
            found=config.model_type,
            expected=f"one of {', '.join(FAMILIES)}",
        )
    return Architecture(key, family, config, folder, folder is None or has_pooler(folder))


def find(source: str, name: str, key: str, files: bool = True) -> tuple[Path | None, Any]:
    """A network's folder (None without files) and transformers' configuration; arguments as in `locate`.

    Raises:
        UserError: it was not found; lists the searched places and how to provide it.
    """
    searched: list[str] = []
    if files:
        _check_variable(name, key)
    folder = _shipped(name, key) if source == "mmsweep" else _folder(name, searched)
    known = ARCHITECTURES.get(name) or ARCHITECTURES.get(Path(name).name)
    if folder is None and not files and known is not None:
        return None, known()
    if folder is None:
        folder = hub_folder(name, searched, key, fetch=files)
    return folder, _config(folder)


def require(source: str, name: str, key: str, fetch: bool) -> None:
    """Make sure that a network's files are on this machine.

    Args:
        source, name, key: as in `locate`; the source `file` is a single file.
        fetch: whether missing files may be fetched from the hub.

    Raises:
        UserError: they are missing; lists the searched places and how to provide them.
    """
    _check_variable(name, key)
    if source == "file":
        if not Path(name).is_file():
            raise UserError(NOT_HERE, key=key, found=name, expected="a .safetensors file")
        return
    if source == "timm":
        if hub_name := hub_name_of_timm(name):
            hub_folder(hub_name, [], key, fetch)
        return
    if source == "mmsweep":
        folder = _shipped(name, key)
    else:
        searched: list[str] = []
        folder = _folder(name, searched) or hub_folder(name, searched, key, fetch)
    _config(folder)
    if not [*folder.glob("*.safetensors"), *folder.glob("*.bin")]:
        raise UserError("the network's folder holds no weights", file=folder, key=key, expected="model.safetensors")


def _check_variable(name: str, key: str) -> None:
    if "${" in name:
        hint = "It names the folder of the weights."
        raise UserError("an environment variable is not set", key=key, found=name, hint=hint)


def _shipped(name: str, key: str) -> Path:
    folder = SHIPPED / name
    if not (folder / "config.json").exists():
        shipped = ", ".join(sorted(p.parent.name for p in SHIPPED.glob("*/config.json")))
        raise UserError("mmsweep ships no such encoder", key=key, found=name, expected=f"one of {shipped}")
    return folder


def _folder(name: str, searched: list[str]) -> Path | None:
    if name.startswith("package:"):
        package, _, inner = name.removeprefix("package:").partition("/")
        spec = importlib.util.find_spec(package.replace("-", "_"))
        if spec is None or not spec.submodule_search_locations:
            searched.append(f"installed package {package!r} (pip install {package.replace('_', '-')})")
            return None
        path = Path(spec.submodule_search_locations[0]) / inner
    else:
        path = Path(name).expanduser()
    if path.is_file():
        path = path.parent
    if (path / "config.json").exists():
        return path.resolve()
    searched.append(f"folder {path} with a config.json")
    return None


def hub_name_of_timm(name: str) -> str | None:
    """The hub name of a timm model's weights; None if they are not on the hub."""
    import timm

    config = None if name.startswith("local-dir:") else timm.get_pretrained_cfg(name)
    return config.hf_hub_id if config is not None else None


def hub_folder(name: str, searched: list[str], key: str, fetch: bool = True) -> Path:
    """The folder of a network in the hub's cache; with `fetch` it is downloaded if necessary.

    Raises:
        UserError: it is missing; lists the places that were `searched`.
    """
    from huggingface_hub import constants, snapshot_download

    patterns = ["*.json", "*.txt", "*.model", "*.safetensors"]
    if not name.startswith(("package:", "/", ".", "~")) and name.count("/") <= 1:
        for offline in (True, False) if fetch else (True,):
            try:
                return Path(snapshot_download(name, allow_patterns=patterns, local_files_only=offline))
            except Exception:  # the hub's client has a dozen exceptions for a missing name or network
                continue
        searched.append(f"the hub's cache {constants.HF_HUB_CACHE}")
        searched += ["the hub itself (no answer, or no such name)"] if fetch else []
    raise UserError(
        NOT_HERE,
        key=key,
        found=name,
        expected="a network on this machine or on the hub",
        hint=f"Searched: {'; '.join(searched)}. Give a folder that transformers can load (config.json and "
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
    """Whether a checkpoint holds a pooling layer; assumed unless it is a single safetensors file."""
    file = folder / "model.safetensors"
    if not file.exists():
        return True
    try:
        with safe_open(str(file), framework="pt") as tensors:
            return any("pooler." in name for name in tensors.keys())  # noqa: SIM118 - it is no mapping
    except (OSError, SafetensorError) as error:
        raise UserError(f"the encoder's weights cannot be read ({error})", file=file) from error
