"""Metrics against reference texts: overlap of words and characters, and of the states of an encoder."""

from __future__ import annotations

from typing import Any

from textenv.agents.evaluation.metrics.registry import Found, Generated, register_metric
from textenv.utils.extras import import_extra


@register_metric("rouge")
def rouge(generated: Generated, column: str = "reference", stem: bool = True) -> Found:
    """ROUGE-1, -2, -L, -Lsum F-measure (Lin 2004; rouge-score), of several references the best, in [0, 1]."""
    scorers = import_extra("rouge_score.rouge_scorer", extra="metrics", what="metric 'rouge'")
    variants = ["rouge1", "rouge2", "rougeL", "rougeLsum"]
    scorer = scorers.RougeScorer(variants, use_stemmer=stem)
    found: dict[str, list[float]] = {variant: [] for variant in variants}
    for text, references in zip(generated.completions, generated.references(column), strict=True):
        scores = [scorer.score(reference, text) for reference in references]
        for variant, values in found.items():
            values.append(max(float(score[variant].fmeasure) for score in scores))
    return {**found}


def _corpus(generated: Generated, column: str, metric: Any) -> float:
    """A corpus score of sacrebleu, scaled from percent to 1; texts may have unlike numbers of references."""
    references = generated.references(column)
    streams = [
        [texts[i] if i < len(texts) else None for texts in references]
        for i in range(max(map(len, references)))
    ]
    return float(metric.corpus_score(generated.completions, streams).score) / 100.0


@register_metric("bleu")
def bleu(generated: Generated, column: str = "reference", lowercase: bool = False) -> Found:
    """Corpus BLEU-4 (Papineni et al. 2002; sacrebleu), in [0, 1]."""
    sacrebleu = import_extra("sacrebleu.metrics", extra="metrics", what="metric 'bleu'")
    return {"bleu": _corpus(generated, column, sacrebleu.BLEU(lowercase=lowercase))}


@register_metric("chrf")
def chrf(generated: Generated, column: str = "reference", word_order: int = 0) -> Found:
    """Corpus chrF, or with ``word_order`` 2 chrF++ (Popovic 2015; sacrebleu), in [0, 1]."""
    sacrebleu = import_extra("sacrebleu.metrics", extra="metrics", what="metric 'chrf'")
    return {"chrf": _corpus(generated, column, sacrebleu.CHRF(word_order=word_order))}


@register_metric("ter")
def ter(generated: Generated, column: str = "reference", case_sensitive: bool = False) -> Found:
    """Corpus translation edit rate (Snover et al. 2006; sacrebleu): 0 is perfect, no upper bound."""
    sacrebleu = import_extra("sacrebleu.metrics", extra="metrics", what="metric 'ter'")
    return {"ter": _corpus(generated, column, sacrebleu.TER(case_sensitive=case_sensitive))}


@register_metric("meteor")
def meteor(generated: Generated, column: str = "reference", synonyms: bool = True) -> Found:
    """METEOR (Banerjee and Lavie 2005; nltk), the best of several references, in [0, 1].

    Args:
        generated: the texts.
        column: of references.
        synonyms: match synonyms, too, which needs WordNet: ``python -m nltk.downloader wordnet``.
    """
    score = import_extra("nltk.translate.meteor_score", extra="metrics", what="metric 'meteor'").meteor_score
    wordnet: Any = _NoSynonyms()
    if synonyms:
        from nltk import corpus

        wordnet = corpus.wordnet
        try:
            wordnet.ensure_loaded()
        except LookupError as error:
            raise ValueError(
                "metric 'meteor' needs WordNet: run `python -m nltk.downloader wordnet`, or say "
                "['meteor', {'synonyms': false}]"
            ) from error
    rows = zip(generated.completions, generated.references(column), strict=True)
    split = [
        (text.lower().split(), [reference.lower().split() for reference in all_of]) for text, all_of in rows
    ]
    return {"meteor": [float(score(references, text, wordnet=wordnet)) for text, references in split]}


class _NoSynonyms:
    """In the place of WordNet: no word has a synonym."""

    @staticmethod
    def synsets(word: str) -> list[Any]:
        return []


@register_metric("bert_score")
def bert_score(
    generated: Generated,
    column: str = "reference",
    model: str = "roberta-large",
    layer: int | None = None,
    batch_size: int = 64,
) -> Found:
    """BERTScore F1 (Zhang et al. 2020; bert-score), the best of several references; 0 for an empty text.

    Args:
        generated: the texts.
        column: of references.
        model: hub id or folder of an encoder, of an architecture that transformers has.
        layer: layer whose hidden states are compared; None takes the default of the package for known models.
        batch_size: texts of one forward pass.
    """
    score = import_extra("bert_score", extra="metrics", what="metric 'bert_score'").score
    references = generated.references(column)
    rows = [i for i, text in enumerate(generated.completions) if text.strip() and any(references[i])]
    values = [0.0] * len(references)
    if rows:
        _check_plain(model)
        _, _, f1 = score(
            [generated.completions[i] for i in rows],
            [[text for text in references[i] if text.strip()] for i in rows],
            model_type=model,
            num_layers=layer,
            batch_size=batch_size,
            use_fast_tokenizer=True,
        )
        for i, value in zip(rows, f1.tolist(), strict=True):
            values[i] = value
    return {"bert_score": values}


def _check_plain(model: str) -> None:
    """Refuse a model with custom code, for which the package would prompt on the terminal.

    Raises:
        ValueError: if the model can't be loaded without such code.
    """
    from transformers import AutoConfig, AutoTokenizer

    for auto in (AutoConfig, AutoTokenizer):
        try:
            auto.from_pretrained(model, trust_remote_code=False)
        except ValueError as error:
            raise ValueError(f"metric 'bert_score': model {model!r} can't be loaded: {error}") from error
