"""What is no policy is refused when the policy is made, and what a model lacks is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from safetensors.torch import load_file, save_file
from torch import nn

import textenv
from tests.helpers.env_helpers import vector_env
from textenv.agents.policies.language_policy import LanguagePolicy
from textenv.agents.policies.model_setup import load_causal_lm
from textenv.agents.policies.reward_scorer import Scorer
from textenv.episodes.batch import EpisodeBatch
from textenv.generation.policy import DecodingPolicy
from textenv.modeling.model_checks import check_causal_lm, first_not_finite, usable_positions
from textenv.modeling.whole_weights import load_whole
from textenv.rewards.kl import KLPenalty
from textenv.rewards.reward_model import RewardModel
from textenv.rewards.wrappers import wrap_reward
from textenv.tasks.letters import letter_tokenizer
from textenv.tasks.make import make_vec_env

SIZES: dict[str, Any] = {
    "vocab_size": 16,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "bos_token_id": 1,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
NO_SPECIAL: dict[str, Any] = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
BART: dict[str, Any] = {
    "vocab_size": 16,
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 16,
    "decoder_ffn_dim": 16,
    "max_position_embeddings": 32,
}


def llama(**changes: Any) -> tf.LlamaConfig:
    return tf.LlamaConfig(**{**SIZES, "max_position_embeddings": 32, **changes})


def t5() -> nn.Module:
    return tf.T5ForConditionalGeneration(
        tf.T5Config(vocab_size=16, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    )


def bert(**changes: Any) -> tf.BertConfig:
    return tf.BertConfig(**SIZES, **changes)


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "BERT": (lambda: tf.BertLMHeadModel(bert()), "must be causal"),
    "masked LM": (lambda: tf.RobertaForMaskedLM(tf.RobertaConfig(**SIZES)), "must be causal"),
    "RemBERT": (
        lambda: tf.RemBertForCausalLM(tf.RemBertConfig(**SIZES, input_embedding_size=16)),
        "must be causal",
    ),
    "BART": (lambda: tf.BartForConditionalGeneration(tf.BartConfig(**BART)), "encoder-decoder"),
    "BART's config": (lambda: tf.BartConfig(**BART), "encoder-decoder"),
    "T5": (t5, "encoder-decoder"),
    "classifier": (lambda: tf.LlamaForSequenceClassification(llama()), "got the classifier LlamaForSeq"),
    "a label a token": (
        lambda: tf.LlamaForTokenClassification(llama(num_labels=16)),
        "got the classifier LlamaForTokenClassification, whose logits are of labels",
    ),
    "of tokens": (lambda: tf.LlamaForTokenClassification(llama()), "got the classifier LlamaForTok"),
    "body": (lambda: tf.LlamaModel(llama()), "without an LM head"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_causal_lm_is_refused(kind: str) -> None:
    make, message = REFUSED[kind]
    with pytest.raises(ValueError, match=message):
        LanguagePolicy(make())
    if isinstance(model := make(), nn.Module):
        with pytest.raises(ValueError, match=message):
            DecodingPolicy(model)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_decoders_are_accepted_in_every_number_format(dtype: torch.dtype) -> None:
    experts = tf.MixtralConfig(**SIZES, num_key_value_heads=1, num_local_experts=4)
    alibi = tf.BloomConfig(vocab_size=16, n_layer=1, n_head=2)
    for config in (llama(), bert(is_decoder=True), alibi, *([] if dtype == torch.float64 else [experts])):
        check_causal_lm(tf.AutoModelForCausalLM.from_config(config).to(dtype))


def test_a_model_with_one_token_or_one_position_cannot_look_ahead() -> None:
    for changes in ({"max_position_embeddings": 1}, {"vocab_size": 1, "bos_token_id": 0, "eos_token_id": 0}):
        check_causal_lm(tf.LlamaForCausalLM(llama(**changes)))


# -- weights -------------------------------------------------------------------------------------------------


def broken(value: float = float("nan")) -> Any:
    model = tf.LlamaForCausalLM(llama())
    model.lm_head.weight.data[3, :2] = value
    return model


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_the_first_parameter_that_is_not_finite_is_named(value: float) -> None:
    assert first_not_finite(tf.LlamaForCausalLM(llama())) is None
    assert first_not_finite(broken(value)) == "lm_head.weight (2 of 256 values)"
    large = nn.Linear(2, 2, bias=False)
    nn.init.constant_(large.weight, 3e38)  # the sum overflows float32
    assert first_not_finite(large) is None


def _zero(completions: list[str], **columns: Any) -> list[float]:
    return [0.0] * len(completions)


def test_every_user_of_a_model_names_weights_that_are_not_finite() -> None:
    rows = [{"prompt": "a", "completion": "b"}, {"prompt": "b", "completion": "a"}]
    pairs = [{"prompt": "a", "chosen": "b", "rejected": "c"}, {"prompt": "b", "chosen": "a", "rejected": "c"}]
    tokenizer = letter_tokenizer("abcdef")
    offline = {"sft": rows, "dpo": pairs, "ilql": [{**row, "reward": 1.0} for row in rows]}
    for agent, data in offline.items():
        with pytest.raises(ValueError, match=r"finite.*lm_head\.weight"):
            textenv.train(agent, broken(), tokenizer=tokenizer, dataset=data, loggers=())
    for agent in ("ppo", "rft"):
        with pytest.raises(ValueError, match=r"finite.*lm_head\.weight"):
            textenv.train(agent, broken(), prompts=["a"], reward=_zero, tokenizer=tokenizer, loggers=())
    judge = tf.LlamaForSequenceClassification(llama(num_labels=1))
    judge.score.weight.data[:] = float("inf")
    with pytest.raises(ValueError, match=r"finite.*score\.weight"):
        RewardModel(judge)
    with pytest.raises(ValueError, match=r"finite.*score\.weight"):
        Scorer(judge)


def test_weights_that_break_later_are_named_by_the_rollout_and_by_the_reference() -> None:
    envs = vector_env(2, max_new_tokens=3)
    config = llama(
        vocab_size=envs.legality.vocab_size, bos_token_id=None, eos_token_id=None, pad_token_id=None
    )
    policy = LanguagePolicy(config)
    policy.model.model.norm.weight.data[0] = float("nan")  # type: ignore[union-attr]
    policy.invalidate()
    with pytest.raises(ValueError, match=r"not finite.*NaN.*model\.norm\.weight \(1 of 16 values\)"):
        textenv.collect(envs, policy, 2, seed=0)
    with pytest.raises(ValueError, match=r"reference is taken from.*model\.norm\.weight"):
        policy.reference("copy")


# -- files ---------------------------------------------------------------------------------------------------


def saved(folder: Path, model: Any, *, drop: str = "", cut: str = "") -> str:
    model.save_pretrained(folder)
    state = load_file(folder / "model.safetensors")
    if drop:
        del state[drop]
    if cut:
        state[cut] = state[cut][:5].clone()
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    return str(folder)


def test_files_that_lack_weights_are_refused(tmp_path: Path) -> None:
    tied = saved(tmp_path / "tied", tf.LlamaForCausalLM(llama(tie_word_embeddings=True)))
    assert "lm_head.weight" not in load_file(Path(tied) / "model.safetensors")
    load_causal_lm(tied)
    lacking = saved(tmp_path / "a", tf.LlamaForCausalLM(llama()), drop="model.layers.0.mlp.up_proj.weight")
    with pytest.raises(ValueError, match=r"1 are missing and would be random: model\.layers\.0\.mlp"):
        LanguagePolicy(lacking)
    with pytest.raises(ValueError, match=r"1 are missing and would be random: lm_head\.weight"):
        LanguagePolicy(saved(tmp_path / "body", tf.LlamaModel(llama())))
    with pytest.raises(ValueError, match=r"has 1 weights whose shapes differ.*lm_head\.weight: \[5, 16\]"):
        LanguagePolicy(saved(tmp_path / "cut", tf.LlamaForCausalLM(llama()), cut="lm_head.weight"))


def test_an_encoder_decoder_is_refused_by_its_folder(tmp_path: Path) -> None:
    folder = saved(tmp_path / "bart", tf.BartForConditionalGeneration(tf.BartConfig(**BART)))
    assert json.loads((Path(folder) / "config.json").read_text())["is_encoder_decoder"]
    with pytest.raises(ValueError, match="encoder-decoder"):
        LanguagePolicy(folder)


def test_a_reward_model_without_its_head_and_a_scorer_without_its_trunk_are_refused(tmp_path: Path) -> None:
    base = saved(tmp_path / "base", tf.LlamaForCausalLM(llama()))
    with pytest.raises(ValueError, match="must be a sequence classifier, got a LlamaForCausalLM"):
        RewardModel(base)
    headless = tf.LlamaForSequenceClassification(llama(num_labels=1))
    with pytest.raises(ValueError, match=r"1 are missing.*score\.weight"):
        RewardModel(saved(tmp_path / "headless", headless, drop="score.weight"))
    Scorer(base, tokenizer=letter_tokenizer("abc"))  # it gets a fresh head to train
    model = tf.LlamaForSequenceClassification(llama(num_labels=1))
    with pytest.raises(ValueError, match=r"1 are missing.*model\.norm\.weight"):
        Scorer(
            saved(tmp_path / "lacking", model, drop="model.norm.weight"), tokenizer=letter_tokenizer("abc")
        )


# -- sizes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"vocab_size": 4}, "vocabulary of 4.*token"), ({"max_position_embeddings": 2}, "2 positions")],
    ids=["vocabulary", "positions"],
)
def test_offline_agents_check_the_data_against_the_model(changes: dict[str, Any], message: str) -> None:
    tokenizer = letter_tokenizer("abcdefgh")
    model = llama(**NO_SPECIAL, **changes)
    rows = [
        {"prompt": "aa", "completion": "hg", "reward": 1.0},
        {"prompt": "ab", "completion": "h", "reward": 0.0},
    ]
    pairs = [
        {"prompt": "aa", "chosen": "hg", "rejected": "g"},
        {"prompt": "ab", "chosen": "h", "rejected": "g"},
    ]
    labelled = [{"prompt": "aa", "completion": "hg", "label": i == 0} for i in range(2)]
    data = {"sft": rows, "ilql": rows, "rwr": rows, "dpo": pairs, "kto": labelled, "reward-model": pairs}
    for agent, dataset in data.items():
        with pytest.raises(ValueError, match=message):
            textenv.train(agent, model, tokenizer=tokenizer, dataset=dataset, loggers=())


def test_a_reference_that_is_too_small_is_named() -> None:
    episodes = EpisodeBatch.from_ids([[3, 4]], [[5, 6]])
    episodes.sampling = {"vocab_size": 16}
    for changes, message in (
        ({"vocab_size": 7}, "kl: the reference returns 7 logits, expected at least .* 16"),
        ({"max_position_embeddings": 3}, "kl: the reference has 3 positions, expected at least the 4"),
    ):
        term = KLPenalty(0.1, reference=tf.LlamaForCausalLM(llama(**changes)))
        with pytest.raises(ValueError, match=message):
            term._reference_log_prob(episodes)
    envs = vector_env(2, max_new_tokens=3)
    small = KLPenalty(0.1, reference=tf.LlamaForCausalLM(llama(vocab_size=envs.legality.vocab_size - 1)))
    with pytest.raises(ValueError, match="kl: the reference returns"):
        wrap_reward(envs, small)


def roberta(positions: int) -> tf.RobertaForCausalLM:
    sizes = {**SIZES, "pad_token_id": 1, "is_decoder": True, "max_position_embeddings": positions}
    return tf.RobertaForCausalLM(tf.RobertaConfig(**sizes))


def test_positions_that_are_counted_from_behind_the_padding_are_not_promised() -> None:
    """Position p of a text is row p + 2 of RoBERTa's table, so two rows of it are never used."""
    assert usable_positions(roberta(9)) == 7
    assert usable_positions(tf.LlamaForCausalLM(llama())) == 32
    assert usable_positions(nn.Linear(2, 2)) is None
    tokenizer = letter_tokenizer("abcdefgh")
    envs = make_vec_env(2, prompts=["ab"], tokenizer=tokenizer, max_new_tokens=3, rewards=[])
    with pytest.raises(ValueError, match=r"4 positions, .* the max_length of 5, .* plus max_new_tokens"):
        textenv.collect(envs, DecodingPolicy(roberta(6)), 2, seed=0)
    policy = LanguagePolicy(roberta(7), tokenizer=tokenizer)
    with pytest.warns(UserWarning, match="correct, but slow"):
        episodes = textenv.collect(envs, policy, 2, seed=0)
    torch.testing.assert_close(policy.evaluate(episodes).log_probs, episodes.log_probs)
    rows = [{"prompt": "aaa", "completion": "bb"}]
    with pytest.raises(ValueError, match="the model has 4 positions, expected at least the 6 tokens"):
        textenv.train("sft", roberta(6), tokenizer=tokenizer, dataset=rows, loggers=())
    small = KLPenalty(0.1, reference=roberta(6))
    with pytest.raises(ValueError, match="kl: the reference has 4 positions, expected at least the 5"):
        wrap_reward(envs.unwrapped, small)


