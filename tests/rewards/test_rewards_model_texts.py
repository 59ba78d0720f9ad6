"""What a reward model reads: the same in training and in use, with its special tokens, chats and limits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForSequenceClassification,
)

import textenv
from tests.helpers.template_families import chat_tokenizer
from textenv.agents.data.reward_records import as_reward_batch
from textenv.agents.policies.reward_scorer import Scorer
from textenv.agents.reward_model import RewardModelAgent, RewardModelConfig
from textenv.data.loading import episodes_from_records, load_columns
from textenv.episodes.batch import EpisodeBatch
from textenv.rewards.retokenize import rendered_ids, text_ids
from textenv.rewards.reward_model import RewardModel
from textenv.scoring import RewardError
from textenv.tasks.letters import letter_tokenizer
from textenv.tasks.make import make_vec_env

POLICY = letter_tokenizer("abcdef")
CHAT = letter_tokenizer("abcdefu:;")
CHAT.chat_template = (
    "{% for m in messages %}{{ m['role'][0] }}:{{ m['content'] }}{{ eos_token }};{% endfor %}"
    "{% if add_generation_prompt %}a:{% endif %}"
)


def _framed() -> Any:
    """Letters between [CLS] and [SEP], as BERT's tokenizer."""
    words = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"abcdef"])}
    made = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )


FRAMED = _framed()


class Reader(nn.Module):
    """Scores a row by one of its tokens, and keeps what it read."""

    def __init__(self, place: str) -> None:
        super().__init__()
        self.place, self.read = place, []  # type: ignore[var-annotated]
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        lengths = attention_mask.sum(-1).long()
        self.read += [row[:n].tolist() for row, n in zip(input_ids, lengths.tolist(), strict=True)]
        at = lengths - 1 if self.place == "last" else lengths * 0
        return (input_ids.gather(1, at.unsqueeze(-1)).squeeze(-1) + lengths / 1000) * self.weight


def _episodes(pairs: list[tuple[str, str]], tokenizer: Any = POLICY) -> EpisodeBatch:
    prompts, completions = zip(*pairs, strict=True)
    return EpisodeBatch.from_texts(prompts, completions, tokenizer)


def _scored(term: RewardModel, episodes: EpisodeBatch, tokenizer: Any = POLICY) -> list[float]:
    term.tokenizer = tokenizer
    return term.score(episodes).tolist()


# -- cut -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("place", "expected"), [("first", 2.0), ("last", 3.0)])
def test_a_long_text_keeps_its_special_tokens_and_its_end(place: str, expected: float) -> None:
    model = Reader(place)
    term = RewardModel(model, tokenizer=FRAMED, max_length=6)
    model.read.clear()
    assert _scored(term, _episodes([("abc", "def"), ("a", "b")])) == pytest.approx(
        [expected + 0.006, expected + 0.004]
    )
    read = [FRAMED.convert_ids_to_tokens(row) for row in model.read]
    assert read == [["[CLS]", *"cdef", "[SEP]"], ["[CLS]", "a", "b", "[SEP]"]]
    rows = as_reward_batch(
        [{"prompt": "abc", "chosen": "def", "rejected": "dea"}], FRAMED, max_length=6, append_eos=False
    ).episodes
    assert rows.input_ids[0].tolist() == model.read[0]


def test_the_policys_own_tokens_keep_their_bos() -> None:
    policy = letter_tokenizer("abcdef")
    policy.bos_token = "a"
    model = Reader("last")
    term = RewardModel(model, max_length=4)
    episodes = EpisodeBatch.from_ids([policy("abcd")["input_ids"]], [policy("efb")["input_ids"]])
    model.read.clear()
    _scored(term, episodes, policy)
    assert policy.convert_ids_to_tokens(model.read[0]) == list("aefb")


def test_a_limit_must_leave_room_for_a_text() -> None:
    with pytest.raises(ValueError, match="leave room for a text beside 2 special tokens, got 2"):
        text_ids(FRAMED, ["abc"], max_length=2)
    assert text_ids(FRAMED, ["abc"], max_length=3) == [[2, FRAMED.convert_tokens_to_ids("c"), 3]]


