"""Metrics by name: values worked by hand or given by the library, and sweeps over decode settings."""

from __future__ import annotations

import io
import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from sacrebleu.metrics import BLEU, CHRF, TER
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from tests.helpers.models import TOKENIZER, tiny
from textenv.agents.evaluation.evaluator import evaluate
from textenv.agents.evaluation.metrics.perplexity import perplexity
from textenv.agents.evaluation.metrics.registry import METRICS, Generated, register_metric
from textenv.agents.evaluation.metrics.suite import check_metrics, measure
from textenv.agents.evaluation.metrics.text import entropy_n, msttr
from textenv.agents.evaluation.sweeps import evaluate_sweep
from textenv.agents.ilql import ILQLPolicy
from textenv.agents.policies.language_policy import LanguagePolicy
from textenv.episodes.batch import EpisodeBatch
from textenv.tasks.make import make_vec_env

TEXTS = ["the cat sat on the mat", "a dog ran", "the cat sat"]
REFERENCES = [["the cat sat on the mat"], ["a dog ran off", "the dog ran"], ["a bird"]]


def generated(texts: list[str] = TEXTS, references: Any = None, **fields: Any) -> Generated:
    """Texts with references; the tokens, a number for each word, are what n-grams by tokens are made of."""
    words = sorted({word for text in texts for word in text.split()})
    ids = [[words.index(word) for word in text.split()] for text in texts]
    if texts is TEXTS and references is None:
        references = REFERENCES
    extras = {} if references is None else {"reference": references}
    episodes = EpisodeBatch.from_ids([[0]] * len(texts), ids, extras=extras)
    return Generated(episodes, ["go"] * len(texts), texts, TOKENIZER, **fields)


def test_rouge_of_the_best_reference() -> None:
    numbers, by_episode = measure(["rouge"], generated())
    # "a dog ran" against "a dog ran off": precision 1, recall 3/4, F 6/7; against "the dog ran": 2/3.
    assert by_episode["rouge1"] == pytest.approx([1.0, 6 / 7, 0.0])
    # Bigrams: 2 of 2 and of 3, F 4/5.
    assert by_episode["rouge2"] == pytest.approx([1.0, 4 / 5, 0.0])
    assert numbers["rougeL"] == pytest.approx((1 + 6 / 7) / 3)


def test_bleu_chrf_and_ter_are_sacrebleus() -> None:
    numbers, _ = measure(["bleu", "chrf", "ter"], generated())
    streams = [["the cat sat on the mat", "a dog ran off", "a bird"], [None, "the dog ran", None]]
    for name, metric in (("bleu", BLEU()), ("chrf", CHRF()), ("ter", TER())):
        assert numbers[name] == pytest.approx(metric.corpus_score(TEXTS, streams).score / 100)
    # Edits: none, one insertion or substitution, and "the cat sat" to "a bird" three, over 6 + 3.5 + 2 words.
    assert numbers["ter"] == pytest.approx((0 + 1 + 3) / (6 + 3.5 + 2))


def test_meteor_without_wordnet() -> None:
    # Two of two words match in one chunk: F 1, penalty 0.5 (1/2)^3.
    found = generated(["good day", "bad"], ["good day", "fine"])
    _, by_episode = measure([["meteor", {"synonyms": False}]], found)
    assert by_episode["meteor"] == pytest.approx([1 - 0.5 / 8, 0.0])


def test_diversity_of_tokens_and_words() -> None:
    texts = ["a b a b", "a c"]
    numbers, _ = measure(["distinct", "entropy", ["msttr", {"segment": 2}]], generated(texts))
    assert numbers["distinct_1"] == pytest.approx(3 / 6)
    assert numbers["distinct_2"] == pytest.approx(3 / 4)  # ab, ba, ab, ac
    shares = [3 / 6, 2 / 6, 1 / 6]
    assert numbers["entropy_1"] == pytest.approx(-sum(p * math.log(p) for p in shares))
    assert numbers["msttr"] == 1.0
    by_words, _ = measure([["distinct", {"by": "words", "n": [1]}]], generated(["A, a!"]))
    assert by_words == {"distinct_1": 3 / 4}  # a , a !
    assert math.isnan(entropy_n([[1]], 2)) and math.isnan(msttr([[1]], 2))
    assert msttr([[1, 1, 2, 3, 4]], 2) == 0.75


