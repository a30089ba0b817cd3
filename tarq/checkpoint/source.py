"""Locating a model: a folder, or the hub's files in the local cache; unusable files are refused by name."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from transformers.utils.peft_utils import find_adapter_config_file

from tarq.checkpoint.folder import SIDE_FILES, interrupted
from tarq.errors import CheckpointError, ModelError
from tarq.files import expanded

_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "model-*.safetensors")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
#: Prefixes that wrappers put before every parameter name.
_WRAPPERS = {
    "_orig_mod.": "a model compiled by torch.compile; save the model within (model._orig_mod)",
    "module.": "a model in DataParallel; save the model within (model.module)",
    "base_model.model.": "a PEFT model; call merge_and_unload() and save the result",
}


def expand_home(source: str | Path) -> str | Path:
    """A model's folder, if its path begins with ``~``; anything else as it is."""
    return expanded(source) if str(source).startswith("~") and expanded(source).exists() else source


def locate(source: str | Path) -> Path:
    """The folder of a model: itself, or that of a hub id in the local cache, downloaded first if necessary.

    Only safetensors, JSON and tokenizer files are downloaded, never code.

    Raises:
        ModelError: there is no such folder or repository, or the hub cannot be reached.
    """
    path = Path(source)
    check_named(source)
    if path.is_dir():
        return path
    return _from_hub(str(source))


def check_named(source: str | Path) -> None:
    """Check that what is no folder could be a hub id.

    Raises:
        ModelError: it cannot; says what it is instead.
    """
    path = Path(source)
    if not str(source).strip():  # it would stand for the current folder
        raise ModelError("the name of a model is empty: give a folder or a hub id")
    if path.is_dir():
        return
    if path.exists():
        raise ModelError(f"{source} is a file: give the folder that holds config.json and the weights")
    left = interrupted(path) if path.name and path.parent.is_dir() else None
    if left is not None:
        raise ModelError(
            f"{source}: no such folder; a process that was killed while replacing it left the one before at {left}: "
            f"rename that to {source}"
        )
    if isinstance(source, Path) or _HUB_ID.fullmatch(source) is None:
        raise ModelError(f"{source}: no such folder")


def _from_hub(name: str) -> Path:
    from huggingface_hub import constants, get_session, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    offline = constants.HF_HUB_OFFLINE
    if not offline:
        try:  # once: the hub's own calls retry for half a minute
            get_session().head(constants.ENDPOINT, timeout=5)
        except Exception:
            offline = True
    wanted = ["config.json", "generation_config.json", *_WEIGHTS, *SIDE_FILES]
    try:
        return Path(snapshot_download(name, allow_patterns=wanted, local_files_only=offline))
    except LocalEntryNotFoundError as error:
        why = "and the hub cannot be reached" if offline else "and could not be downloaded"
        raise ModelError(
            f"{name}: no such folder; as a hub id it is not in the local cache, {why}. Check the path, or download the "
            "model where there is a network and give its folder"
        ) from error
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise ModelError(f"{name}: no such folder, and not available from the hub: {first_line(error)}") from error


def cached(name: str) -> Path | None:
    """The folder of a hub id in the local cache, if it is there; nothing is downloaded."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, local_files_only=True))
    except (OSError, ValueError):  # not there, or not a hub id
        return None


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object from a model's folder.

    Raises:
        ModelError: it is missing, unreadable, or holds something else.
    """
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelError(f"{file} does not exist: it is part of a model; copy the folder again") from error
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{file} cannot be read ({first_line(error)}): copy it from the original again") from error
    if not isinstance(value, dict):
        raise ModelError(f"{file} holds {type(value).__name__} where an object of fields is expected")
    return value


