"""Read a model's score at the last token of each row, by position.

Transformers' causal classifiers search for the last token that differs from the padding id, which is wrong if
that id occurs in the text. Here the head is applied to the hidden state at a position computed from the
attention mask. If a model's parts cannot be identified, its own output is used after a check. Shape letters:
B rows, L tokens, K labels, d width.
"""

from __future__ import annotations

from operator import attrgetter
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from textenv.modeling.model_checks import check_finite, usable_positions
from textenv.modeling.split_model import eval_mode

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

HEAD_NAMES = ("score", "v_head", "value_head", "reward_head")
"""Names of the modules that map hidden states to scores, in transformers and in value-head models."""


class ScoreReader:
    """(B, L) tokens -> (B, K) scores at each row's last token; checked against the model when it is made.

    Args:
        model: the reward model.
        head: dotted name of the module that maps hidden states to scores; None searches for one.
        tokenizer: provides ids that may be padding.

    Raises:
        ValueError: if weights are not finite, the head does not exist, the output has an unsupported shape,
            or the model's own pooling is wrong.
    """

    def __init__(
        self, model: nn.Module, *, head: str | None = None, tokenizer: PreTrainedTokenizerBase | None = None
    ) -> None:
        self.model = model
        config: Any = getattr(model, "config", None)
        text = config.get_text_config() if hasattr(config, "get_text_config") else config
        self.vocab_size = _vocabulary(model, getattr(text, "vocab_size", None))
        """Vocabulary size of the model, None if it is not known."""
        self.max_positions = usable_positions(model)
        """Longest row, None if it is not known."""
        special = [
            getattr(source, f"{kind}_token_id", None)
            for source in (text, tokenizer)
            for kind in ("pad", "eos")
        ]
        self._pads: set[int] = {token for token in special if isinstance(token, int)}
        check_finite(model, "reward-model: the model")
        self.head, self.backbone = _split(model, head)
        self._per_token = False
        self._count = 1
        with torch.no_grad(), eval_mode(list(model.modules())):
            self._probe()

    @property
    def labels(self) -> tuple[int, dict[int, str]]:
        """K, and the labels' names."""
        names = getattr(getattr(self.model, "config", None), "id2label", None) or {}
        return self._count, {int(i): name for i, name in names.items()}

    def __call__(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(B, L) ids and mask, right-padded, no row empty -> (B, K)."""
        last = attention_mask.sum(-1).long() - 1
        rows = torch.arange(len(last), device=last.device)
        mask = attention_mask.long()
        if self.head is not None and self.backbone is not None:
            output = self.backbone(input_ids=input_ids, attention_mask=mask)
            hidden = output.last_hidden_state if hasattr(output, "last_hidden_state") else output[0]
            parameter = next(self.head.parameters(), hidden)
            scores = self.head(hidden[rows, last].to(parameter.dtype))
        else:
            scores = _own_output(self.model, input_ids, mask)
            if self._per_token:
                scores = scores[rows, last]
        return scores.unsqueeze(-1) if scores.dim() == 1 else scores

    # -- checks --------------------------------------------------------------------------------------------

    def _row(self, length: int) -> Tensor:
        """(1, length) ids without padding."""
        size = self.vocab_size or 64
        plain = [i for i in range(min(size, 64)) if i not in self._pads] or [0]
        device = next(self.model.parameters()).device
        return torch.tensor([[plain[i % len(plain)] for i in range(1, length + 1)]], device=device)

    def _probe(self) -> None:
        longest = 5 if self.max_positions is None else min(5, self.max_positions - 2)
        if longest < 2:  # a text, a shorter one, and two columns of padding
            raise ValueError(
                f"reward-model: the model has {self.max_positions} positions, expected at least 4"
            )
        row = self._row(longest)
        ones = torch.ones_like(row)
        if self.head is None or self.backbone is None:
            short, long = (_own_output(self.model, row[:, :n], ones[:, :n]) for n in (longest - 1, longest))
            self._per_token = long.dim() >= 2 and (short.shape[1], long.shape[1]) == (longest - 1, longest)
            if long.dim() not in ((2, 3) if self._per_token else (1, 2)):
                raise ValueError(
                    "reward-model: the model must give (B,), (B, K), (B, L) or (B, L, K), "
                    f"got {tuple(long.shape)} for (1, {longest}) tokens"
                )
        scores = self(row, ones)
        self._count = scores.shape[-1]
        if self.head is not None:
            self._check_head(row, ones, scores)
        elif not self._per_token:
            self._check_pooling(row, ones, scores)

    def _check_head(self, row: Tensor, ones: Tensor, scores: Tensor) -> None:
        """Head and backbone must give the whole model's output for a row without padding."""
        if not hasattr(self.model, "config") or not hasattr(self.model, "num_labels"):
            return  # a model with a value head beside its LM head: its own output is not the score
        own = _own_output(self.model, row, ones)
        if own.shape == scores.shape and not _agree(own, scores):
            raise ValueError(
                f"reward-model: {type(self.model).__name__} does not just apply its head to hidden states "
                f"({own.flatten()[0]:.6g} against {scores.flatten()[0]:.6g}); name the right head with head="
            )

    def _check_pooling(self, row: Tensor, ones: Tensor, scores: Tensor) -> None:
        """A model that pools itself must ignore padding, and only padding."""
        padded = torch.cat([row, row[:, :2] * 0], -1)
        mask = torch.cat([ones, ones[:, :2] * 0], -1)
        if not _agree(self(padded, mask), scores):
            raise ValueError(
                f"reward-model: {type(self.model).__name__} gives a padded text a different score; "
                "name the module that maps hidden states to scores with head="
            )
        for pad in self._pads:
            closed = torch.cat([row, torch.full_like(row[:, :1], pad)], -1)
            if torch.equal(self(closed, torch.ones_like(closed)), scores):
                raise ValueError(
                    f"reward-model: {type(self.model).__name__} treats token {pad} as padding even inside a "
                    "text; name the module that maps hidden states to scores with head="
                )


def _vocabulary(model: nn.Module, named: int | None) -> int | None:
    """Rows of the token embeddings, or the config's vocabulary size."""
    try:
        embeddings: Any = model.get_input_embeddings()  # type: ignore[operator]
    except (AttributeError, NotImplementedError):
        return named
    found = getattr(embeddings, "num_embeddings", None)
    return found if isinstance(found, int) else named


def _split(model: nn.Module, head: str | None) -> tuple[nn.Module | None, nn.Module | None]:
    """Head and backbone, or (None, None) if the model's own output is used."""
    whole: Any = model
    inner = (
        whole.get_base_model() if hasattr(whole, "get_base_model") else whole
    )  # adapters are layers inside
    if head is not None:
        try:
            module = attrgetter(head)(inner)
        except AttributeError:
            module = None
        if not isinstance(module, nn.Module):
            raise ValueError(f"reward-model: head must name a module of {type(inner).__name__}, got {head!r}")
    else:
        found = (getattr(inner, name, None) for name in HEAD_NAMES)
        module = next((one for one in found if isinstance(one, nn.Module)), None)
    if module is None:
        return None, None
    owner = getattr(inner, "pretrained_model", inner)
    backbone = getattr(owner, "base_model", None)
    if backbone is None or backbone is inner or not isinstance(backbone, nn.Module):
        if head is not None:
            raise ValueError(
                f"reward-model: {type(inner).__name__} has no base_model that gives hidden states"
            )
        return None, None
    return module, backbone


def _own_output(model: nn.Module, input_ids: Tensor, mask: Tensor) -> Tensor:
    """The model's own output as a tensor."""
    output: Any = model(input_ids=input_ids, attention_mask=mask)
    output = getattr(output, "logits", output)
    if isinstance(output, tuple | list) and len(output) == 1:
        output = output[0]
    if not isinstance(output, Tensor):
        raise ValueError(
            f"reward-model: {type(model).__name__} must give a tensor, got {type(output).__name__}"
        )
    return output


def _agree(actual: Tensor, expected: Tensor) -> bool:
    """Equal up to the rounding of the dtype."""
    tolerance = 1e-3 if expected.dtype in (torch.float32, torch.float64) else 0.1
    scale = expected.float().abs().max() + 1e-2
    return bool(((actual.float() - expected.float()).abs() <= tolerance * scale).all())