def test_self_bleu_is_1_for_equal_texts_and_0_for_texts_with_nothing_in_common() -> None:
    same, _ = measure(["self_bleu"], generated(["a b c d e"] * 3))
    assert same["self_bleu"] == pytest.approx(1.0)
    metric = BLEU(effective_order=True)
    pair = ["a b c d", "a b c e"]
    both, _ = measure([["self_bleu", {"samples": 2}]], generated([*pair, "left out"]))
    expected = sum(metric.sentence_score(x, [y]).score for x, y in (pair, pair[::-1])) / 200
    assert both["self_bleu"] == pytest.approx(expected)
    assert math.isnan(measure(["self_bleu"], generated(["one"]))[0]["self_bleu"])


def test_lengths() -> None:
    numbers, _ = measure(["length", ["length", {"by": "words"}]], generated())
    assert [numbers[f"length_tokens/{name}"] for name in ("mean", "median", "min", "max")] == [4, 3, 3, 6]
    assert numbers["length_tokens/std"] == pytest.approx(math.sqrt(2))
    assert numbers["length_words/mean"] == 4


def test_perplexity_by_hand() -> None:
    model = LanguagePolicy(tiny(positions=16), temperature=3.0)
    batch = EpisodeBatch.from_ids([[0], [1, 2]], [[1, 2, 3], [0]])
    nll = 0.0
    for row, (start, stop) in enumerate([(1, 4), (2, 3)]):
        log_probs = model.model(batch.input_ids[row : row + 1, :stop]).logits[0].log_softmax(-1)
        nll -= sum(float(log_probs[p - 1, batch.input_ids[row, p]].detach()) for p in range(start, stop))
    assert perplexity(model, batch) == pytest.approx(math.exp(nll / 4))  # the temperature is not its own
    assert perplexity(model.reference(), batch, max_tokens=4) == pytest.approx(math.exp(nll / 4))
    assert math.isnan(perplexity(model, EpisodeBatch.from_ids([[0]], [[]])))
    with torch.no_grad():
        model.model.lm_head.weight.mul_(1e6)
    assert perplexity(model, batch) == math.inf


def test_perplexities_of_generations_and_references(tmp_path: Path) -> None:
    policy = LanguagePolicy(tiny(positions=16), tokenizer=TOKENIZER)
    policy.save(tmp_path)
    prompts, texts = ["a", "b"], ["bcd", "aa"]
    batch = EpisodeBatch.from_texts(prompts, texts, TOKENIZER, extras={"reference": ["bcd", "aa"]})
    found = Generated(batch, prompts, texts, TOKENIZER, policy=policy, reference=policy.reference())
    other = ["perplexity", {"model": str(tmp_path)}]
    numbers, _ = measure(["perplexity", "reference_perplexity"], found)
    assert numbers["perplexity"] == pytest.approx(numbers["reference_perplexity/policy"])
    assert numbers["reference_perplexity/model"] == pytest.approx(numbers["reference_perplexity/policy"])
    assert measure([other], found)[0]["perplexity"] == pytest.approx(numbers["perplexity"])
    with pytest.raises(ValueError, match="needs a language model: give reference="):
        measure(["perplexity"], Generated(batch, prompts, texts, TOKENIZER))


def test_bert_score_with_an_encoder_of_ones_own(tmp_path: Path) -> None:
    pytest.importorskip("bert_score")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "cat", "dog", "sat"]
    tokenizer = Tokenizer(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=16,
    ).save_pretrained(tmp_path)
    torch.manual_seed(0)
    BertModel(
        BertConfig(
            vocab_size=8, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
        )
    ).save_pretrained(tmp_path)
    texts = generated(["the cat sat", "the dog", ""], [["the dog sat", "the cat sat"], ["cat"], ["cat"]])
    _, by_episode = measure([["bert_score", {"model": str(tmp_path), "layer": 1}]], texts)
    same, other, empty = by_episode["bert_score"]
    assert same == pytest.approx(1.0, abs=1e-5)
    assert other < 0.999
    assert empty == 0.0


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bert_score", None)
    with pytest.raises(ImportError, match=r"needs bert_score: pip install 'textenv\[metrics\]'"):
        measure(["bert_score"], generated())


