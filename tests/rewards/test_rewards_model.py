"""Reward models read the right token whatever the padding id is, and score the texts that were meant."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
)

from tests.helpers.reward_helpers import TOKENIZER, classifier, config, episodes, language_model, vector_env
from textenv.episodes.batch import EpisodeBatch
from textenv.rewards.registry import make_reward, spec_of
from textenv.rewards.reward_model import RewardModel
from textenv.scoring import RewardError
from textenv.tasks.letters import letter_tokenizer


def _batch() -> EpisodeBatch:
    return episodes(["ab", "fade bed", "", "cage"])


def _by_hand(model: Any, ids: list[int]) -> float:
    """Score at the last position of one unpadded row."""
    hidden = model.base_model(input_ids=torch.tensor([ids])).last_hidden_state
    return float(model.score(hidden[0, -1])[0].detach())


def _rows(batch: EpisodeBatch) -> list[list[int]]:
    return [ids[:n] for ids, n in zip(batch.input_ids.tolist(), batch.lengths.tolist(), strict=True)]


def _llama(**changes: Any) -> LlamaForSequenceClassification:
    torch.manual_seed(0)
    return LlamaForSequenceClassification(
        LlamaConfig(
            vocab_size=len(TOKENIZER),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=64,
            num_labels=1,
            initializer_range=0.3,
            **changes,
        )
    ).eval()


@pytest.mark.parametrize("pad", [None, TOKENIZER.eos_token_id, TOKENIZER.convert_tokens_to_ids("d")])
@pytest.mark.parametrize("make", [classifier, _llama])
def test_the_last_token_is_read_whatever_the_padding_id(make: Any, pad: int | None) -> None:
    # Every text ends by EOS and one holds many a "d", so a search for the padding id goes wrong.
    model = make(pad_token_id=pad)
    batch = _batch()
    expected = [_by_hand(model, ids) for ids in _rows(batch)]
    got = RewardModel(model).score(batch)
    assert got.tolist() == pytest.approx(expected, abs=1e-5)
    if pad == TOKENIZER.eos_token_id:
        ids, mask = batch.input_ids, batch.attention_mask.long()
        own = model(input_ids=torch.where(mask.bool(), ids, pad), attention_mask=mask).logits.squeeze(-1)
        assert not torch.allclose(own, got, atol=1e-3), (
            "the model's own search is right here: the test proves nothing"
        )


def test_batches_and_order_change_nothing() -> None:
    model, batch = classifier(), _batch()
    whole = RewardModel(model).score(batch)
    torch.testing.assert_close(RewardModel(model, max_tokens=1).score(batch), whole, atol=1e-5, rtol=1e-5)
    order = torch.tensor([3, 1, 0, 2])
    torch.testing.assert_close(
        RewardModel(model).score(batch.select(order)), whole[order], atol=1e-5, rtol=1e-5
    )


def test_dropout_is_off_and_the_mode_is_restored() -> None:
    model = classifier(resid_pdrop=0.5).train()
    term = RewardModel(model)
    assert torch.equal(term.score(_batch()), term.score(_batch())) and model.training
    assert not term.score(_batch()).requires_grad


def test_labels_and_activations() -> None:
    model = classifier(
        num_labels=3, id2label={0: "bad", 1: "fine", 2: "good"}, label2id={"bad": 0, "fine": 1, "good": 2}
    )
    batch = _batch()
    logits = torch.stack([RewardModel(model, label=i).score(batch) for i in range(3)], -1)
    for activation, function in {
        "sigmoid": torch.sigmoid,
        "softmax": lambda x: x.softmax(-1),
        "log-softmax": lambda x: x.log_softmax(-1),
    }.items():
        got = RewardModel(model, label="good", activation=activation).score(batch)
        torch.testing.assert_close(got, function(logits)[:, 2])
    with pytest.raises(ValueError, match=r"has 3 labels \(0: bad, 1: fine, 2: good\); choose one by label="):
        RewardModel(model)
    with pytest.raises(ValueError, match="label must be one of 0: bad, 1: fine, 2: good, got 'great'"):
        RewardModel(model, label="great")
    with pytest.raises(ValueError, match="activation 'softmax' needs several labels, the model has one"):
        RewardModel(classifier(), activation="softmax")


class LastToken(nn.Module):
    """(B,) value of the last token, by the mask."""

    def __init__(self, value: Any = None, width: int = 4) -> None:
        super().__init__()
        self.embed = nn.Embedding(len(TOKENIZER), width)

    def states(self, input_ids: Tensor) -> Tensor:
        return self.embed(input_ids).cumsum(1)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        last = attention_mask.sum(-1) - 1
        return self.states(input_ids)[torch.arange(len(last)), last].sum(-1)


class PerToken(LastToken):
    """(B, L)."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.states(input_ids).sum(-1)


