"""A trained reward model as a reward: its score for prompt and response at the last token.

Shape letters: B episodes, L tokens, K labels, d width of the model.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from textenv.envs.token_constraints import tokenizer_vocab_size
from textenv.episodes.batch import EpisodeBatch
from textenv.episodes.conversations import prompt_messages, template_options
from textenv.modeling.pretrained import load_pretrained
from textenv.modeling.split_model import eval_mode
from textenv.modeling.whole_weights import load_whole
from textenv.rewards.pooling import ScoreReader
from textenv.rewards.registry import register_reward
from textenv.rewards.retokenize import (
    check_template,
    leading_special,
    load_tokenizer,
    named_model,
    rendered_ids,
    same_tokenizer,
    without_beginning,
)
from textenv.rewards.term import RewardTerm
from textenv.scoring import RewardError, quote
from textenv.utils.checks import check_at_least, check_choice, check_device, check_flag
from textenv.utils.json_files import read_object

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MOST_LABELS = 20
"""Number of labels that an error lists; a language model used as classifier has one per token."""
SETTINGS = "reward_model.json"
"""File beside the weights with the text format of a reward model that this library trained."""
ACTIVATIONS = ("sigmoid", "softmax", "log-softmax")


@register_reward("reward-model")
class RewardModel(RewardTerm):
    """Score of a sequence-classification or value-head model for prompt and response.

    The last token is found by its position, not by searching for the padding id, so the padding id may
    occur inside the text (if pad = EOS, for example).

    Args:
        model: name or folder of a sequence-classification model, or a module: such a model, a causal model
            with a value head, or a callable ``model(input_ids=, attention_mask=)`` that returns (B,), (B, K)
            or, per token, (B, L) or (B, L, K), directly or as ``.logits``. For the folder of a run of the
            agent "reward-model" or of a pipeline, the reward model in it. For a reward model of this library
            the defaults of ``template``, ``append_eos`` and ``max_length`` are those of its training.
        tokenizer: the model's tokenizer, or its name or folder. None = the one saved with the model, else
            the policy's. If it differs from the policy's, the texts are tokenized again.
        template: the model's text: a format string with {prompt} and {completion}, or "chat" for the
            tokenizer's chat template with the prompt's messages (a text is one user message) and the
            assistant's. None scores the policy's own tokens if the tokenizers are the same, else
            "{prompt}{completion}".
        append_eos: end tokenized texts by EOS.
        label: which label's score is the reward, by name or index; needed if the model has several.
        activation: None for the logit, or "sigmoid", "softmax" or "log-softmax" over the labels.
        head: dotted name of the module that maps hidden states to scores, if it is not found automatically.
        device: of a model loaded by name; by default that of the episodes.
        dtype: of a model loaded by name, such as "bfloat16"; by default as saved.
        max_tokens: padded tokens of one forward pass.
        max_length: longer texts lose their beginning (BOS or CLS stays); None: texts longer than the model's
            positions are an error.

    Raises:
        ValueError: if an argument does not fit the model.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | nn.Module,
        *,
        tokenizer: str | os.PathLike[str] | PreTrainedTokenizerBase | None = None,
        template: str | None = None,
        append_eos: bool | None = None,
        label: str | int | None = None,
        activation: str | None = None,
        head: str | None = None,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        max_tokens: int = 16_384,
        max_length: int | None = None,
    ) -> None:
        check_at_least("reward-model: max_tokens", max_tokens, 1)
        trained: dict[str, Any] = {}
        if max_length is not None:
            check_at_least("reward-model: max_length", max_length, 1)
        if append_eos is not None:
            check_flag("reward-model: append_eos", append_eos)
        if activation is not None:
            check_choice("reward-model: activation", activation, ACTIVATIONS)
        if template is not None:
            check_template(template)
        if isinstance(model, nn.Module):
            for field, value in (("device", device), ("dtype", dtype)):
                if value is not None:
                    raise ValueError(
                        f"reward-model: {field} is for models loaded by name, got {value!r} with a module"
                    )
            self.model = model
        elif isinstance(model, str | os.PathLike):
            if device is not None:
                check_device("reward-model: device", device)
            model = named_model(model, scores=True)
            self.model = _load(model, device, dtype)
            trained = _settings(model)
            template = trained.get("template") if template is None else template
            append_eos = trained.get("append_eos") if append_eos is None else append_eos
        else:
            raise ValueError(f"reward-model: model must be a name, a folder or a module, got {model!r}")
        self.template, self.append_eos = template, bool(append_eos)
        self.activation, self.max_tokens, self.max_length = activation, max_tokens, max_length
        self.own_tokenizer = load_tokenizer(tokenizer, model)
        self._follows = isinstance(model, str) and device is None
        self._retokenize: bool | None = None
        self._reader = ScoreReader(self.model, head=head, tokenizer=self.own_tokenizer)
        if trained and max_length is None:
            limits = [
                one for one in (trained.get("max_length"), self._reader.max_positions) if one is not None
            ]
            self.max_length = min((one for one in limits if one is not None), default=None)
        self.label = self._label_index(label)

    def bind(self, env: Any) -> None:
        """Bind to an environment, and check whether texts have to be tokenized again.

        Raises:
            ValueError: if the policy's tokens are scored and the model's vocabulary is too small.
        """
        super().bind(env)
        if self._follows:
            self.model.to(env.device)
        self._retokenize = self._must_retokenize()
        size = self._reader.vocab_size
        needed = tokenizer_vocab_size(env.tokenizer)
        if not self._retokenize and size is not None and size < needed:
            raise ValueError(
                f"reward-model: the model has {size} tokens, fewer than the policy's tokenizer ({needed}); "
                "give the model's own tokenizer"
            )

    def score(self, episodes: EpisodeBatch) -> Tensor:
        """(B,) scores at the last token.

        Raises:
            RewardError: if a text is too long for the model, or has tokens outside its vocabulary.
        """
        if self._retokenize is None:
            self._retokenize = self._must_retokenize()
        texts = self._rendered(episodes) if self._retokenize else self._tokens(episodes)
        packed = EpisodeBatch.from_ids(texts, [[]] * len(texts))
        device = next(self.model.parameters()).device
        scores = torch.zeros(len(episodes), device=device)
        with torch.no_grad(), eval_mode(list(self.model.modules())):
            for index, part in packed.token_budget_batches(self.max_tokens):
                values = self._reader(part.input_ids.to(device), part.attention_mask.to(device))
                scores[index.to(device)] = self._pick(values.float())
        return scores.to(episodes.device)

    def close(self) -> None:
        """Free a model that was loaded by name."""
        if self._follows:
            self.model.to("cpu")

    # -- internals -----------------------------------------------------------------------------------------

    def _must_retokenize(self) -> bool:
        if self.template is not None:
            return True
        return self.own_tokenizer is not None and not same_tokenizer(self.own_tokenizer, self.tokenizer)

    def _tokens(self, episodes: EpisodeBatch) -> list[list[int]]:
        rows = zip(episodes.input_ids.tolist(), episodes.lengths.tolist(), strict=True)
        texts = [ids[:length] for ids, length in rows]
        if self.append_eos:
            eos = (self.own_tokenizer or self.tokenizer).eos_token_id
            if eos is None:
                raise ValueError("reward-model: append_eos needs a tokenizer with an eos_token")
            texts = [ids if ids[-1:] == [eos] else [*ids, eos] for ids in texts]
        if self.max_length is not None:
            limit, tokenizer = self.max_length, self.own_tokenizer or self.bound_tokenizer
            fronts = [0 if tokenizer is None else leading_special(ids, tokenizer) for ids in texts]
            texts = [without_beginning(ids, limit, n) for ids, n in zip(texts, fronts, strict=True)]
        return self._checked(texts, episodes)

    def _rendered(self, episodes: EpisodeBatch) -> list[list[int]]:
        chat = self.template == "chat"
        texts = episodes.texts(self.tokenizer)
        prompts: Sequence[Any] = (
            prompt_messages(episodes, self.tokenizer) if chat else [prompt for prompt, _ in texts]
        )
        ids = rendered_ids(
            self.own_tokenizer or self.tokenizer,
            prompts,
            [completion for _, completion in texts],
            template=self.template or "{prompt}{completion}",
            append_eos=self.append_eos,
            max_length=self.max_length,
            options=template_options(episodes) if chat else None,
        )
        return self._checked(ids, episodes)

    def _checked(self, texts: list[list[int]], episodes: EpisodeBatch) -> list[list[int]]:
        """Check texts against the model's positions and vocabulary."""
        limit, size = self._reader.max_positions, self._reader.vocab_size
        for row, ids in enumerate(texts):
            if size is not None and max(ids) >= size:
                raise RewardError(
                    f"reward {self.name!r} got token {max(ids)}, but its model has a vocabulary of {size} "
                    f"tokens; give the model's own tokenizer; {quote(episodes, row, self)}"
                )
            if limit is not None and len(ids) > limit:
                raise RewardError(
                    f"reward {self.name!r} got {len(ids)} tokens, but its model has {limit} positions; "
                    f"set max_length to score the end of longer texts; {quote(episodes, row, self)}"
                )
        return texts

    def _label_index(self, label: str | int | None) -> int:
        """Index of the label that is the reward."""
        count, names = self._reader.labels
        if count > 1 and count == self._reader.vocab_size and self._reader.head is None:
            raise ValueError(
                f"reward-model: {type(self.model).__name__} gives a number for each of {count} tokens, as "
                "causal language models do; give a sequence classifier or a model with a value head"
            )
        listed = ", ".join(f"{i}: {names.get(i, i)}" for i in range(min(count, MOST_LABELS)))
        listed += f", ... ({count} in all)" if count > MOST_LABELS else ""
        if label is None:
            if count > 1:
                raise ValueError(
                    f"reward-model: the model has {count} labels ({listed}); choose one by label="
                )
            if self.activation in ("softmax", "log-softmax"):
                raise ValueError(
                    f"reward-model: activation {self.activation!r} needs several labels, the model has one"
                )
            return 0
        index = next((i for i, name in names.items() if name == label), label)
        if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < count:
            raise ValueError(f"reward-model: label must be one of {listed}, got {label!r}")
        return index

    def _pick(self, values: Tensor) -> Tensor:
        """(B, K) -> (B,)."""
        if self.activation == "sigmoid":
            values = values.sigmoid()
        elif self.activation == "softmax":
            values = values.softmax(-1)
        elif self.activation == "log-softmax":
            values = values.log_softmax(-1)
        return values[:, self.label]