@pytest.mark.parametrize("positions", [3, 4])
def test_a_reward_model_of_very_few_positions_is_probed_within_them(positions: int) -> None:
    model = tf.GPT2ForSequenceClassification(
        tf.GPT2Config(
            vocab_size=16, n_positions=positions, n_embd=8, n_layer=1, n_head=1, num_labels=1, **NO_SPECIAL
        )
    )
    if positions < 4:
        with pytest.raises(ValueError, match="the model has 3 positions, expected at least 4"):
            RewardModel(model)
    else:
        assert RewardModel(model)._reader.max_positions == 4


def test_weights_of_other_sizes_than_the_config_says_are_named(tmp_path: Path) -> None:
    folder = saved(tmp_path, tf.LlamaForSequenceClassification(llama(num_labels=1)))
    file = Path(folder) / "model.safetensors"
    weights = {**load_file(file), "model.norm.weight": torch.ones(7)}
    save_file(weights, file, metadata={"format": "pt"})
    message = r"has 1 weights whose shapes differ .* model\.norm\.weight: \[7\], expected \[16\]"
    for load in (RewardModel, lambda name: Scorer(name, tokenizer=letter_tokenizer("abc"))):
        with pytest.raises(ValueError, match=message):
            load(folder)


def test_loading_gives_what_from_pretrained_gives(tmp_path: Path) -> None:
    model = tf.LlamaForCausalLM(llama())
    loaded = load_whole(tf.AutoModelForCausalLM, saved(tmp_path, model), what="model", dtype=torch.float64)
    assert loaded.lm_head.weight.dtype == torch.float64
    assert torch.equal(loaded.lm_head.weight.float(), model.lm_head.weight)