class PerTokenPerLabel(LastToken):
    """(B, L, 4)."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.states(input_ids)


class Padded(LastToken):
    """Reads the last column, padding or not."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.states(input_ids)[:, -1].sum(-1)


@pytest.mark.parametrize("kind", [LastToken, PerToken, PerTokenPerLabel])
def test_any_module_will_do(kind: Any) -> None:
    module, batch = kind(), _batch()
    label = 2 if kind is PerTokenPerLabel else None
    expected = []
    for ids in _rows(batch):
        total = module.embed(torch.tensor(ids)).sum(0)
        expected.append(float((total[2] if label else total.sum()).detach()))
    assert RewardModel(module, label=label).score(batch).tolist() == pytest.approx(expected, abs=1e-4)


def test_a_module_that_reads_padding_is_refused() -> None:
    with pytest.raises(ValueError, match="Padded gives a padded text a different score"):
        RewardModel(Padded())


def test_a_module_that_searches_for_the_padding_id_is_refused() -> None:
    class Searching(LastToken):
        def __init__(self) -> None:
            super().__init__()
            self.config = config(pad_token_id=3)

        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
            return super().forward(input_ids, attention_mask * (input_ids != 3))

    with pytest.raises(ValueError, match="Searching treats token 3 as padding even inside a text"):
        RewardModel(Searching())


def test_an_encoder_classifier_uses_its_own_pooling() -> None:
    torch.manual_seed(0)
    model = BertForSequenceClassification(
        BertConfig(
            vocab_size=len(TOKENIZER),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=32,
            num_labels=1,
            initializer_range=0.3,
            pad_token_id=TOKENIZER.pad_token_id,
        )
    ).eval()
    batch = _batch()
    expected = [float(model(input_ids=torch.tensor([ids])).logits.detach()) for ids in _rows(batch)]
    assert RewardModel(model).score(batch).tolist() == pytest.approx(expected, abs=1e-5)


def test_a_value_head_beside_a_language_model() -> None:
    class WithValueHead(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pretrained_model = language_model()
            self.v_head = nn.Linear(16, 1)

        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
            raise AssertionError("the language model's logits are not needed")

    model, batch = WithValueHead(), _batch()
    backbone = model.pretrained_model.transformer
    expected = [
        float(model.v_head(backbone(torch.tensor([ids])).last_hidden_state[0, -1]).detach())
        for ids in _rows(batch)
    ]
    assert RewardModel(model).score(batch).tolist() == pytest.approx(expected, abs=1e-5)


def test_adapters_are_part_of_the_score() -> None:
    peft = pytest.importorskip("peft")
    model = classifier()
    plain = RewardModel(model).score(_batch())
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["c_attn"], task_type="SEQ_CLS"))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    got = RewardModel(adapted).score(_batch())
    ids = _rows(_batch())[1]
    mask = torch.ones(1, len(ids) - 1, dtype=torch.long)
    assert not torch.allclose(got, plain, atol=1e-3)
    own = float(adapted(input_ids=torch.tensor([ids[:-1]]), attention_mask=mask).logits.detach())
    cut = EpisodeBatch.from_ids([ids[:-1]], [[]])
    assert float(RewardModel(adapted).score(cut)) == pytest.approx(own, abs=1e-5)


# -- texts -------------------------------------------------------------------------------------------------


def _expected(model: Any, tokenizer: Any, texts: list[str], end: list[int] | None = None) -> list[float]:
    return [_by_hand(model, tokenizer(text)["input_ids"] + (end or [])) for text in texts]


def test_another_tokenizer_reads_the_text_again() -> None:
    other = letter_tokenizer("gfedcba xyz:")
    model, batch = classifier(vocab_size=len(other)), episodes(["ab", "fade bed"])
    term = RewardModel(model, tokenizer=other)
    term.bind(vector_env())
    assert term.score(batch).tolist() == pytest.approx(
        _expected(model, other, ["abab", "cfade bed"]), abs=1e-5
    )
    term = RewardModel(model, tokenizer=other, template="x:{prompt} y:{completion}", append_eos=True)
    term.bind(vector_env())
    ends = [other.eos_token_id]
    expected = _expected(model, other, ["x:ab y:ab", "x:c y:fade bed"], ends)
    assert term.score(batch).tolist() == pytest.approx(expected, abs=1e-5)


def test_the_same_tokenizer_scores_the_policys_own_tokens() -> None:
    model, batch = classifier(), episodes(["ab"])
    term = RewardModel(model, tokenizer=letter_tokenizer("abcdefg "))
    term.bind(vector_env())
    assert term.score(batch).tolist() == pytest.approx([_by_hand(model, _rows(batch)[0])], abs=1e-5)