def _settings(folder: str) -> dict[str, Any]:
    """Text format of a reward model that this library trained; empty for other models."""
    file = Path(folder) / SETTINGS
    return read_object(file) if file.is_file() else {}


def _load(name: str, device: str | torch.device | None, dtype: str | torch.dtype | None) -> nn.Module:
    from transformers import AutoModelForSequenceClassification

    extra: dict[str, Any] = {} if dtype is None else {"dtype": dtype}
    _refuse_policy(name)
    try:
        model = load_whole(AutoModelForSequenceClassification, name, what="reward-model: model", **extra)
    except OSError as error:
        raise ValueError(str(error)) from error
    model = model.eval().requires_grad_(False)
    return model if device is None else model.to(device)


def _refuse_policy(name: str) -> None:
    """Refuse a language model by its config: transformers would load it and add a random head.

    Raises:
        ValueError: if it is one.
    """
    from transformers import AutoConfig

    try:
        config = load_pretrained(AutoConfig, name, what="reward-model: model")
    except OSError:  # adapters have no config; what is not there at all is found when it is loaded
        return
    kinds = getattr(config, "architectures", None) or []
    own_code = getattr(config, "auto_map", None)  # whose classes may have any name
    if kinds and not own_code and all(kind.endswith(("ForCausalLM", "LMHeadModel")) for kind in kinds):
        raise ValueError(
            f"reward-model: model must be a sequence classifier, got a {kinds[0]} in {name!r}: "
            "it writes texts and has no head for scores"
        )