def test_eos_is_appended_before_the_cut() -> None:
    ids = text_ids(POLICY, ["abc"], append_eos=True, max_length=2)
    assert ids == [[POLICY.convert_tokens_to_ids("c"), POLICY.eos_token_id]]


# -- empty texts ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("template", [None, "{completion}", "{prompt}{completion}", "chat"])
def test_an_empty_completion_is_scored(template: str | None) -> None:
    model = Reader("last")
    term = RewardModel(model, tokenizer=CHAT, template=template)
    model.read.clear()
    _scored(term, _episodes([("ab", ""), ("ab", "c")], CHAT), CHAT)
    texts = {
        None: ["ab" + CHAT.eos_token, "abc" + CHAT.eos_token],
        "{completion}": [CHAT.bos_token, "c"],
        "{prompt}{completion}": ["ab", "abc"],
        "chat": [f"u:ab{CHAT.eos_token};a:{text}{CHAT.eos_token};" for text in ("", "c")],
    }
    assert sorted(map(CHAT.decode, model.read)) == sorted(texts[template])
    if template == "{completion}":
        model = Reader("first")
        term = RewardModel(model, tokenizer=FRAMED, template=template)
        model.read.clear()
        assert _scored(term, _episodes([("ab", "")])) == pytest.approx([2.002])
        assert model.read == [[2, 3]]


# -- chats ---------------------------------------------------------------------------------------------------

TALK = [
    {"role": "user", "content": "a"},
    {"role": "assistant", "content": "b"},
    {"role": "user", "content": "c"},
]


@pytest.mark.parametrize("as_text", [False, True])
@pytest.mark.parametrize("scoring", ["deferred", "immediate"])
def test_a_chat_is_read_as_it_is_in_training(as_text: bool, scoring: str) -> None:
    prompt = [{"role": "user", "content": "ab"}] if as_text else TALK
    model = Reader("last")
    term = RewardModel(model, tokenizer=CHAT, template="chat")
    envs = make_vec_env(
        1,
        prompts=["ab"] if as_text else [prompt],
        tokenizer=CHAT,
        chat_template=True,
        rewards=[["weighted", {"of": term, "weight": 2.0}]],
        max_new_tokens=2,
    )
    model.read.clear()
    letter = CHAT.convert_tokens_to_ids("d")
    batch = textenv.collect(envs, lambda obs, info: [letter], 1, seed=0, scoring=scoring)
    answer = {"role": "assistant", "content": "dd"}
    expected = CHAT.apply_chat_template([*prompt, answer], tokenize=False)
    assert CHAT.decode(model.read[-1]) == expected
    score = CHAT.convert_tokens_to_ids(";") + len(model.read[-1]) / 1000
    assert batch.returns.tolist() == pytest.approx([2.0 * score])
    rows = as_reward_batch(
        {
            "pairs": [
                {"prompt": prompt, "chosen": [answer], "rejected": [{"role": "assistant", "content": "e"}]}
            ],
            "ratings": [{"messages": [*prompt, answer], "rating": 1.0}],
        },
        CHAT,
        append_eos=False,
    ).episodes
    for row in (0, 2):
        assert rows.input_ids[row, : rows.lengths[row]].tolist() == model.read[-1]


def _config(**changes: Any) -> GPT2Config:
    return GPT2Config(
        vocab_size=len(CHAT), n_positions=32, n_layer=1, n_embd=8, n_head=1, pad_token_id=CHAT.eos_token_id,
        **changes,
    )  # fmt: skip


def test_a_scorer_trained_on_chats_says_so(tmp_path: Path) -> None:
    pair = {
        "prompt": TALK,
        "chosen": [{"role": "assistant", "content": "dd"}],
        "rejected": [{"role": "assistant", "content": "e"}],
    }
    cfg = RewardModelConfig(batch_size=1, max_length=12)
    agent = RewardModelAgent(_config(), dataset=[pair], tokenizer=CHAT, config=cfg)
    agent.policy.save(tmp_path)
    again = Scorer.load(tmp_path)
    name, settings = again.reward_spec(tmp_path)
    assert (settings["template"], settings["max_length"]) == ("chat", 12)
    term = textenv.make_reward([name, settings])
    batch = EpisodeBatch.from_texts(["a"], ["dd"], CHAT)
    batch.extras = {"prompt_messages": [TALK]}
    assert _scored(term, batch, CHAT) == pytest.approx(
        again.score(agent.dataset.episodes.select([0])).tolist()[0]
    )  # type: ignore[arg-type]
    whole = [[*TALK, *pair["chosen"]]]
    assert again.score_texts(whole).tolist() == pytest.approx(_scored(term, batch, CHAT))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="all data sets must be texts or all messages"):
        agent.evaluate([{"prompt": "a", "chosen": "b", "rejected": "c"}])


