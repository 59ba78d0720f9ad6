"""Scorer: the model of a reward model, a sequence classifier with one score or several heads, and its files.

The saved folder is one that plain ``AutoModelForSequenceClassification`` loads, with one label and the same
scores. Shape letters: B texts, L tokens, K heads, d width.
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from textenv.agents.policies.model_setup import disable_dropout, dropout_restored
from textenv.agents.policies.tokenizer_files import save_tokenizer
from textenv.envs.token_constraints import tokenizer_vocab_size
from textenv.episodes.batch import EpisodeBatch
from textenv.modeling.pretrained import load_pretrained, make_pretrained
from textenv.modeling.saved_runs import model_folder
from textenv.modeling.split_model import eval_mode
from textenv.modeling.whole_weights import load_fitting, refuse_missing
from textenv.rewards.pooling import ScoreReader
from textenv.rewards.retokenize import check_template, text_ids
from textenv.rewards.reward_model import SETTINGS
from textenv.tasks.fetch_model import resolve_model
from textenv.utils.checks import check_device
from textenv.utils.json_files import read_object
from textenv.utils.quiet import without_bars

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

HEADS = "heads.safetensors"
PAD_TOKEN = "<|pad|>"
TEMPLATE = "{prompt}{completion}"
"""Ways to form the scored text from prompt and completion."""
FORMAT = 1


class Scorer(nn.Module):
    """A sequence classifier as a scorer of texts; several heads on one trunk are an ensemble.

    Args:
        model: name or folder of a sequence classifier or of a causal LM (its trunk is taken), a transformers
            config (random weights), or a sequence classifier. A module is not copied.
        tokenizer: None takes the one saved with a model given by name.
        heads: K. The score is their mean, which is one linear head again when it is saved.
        append_eos: texts end by EOS, and are scored there; else at their last token.
        dropout: probability to set everywhere; None turns dropout off.
        device: where to put the model; None leaves it.
        max_tokens: padded tokens of one pass of ``score``.
        template: how prompt and completion become the text that is scored, see ``RewardModel``.
        max_length: longest text in tokens; longer ones lose their beginning.
        seed: seed of new heads and random weights.
        trust_remote_code: whether code that comes with the files may run.

    Raises:
        TypeError: if ``model`` is none of these.
        ValueError: if no final linear layer is found, or the head of a trained model has to be changed.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | PretrainedConfig | nn.Module,
        *,
        tokenizer: PreTrainedTokenizerBase | None = None,
        heads: int = 1,
        append_eos: bool = False,
        dropout: float | None = None,
        device: str | torch.device | None = None,
        max_tokens: int = 16384,
        template: str = TEMPLATE,
        max_length: int | None = None,
        seed: int = 0,
        trust_remote_code: bool = False,
    ) -> None:
        super().__init__()
        if heads < 1:
            raise ValueError(f"heads must be >= 1, got {heads}")
        if device is not None:
            check_device("device", device)
        if isinstance(model, str | os.PathLike):
            model = resolve_model(model)
        if tokenizer is None and isinstance(model, str):
            from transformers import AutoTokenizer

            tokenizer = load_pretrained(
                AutoTokenizer, model, what="tokenizer", trust_remote_code=trust_remote_code
            )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.model, fresh = load_classifier(model, trust_remote_code=trust_remote_code)
            if fresh or heads > 1:
                self._new_head(heads, fresh)
        self.heads, self.append_eos, self.max_tokens, self.seed = heads, append_eos, max_tokens, seed
        check_template(template)
        self.template = template
        self.max_length = max_length
        self.tokenizer = self._with_padding(tokenizer)
        # As in every policy, dropout that the model came with is off; a given probability is put back in.
        self.dropout = dropout
        self._came_with = disable_dropout(self.model)
        if dropout:
            for module in self.model.modules():
                if isinstance(module, nn.Dropout):
                    module.p = dropout
        self.autocast = "float32"
        if device is not None:
            self.model.to(device)
        self._reader = ScoreReader(self.model, tokenizer=self.tokenizer)

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        return next(self.model.parameters()).device

    @property
    def max_positions(self) -> int | None:
        """Longest text in tokens, None if the model names no limit."""
        return self._reader.max_positions

    def forward(self, episodes: EpisodeBatch) -> Tensor:
        """Differentiable scores of each head at the last token of each row: -> (B, K), float32 or float64."""
        with self._precision():
            scores = self._reader(episodes.input_ids, episodes.attention_mask)
        return scores.to(torch.promote_types(scores.dtype, torch.float32))

    @torch.no_grad()
    def score(self, episodes: EpisodeBatch) -> Tensor:
        """(B, K) without gradient, in length-sorted parts of at most ``max_tokens`` padded tokens."""
        scores = torch.zeros(len(episodes), self.heads)
        with eval_mode(list(self.modules())):
            for index, part in episodes.token_budget_batches(self.max_tokens):
                scores[index] = self(part.to(self.device)).float().cpu()
        return scores

    @property
    def longest(self) -> int | None:
        """Longest text that is not cut: the smaller of ``max_length`` and the model's positions."""
        limits = [limit for limit in (self.max_length, self.max_positions) if limit is not None]
        return min(limits) if limits else None

    def score_texts(self, texts: Sequence[str | Sequence[Mapping[str, Any]]]) -> Tensor:
        """(B,) mean scores of whole texts (prompt and completion joined), or of whole conversations.

        Raises:
            ValueError: if there is no tokenizer, or a text has no token.
        """
        if self.tokenizer is None:
            raise ValueError("scoring texts needs a tokenizer, got none")
        ids = text_ids(self.tokenizer, texts, append_eos=self.append_eos, max_length=self.longest)
        return self.score(EpisodeBatch.from_ids(ids, [[]] * len(ids))).mean(-1)

    def reward_spec(self, path: str | os.PathLike[str]) -> list[Any]:
        """Reward spec of the saved folder ``path``, for ``rewards=[scorer.reward_spec(path)]``."""
        settings: dict[str, Any] = {
            "model": os.fspath(path),
            "template": self.template,
            "append_eos": self.append_eos,
        }
        if self.longest is not None:
            settings["max_length"] = self.longest
        return ["reward-model", settings]

    def invalidate(self) -> None:
        """Does nothing: a scorer has no cache."""

    def save(self, path: str | os.PathLike[str], *, reference: bool = False) -> None:
        """Write a folder that plain ``AutoModelForSequenceClassification.from_pretrained`` loads.

        Args:
            path: folder.
            reference: ignored, as a scorer has no reference; agents pass it.
        """
        folder = Path(path)
        folder.mkdir(parents=True, exist_ok=True)
        owner, name = final_linear(self.model)
        head = getattr(owner, name)
        if self.heads > 1:
            save_file(_plain(head.state_dict()), folder / HEADS)
            setattr(owner, name, _mean_head(head))
            self._set_labels(1)
        try:
            with dropout_restored(self._came_with), without_bars():
                self.model.save_pretrained(folder)
        finally:
            setattr(owner, name, head)
            self._set_labels(self.heads)
        if self.tokenizer is not None:
            save_tokenizer(self.tokenizer, folder)
        settings = {
            "format": FORMAT,
            "heads": self.heads,
            "append_eos": self.append_eos,
            "dropout": self.dropout,
            "max_tokens": self.max_tokens,
            "template": self.template,
            "max_length": self.max_length,
            "seed": self.seed,
        }
        (folder / SETTINGS).write_text(json.dumps(settings, indent=2) + "\n")

    @classmethod
    def load(cls, path: str | os.PathLike[str], **options: Any) -> Self:
        """Rebuild a scorer from ``save``'s folder; ``options`` override the saved ones.

        Raises:
            FileNotFoundError: if there is no scorer in the folder.
            ValueError: if it was written by a newer version.
        """
        folder = model_folder(path, scores=True)
        if not (folder / SETTINGS).is_file():
            raise FileNotFoundError(f"{folder} holds no {SETTINGS}; Scorer(folder) takes a plain classifier")
        settings = read_object(folder / SETTINGS, {"format": int})
        version = settings.pop("format")
        settings.pop("trust_remote_code", None)  # only the user may allow it, never a file
        if version > FORMAT:
            raise ValueError(f"{folder} has format {version}, expected at most {FORMAT}; update textenv")
        scorer = cls(folder, **{**settings, **options})
        if scorer.heads > 1:
            owner, name = final_linear(scorer.model)
            getattr(owner, name).load_state_dict(load_file(folder / HEADS))
        return scorer

    def _new_head(self, heads: int, fresh: bool) -> None:
        """Put in K fresh heads (std 1/sqrt(d + 1), Stiennon et al. 2020), or K copies of a trained one."""
        owner, name = final_linear(self.model)
        old: nn.Linear = getattr(owner, name)
        new = nn.Linear(old.in_features, heads, bias=old.bias is not None).to(old.weight)
        with torch.no_grad():
            nn.init.normal_(new.weight, std=(old.in_features + 1) ** -0.5)
            if new.bias is not None:
                nn.init.zeros_(new.bias)
            if not fresh:
                new.weight.copy_(old.weight.expand_as(new.weight))
                if new.bias is not None:
                    new.bias.copy_(old.bias.expand_as(new.bias))
        setattr(owner, name, new)
        self._set_labels(heads)

    def _set_labels(self, count: int) -> None:
        model: Any = self.model
        model.config.num_labels = model.num_labels = count

    def _with_padding(self, tokenizer: PreTrainedTokenizerBase | None) -> PreTrainedTokenizerBase | None:
        """Name a padding token to model and tokenizer: transformers' classifiers find a text's end by it.

        They take the last token that is no padding. Where texts end by EOS, padding can't be EOS too, and
        gets a token of its own, behind the vocabulary.
        """
        config = self.model.config.get_text_config()
        if tokenizer is None:
            return None
        clash = self.append_eos and tokenizer.pad_token_id == tokenizer.eos_token_id
        size = self.model.get_input_embeddings().num_embeddings
        if size < tokenizer_vocab_size(tokenizer):
            raise ValueError(
                f"the model has a vocabulary of {size}, expected at least the tokenizer's of "
                f"{tokenizer_vocab_size(tokenizer)}; each token needs an embedding"
            )
        if tokenizer.pad_token is None or clash:
            tokenizer = copy.deepcopy(tokenizer)
            if self.append_eos or tokenizer.eos_token is None:
                tokenizer.add_special_tokens({"pad_token": PAD_TOKEN})
            else:
                tokenizer.pad_token = tokenizer.eos_token
        pad = int(tokenizer.pad_token_id)
        if pad >= size:
            self.model.resize_token_embeddings(pad + 1, mean_resizing=False)
        config.pad_token_id = self.model.config.pad_token_id = pad
        return tokenizer

    def _precision(self) -> AbstractContextManager[Any]:
        if self.autocast == "float32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=getattr(torch, self.autocast))