def test_mistakes_in_names_options_and_columns() -> None:
    with pytest.raises(ValueError, match="unknown metric 'rogue'; known: rouge, "):
        check_metrics(["rogue"])
    with pytest.raises(ValueError, match="metric 'rouge' has no option 'colum'; known: column"):
        check_metrics([["rouge", {"colum": "summary"}]])
    with pytest.raises(TypeError, match="metrics must be a list of names"):
        check_metrics("rouge")
    with pytest.raises(TypeError, match="a metric must be a name or"):
        check_metrics([["rouge", 3]])
    with pytest.raises(ValueError, match=r"column 'summary' of reference texts is not .*; known: reference"):
        measure([["rouge", {"column": "summary"}]], generated())
    with pytest.raises(ValueError, match=r"reference\[1\] must be a text or a list of texts, got 3"):
        measure(["bleu"], generated(references=["a", 3, "b"]))
    with pytest.raises(ValueError, match="'rouge' is already registered"):
        register_metric("rouge")(METRICS["rouge"])


def envs(**kwargs: Any) -> Any:
    rows = [{"prompt": "a", "reference": "bc"}, {"prompt": "b", "reference": "cd"}]
    return make_vec_env(4, prompts=rows, tokenizer=TOKENIZER, max_new_tokens=6, rewards=["length"], **kwargs)


def model(**kwargs: Any) -> LanguagePolicy:
    config = tiny(positions=16)
    return LanguagePolicy(config, tokenizer=TOKENIZER, **kwargs)


def test_an_evaluation_has_the_metrics_that_it_was_asked_for() -> None:
    policy = model()
    every = [name for name in METRICS if name not in ("meteor", "bert_score")]
    found = evaluate(policy, envs(), 16, metrics=every, reference=policy.reference())
    names = {"rouge1", "bleu", "chrf", "ter", "distinct_1", "entropy_2", "self_bleu", "perplexity"}
    assert names <= {name.removeprefix("metric/") for name in found.metrics}
    assert found.metrics["metric/distinct_1"] == found.metrics["text/distinct_1"]
    assert found.samples[0]["metrics"]["rouge1"] == pytest.approx(0.0)
    with pytest.raises(ValueError, match="unknown metric"):
        evaluate(policy, None, 16, metrics=["blue"])
    mine = evaluate(policy, envs(), 4, metrics=["bleu"], metric_fn=lambda prompts, completions: {"bleu": 7.0})
    assert mine.metrics["metric/bleu"] == 7.0


def test_a_sweep_plays_every_combination_and_restores_the_policy() -> None:
    policy = model(temperature=0.9)
    grid = {"temperature": [0.1, 5.0], "top_k": [0, 1]}
    found = evaluate_sweep(policy, envs(), 32, grid, metrics=["distinct"])
    assert found.settings == [{"temperature": t, "top_k": k} for t in (0.1, 5.0) for k in (0, 1)]
    assert (policy.temperature, policy.decoding.top_k) == (0.9, 0)
    cold, _, hot, greedy = (row["metric/distinct_1"] for row in found.rows())
    assert greedy <= cold < hot
    alone = evaluate(model(temperature=5.0), envs(), 32)
    assert found.evaluations[2].metrics["objective/entropy"] == pytest.approx(
        alone.metrics["objective/entropy"]
    )
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(found.table())
    printed = console.export_text()
    assert "temperature" in printed and "distinct_1" in printed
    assert len(json.loads(json.dumps(found.to_dict()))["evaluations"]) == 4


def test_a_sweep_over_beta_is_for_policies_that_have_one() -> None:
    policy = ILQLPolicy(tiny(), beta=2.0)
    found = evaluate_sweep(policy, envs(), 8, {"beta": [0.0, 4.0]})
    assert [settings["beta"] for settings in found.settings] == [0.0, 4.0]
    assert policy.beta == 2.0
    with pytest.raises(ValueError, match="beta is no decode setting of a LanguagePolicy"):
        evaluate_sweep(model(), envs(), 8, {"beta": [1.0]})


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ({}, "grid must name a setting"),
        ({"temprature": [1.0]}, "unknown decode setting 'temprature'; known: temperature"),
        ({"temperature": 1.0}, "temperature must have a list of values, got 1.0"),
        ({"temperature": [0.0]}, "temperature must be > 0, got 0.0"),
        ({"top_p": [2.0]}, "top_p must lie in"),
    ],
)
def test_mistakes_in_a_grid(grid: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate_sweep(model(), None, 8, grid)