def test_texts_and_messages_are_not_mixed() -> None:
    said = [{"role": "assistant", "content": "d"}]
    with pytest.raises(TypeError, match="row 0: prompt and completion must both be texts or both messages"):
        as_reward_batch([{"prompt": "a", "chosen": said, "rejected": "b"}], CHAT)
    rows = [{"messages": [*TALK, *said], "reward": 1.0}]
    pairs = [{"prompt": "a", "chosen": "b", "rejected": "c"}]
    with pytest.raises(ValueError, match="pairs and ratings must be all texts or all messages"):
        as_reward_batch({"pairs": pairs, "ratings": rows}, CHAT)


def test_pairs_that_are_equal_once_cut_are_counted() -> None:
    pairs = [
        {"prompt": "a", "chosen": "bcd", "rejected": "ecd"},
        {"prompt": "a", "chosen": "b", "rejected": "c"},
    ]
    with pytest.warns(UserWarning, match="chosen and rejected have the same tokens in 1 of 2 pairs"):
        as_reward_batch(pairs, POLICY, max_length=2)


def test_what_the_tokenizer_closes_a_text_with_is_read_in_both(tmp_path: Path) -> None:
    """A tokenizer may end every text by EOS (T5, RoBERTa); training must not take it away."""
    closing = _framed()
    closing.add_special_tokens({"eos_token": "[SEP]"})
    rows = as_reward_batch([{"text": "ab", "rating": 1.0}], closing, append_eos=False).episodes
    assert rows.input_ids.tolist() == text_ids(closing, ["ab"]) == [[2, 4, 5, 3]]


# -- limits --------------------------------------------------------------------------------------------------


def test_roberta_counts_positions_from_behind_the_padding() -> None:
    config = RobertaConfig(
        vocab_size=len(FRAMED), hidden_size=8, intermediate_size=8, num_hidden_layers=1,
        num_attention_heads=1, max_position_embeddings=10, num_labels=1, pad_token_id=1,
    )  # fmt: skip
    term = RewardModel(RobertaForSequenceClassification(config), tokenizer=FRAMED)
    _scored(term, _episodes([("abc", "def")]))  # 8 tokens, the last position
    with pytest.raises(RewardError, match="got 9 tokens, but its model has 8 positions; set max_length"):
        _scored(term, _episodes([("abcd", "def")]))


def test_a_model_with_a_smaller_vocabulary_is_named() -> None:
    torch.manual_seed(0)
    scorer = Scorer(_config().__class__(**{**_config().to_dict(), "vocab_size": 5, "pad_token_id": 0}))
    term = RewardModel(scorer.model, tokenizer=FRAMED)
    with pytest.raises(RewardError, match="got token 9, but its model has a vocabulary of 5 tokens"):
        _scored(term, _episodes([("a", "f")]))


def test_a_causal_model_is_no_reward_model() -> None:
    with pytest.raises(ValueError, match="GPT2LMHeadModel gives a number for each of 12 tokens") as caught:
        RewardModel(GPT2LMHeadModel(_config(eos_token_id=None, bos_token_id=None)))
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("name", ["mistral", "llama-2", "chatml"])
def test_the_blank_that_a_template_writes_before_an_answer_is_there_once(name: str) -> None:
    tokenizer = chat_tokenizer(name)
    user, answer = {"role": "user", "content": "the dog"}, {"role": "assistant", "content": "the fox"}
    episodes = episodes_from_records(load_columns([{"messages": [user, answer]}]), tokenizer)
    said = episodes.completion_texts(tokenizer)[0].removesuffix(" " * (name == "llama-2"))
    assert said == " the fox" if name != "chatml" else said == "the fox"
    read = rendered_ids(tokenizer, [[user]], [said], template="chat")
    assert read == text_ids(tokenizer, [[user, answer]])