def load_classifier(
    source: str | os.PathLike[str] | PretrainedConfig | nn.Module, *, trust_remote_code: bool = False
) -> tuple[Any, bool]:
    """A sequence classifier with one label in float32, and whether its head is fresh.

    Raises:
        TypeError: if ``source`` is no name, folder, config or module.
        ValueError: if a trained classifier has several labels, or weights are missing below its head or have
            another shape than the configuration says.
    """
    from transformers import AutoModelForSequenceClassification, PretrainedConfig

    if isinstance(source, nn.Module):
        model, fresh = source, False
    elif isinstance(source, PretrainedConfig):
        config = copy.deepcopy(source)
        config.num_labels = 1
        model, fresh = (
            make_pretrained(AutoModelForSequenceClassification, config, trust_remote_code=trust_remote_code),
            True,
        )
    elif isinstance(source, str | os.PathLike):
        model, info = load_fitting(
            AutoModelForSequenceClassification,
            source,
            what="model",
            num_labels=1,
            dtype=torch.float32,
            trust_remote_code=trust_remote_code,
        )
        fresh = bool(info["missing_keys"])
        trunk = f"{model.base_model_prefix}."
        missing = [n for n in info["missing_keys"] if n.startswith(trunk) and "pooler" not in n]
        refuse_missing(model, missing, f"model {os.fspath(source)!r}")
    else:
        kind = type(source).__name__
        raise TypeError(f"model must be a name, a folder, a transformers config or a module, got {kind}")
    labels = getattr(getattr(model, "config", None), "num_labels", None)
    if labels != 1:
        raise ValueError(f"a reward model must be a sequence classifier with 1 label, got {labels}")
    return model, fresh


def final_linear(model: Any) -> tuple[nn.Module, str]:
    """The module that holds the layer that makes the scores, and that layer's name in it.

    Raises:
        ValueError: if there is not exactly one such layer.
    """
    trunk = {id(module) for module in model.base_model.modules()} - {id(model)}
    found = [
        (owner, name)
        for owner in model.modules()
        if id(owner) not in trunk
        for name, child in owner.named_children()
        if isinstance(child, nn.Linear)
        and id(child) not in trunk
        and child.out_features == model.config.num_labels
    ]
    if len(found) != 1:
        raise ValueError(
            f"{type(model).__name__} must have one linear layer that makes the scores, got {len(found)}"
        )
    return found[0]


def _mean_head(head: nn.Linear) -> nn.Linear:
    """One head whose score is the mean of the K scores."""
    mean = nn.Linear(head.in_features, 1, bias=head.bias is not None).to(head.weight)
    with torch.no_grad():
        mean.weight.copy_(head.weight.mean(0, keepdim=True))
        if head.bias is not None:
            mean.bias.copy_(head.bias.mean(0, keepdim=True))
    return mean


def _plain(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