def check_folder(folder: Path, name: str | Path) -> dict[str, Any]:
    """The config.json of a folder, after a check of the other files; nothing in the folder is run.

    Raises:
        ModelError: adapter files, weights in pickles only, no weights, or an unusable config.json.
    """
    check_no_adapter(name)
    config = read_json(folder / "config.json")
    if not isinstance(config.get("model_type"), str):
        raise ModelError(f"{folder / 'config.json'} names no model_type: no model that transformers can read")
    architectures = config.get("architectures")
    if architectures is not None and not (
        isinstance(architectures, list) and all(isinstance(name, str) for name in architectures)
    ):
        raise ModelError(f"{folder / 'config.json'}: architectures must be a list of names, not {architectures!r}")
    if not isinstance(config.get("quantization_config"), dict | None):
        raise ModelError(f"{folder / 'config.json'}: quantization_config is no object of fields: copy the file again")
    if any("/" in str(config.get(key)) for key in ("attn_implementation", "_attn_implementation")):
        raise ModelError(f"{folder / 'config.json'} names attention code from the hub, which tarq does not run")
    return config


def check_no_adapter(source: str | Path) -> None:
    """Check that no adapter lies beside a model: whether it is loaded along would depend on peft being installed.

    Args:
        source: folder or hub id.

    Raises:
        ModelError: one does; names its file and the mend.
    """
    weights = Path(source, "adapter_model.safetensors")
    try:
        found = weights if weights.is_file() else find_adapter_config_file(str(source))
    except OSError:  # no such repository, or no network: loading gives the better error
        return
    if found:
        raise ModelError(
            f"{source} holds a PEFT adapter ({Path(found).name}): merge it into the model first, with "
            "PeftModel.from_pretrained(model, adapter).merge_and_unload().save_pretrained(FOLDER), and give that folder"
        )


def weight_files(folder: Path, name: str | Path) -> list[Path]:
    """The safetensors files of a model, in the index's order.

    Raises:
        ModelError: there are none, or only pickles.
        CheckpointError: one that the index names is missing.
    """
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    if index.is_file():
        places = read_json(index).get("weight_map")
        if not isinstance(places, dict) or not all(isinstance(p, str) and Path(p).name == p for p in places.values()):
            raise CheckpointError(f"{index} has no usable weight_map: copy it from the original again")
        files = [folder / place for place in dict.fromkeys(places.values())]
        for file in files:
            if not file.is_file():
                raise CheckpointError(f"{file} is missing, which {index.name} names: copy the folder again")
        return files
    pickles = sorted(f.name for p in ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack") for f in folder.glob(p))
    if pickles:
        raise ModelError(
            f"{name} has its weights in {pickles[0]}, and tarq reads safetensors only (loading a pickle can run code). "
            "If you trust the file, convert it: load the model with transformers and call save_pretrained(FOLDER)"
        )
    other = ", ".join(sorted(file.name for file in folder.glob("*.safetensors")))
    raise ModelError(
        f"{name}: no weights there (model.safetensors)"
        + (f"; there is {other}: if it is the model's, rename it to model.safetensors" if other else "")
    )


def headers(files: list[Path]) -> dict[str, tuple[str, list[int]]]:
    """Name to (dtype as safetensors calls it, shape) of every stored tensor; no tensor is read.

    Raises:
        CheckpointError: a file is damaged, or its names carry a wrapper's prefix.
    """
    found: dict[str, tuple[str, list[int]]] = {}
    for file in files:
        try:
            with safe_open(file, "pt") as opened:
                for name in opened.keys():  # noqa: SIM118 - it is no dictionary
                    part = opened.get_slice(name)
                    found[name] = part.get_dtype(), part.get_shape()
        except (SafetensorError, OSError) as error:
            reason = first_line(error)
            raise CheckpointError(f"{file}: could not load the weights ({reason}): copy the file again") from error
    for prefix, what in _WRAPPERS.items():
        wrapped = next((n for n in found if n.startswith(prefix) or f".{prefix}" in n), None)
        if wrapped is not None and (prefix == "_orig_mod." or all(n.startswith(prefix) for n in found)):
            raise CheckpointError(f"{files[0].parent}: the weights are named {wrapped} …, as of {what}")
    return found


def dominant_dtype(dtypes: dict[str, tuple[str, list[int]]], ending: str = "") -> str | None:
    """The floating dtype of most stored numbers, over the tensors whose names end so."""
    counts: Counter[str] = Counter()
    for name, (dtype, shape) in dtypes.items():
        if name.endswith(ending) and dtype in ("F64", "F32", "F16", "BF16"):
            size = 1
            for length in shape:
                size *= length
            counts[dtype] += size
    return counts.most_common(1)[0][0] if counts else None


def first_line(error: BaseException) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