def test_chat_template() -> None:
    other = letter_tokenizer("gfedcba xyz:")
    other.chat_template = (
        "{% for m in messages %}{{ 'x:' if m.role == 'user' else 'y:' }}{{ m.content }}{% endfor %}"
    )
    model = classifier(vocab_size=len(other))
    term = RewardModel(model, tokenizer=other, template="chat")
    term.bind(vector_env())
    got = term.score(episodes(["ab"])).tolist()
    assert got == pytest.approx(_expected(model, other, ["x:aby:ab"]), abs=1e-5)
    other.chat_template = None
    with pytest.raises(ValueError, match='template "chat" needs a tokenizer with a chat template'):
        term.score(episodes(["ab"]))


def test_append_eos_to_the_policys_own_tokens() -> None:
    model, batch = classifier(), episodes(["ab", "c"], eos=[True, False])
    term = RewardModel(model, append_eos=True)
    term.bind(vector_env())
    rows = _rows(batch)
    rows[1].append(TOKENIZER.eos_token_id)
    assert term.score(batch).tolist() == pytest.approx([_by_hand(model, ids) for ids in rows], abs=1e-5)


def test_a_folder_loads_and_its_spec_is_json(tmp_path: Path) -> None:
    model, batch = classifier(), _batch()
    model.save_pretrained(tmp_path / "bare")
    model.save_pretrained(tmp_path / "full")
    TOKENIZER.save_pretrained(tmp_path / "full")
    for folder in ("bare", "full"):
        term: Any = make_reward(["reward-model", {"model": str(tmp_path / folder)}])
        assert spec_of(term) == ["reward-model", {"model": str(tmp_path / folder)}]
        term.bind(vector_env())
        torch.testing.assert_close(term.score(batch), RewardModel(model).score(batch))
        assert (term.own_tokenizer is None) == (folder == "bare")
    half = RewardModel(str(tmp_path / "bare"), dtype="bfloat16")
    assert half.model.dtype == torch.bfloat16
    torch.testing.assert_close(half.score(batch), RewardModel(model).score(batch), atol=0.1, rtol=0.1)
    assert spec_of(RewardModel(model)) is None


def test_a_policy_is_refused_before_its_weights_are_loaded(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    language_model().save_pretrained(tmp_path)
    TOKENIZER.save_pretrained(tmp_path)
    capfd.readouterr()
    with pytest.raises(ValueError, match="model must be a sequence classifier, got a GPT2LMHead"):
        RewardModel(str(tmp_path))
    assert "LOAD REPORT" not in capfd.readouterr().err


def test_too_long_texts() -> None:
    model, batch = classifier(n_positions=8), _batch()
    with pytest.raises(RewardError, match=r"got 10 tokens, but its model has 8 positions; set max_length"):
        RewardModel(model).score(batch)
    expected = [_by_hand(model, ids[-8:]) for ids in _rows(batch)]
    assert RewardModel(model, max_length=8).score(batch).tolist() == pytest.approx(expected, abs=1e-5)


def test_bad_arguments_name_the_field() -> None:
    with pytest.raises(ValueError, match="model must be a name, a folder or a module, got 3"):
        RewardModel(3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="dtype is for models loaded by name, got 'bfloat16'"):
        RewardModel(classifier(), dtype="bfloat16")
    with pytest.raises(
        ValueError, match="head must name a module of GPT2ForSequenceClassification, got 'nope'"
    ):
        RewardModel(classifier(), head="nope")
    with pytest.raises(ValueError, match=r"template must be \"chat\" or hold \{completion\} and maybe"):
        RewardModel(classifier(), template="{prompt} {answer}")
    with pytest.raises(
        ValueError, match="activation must be one of 'sigmoid', 'softmax', 'log-softmax', got 'relu'"
    ):
        RewardModel(classifier(), activation="relu")
    small = RewardModel(classifier(vocab_size=4, bos_token_id=0, eos_token_id=1, pad_token_id=2))
    with pytest.raises(ValueError, match=r"the model has 4 tokens, fewer than the policy's tokenizer \(11\)"):
        small.bind(vector_env())


@pytest.mark.parametrize("label", [None, "nope", 60_000])
def test_an_error_never_lists_fifty_thousand_labels(label: Any) -> None:
    from transformers import GPT2Config, GPT2ForSequenceClassification

    config = GPT2Config(
        n_layer=1, n_embd=4, n_head=1, n_positions=8, vocab_size=8, num_labels=50_000, pad_token_id=0
    )
    with pytest.raises(ValueError, match=r"0: LABEL_0, .*19: LABEL_19, \.\.\.") as found:
        RewardModel(GPT2ForSequenceClassification(config), label=label)
    assert len(str(found.value)) < 600
