"""Find the base model of an adapter in a folder or on the hub."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def find_adapter(source: str | os.PathLike[str]) -> dict[str, Any] | None:
    """The config of the adapter in a folder or on the hub, None if there is no adapter.

    Raises:
        ValueError: if a folder holds both an adapter and a whole model.
    """
    folder = Path(source)
    if folder.is_dir():
        path = folder / "adapter_config.json"
        if not path.is_file():
            return None
        if (folder / "config.json").is_file():
            raise ValueError(
                f"{folder} holds a whole model (config.json) and an adapter (adapter_config.json), expected "
                "one of them; give the adapter a separate folder"
            )
        return json.loads(path.read_text())
    from transformers.utils import find_adapter_config_file

    found = find_adapter_config_file(os.fspath(source))
    return None if found is None else json.loads(Path(found).read_text())


def base_of(source: str | os.PathLike[str], config: Mapping[str, Any]) -> str:
    """The hub id or folder of an adapter's base model.

    Raises:
        ValueError: if the adapter does not name it, or names a folder that does not exist.
    """
    name = config.get("base_model_name_or_path")
    instead = (
        "load the base model and give PeftModel.from_pretrained(base, "
        f"{os.fspath(source)!r}, is_trainable=True) as the model"
    )
    if not name:
        raise ValueError(f"the adapter in {source} does not name its base model; {instead}")
    for place in (Path(name).expanduser(), Path(source) / name, Path(source).parent / name):
        if place.is_dir():
            return os.fspath(place)
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name:
        raise ValueError(
            f"the adapter in {source} belongs on the model in the folder {name!r}, which is not there; "
            f"{instead}"
        )
    return str(name)
