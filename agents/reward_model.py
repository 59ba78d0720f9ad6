"""Reward modelling: learn a scalar score of texts from preferences (Bradley-Terry), ratings, or both.

Shape letters: I items (pairs or rated texts), K heads.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from textenv.agents.base.offline import OfflineAgent
from textenv.agents.base.registry import register_agent
from textenv.agents.data.batch import Totals, TrainingBatch
from textenv.agents.data.episodes import is_tokens
from textenv.agents.data.ratings import RewardBatch, drop_tokens
from textenv.agents.data.reward_records import as_reward_batch
from textenv.agents.distributed import process_group
from textenv.agents.evaluation.reward_model import RewardEvaluation
from textenv.agents.evaluation.reward_model_measure import measure
from textenv.agents.losses.reward_model import bradley_terry_loss, centering_loss, rating_loss
from textenv.agents.optim.backend import Stats
from textenv.agents.policies.reward_scorer import Scorer
from textenv.agents.settings.effects import Idle, unlike
from textenv.agents.settings.preferences import RewardModelConfig
from textenv.utils.hashing import hash_key, uniform


@register_agent("reward-model")
class RewardModelAgent(OfflineAgent):
    """Reward modelling: Bradley-Terry with soft labels and margins on pairs, regression on ratings.

    The saved folder loads with ``AutoModelForSequenceClassification``, and as the reward
    ``agent.policy.reward_spec(folder)``.

    Args:
        model: a ``Scorer``, or the model of a new one: a sequence classifier or a causal LM by name or
            folder, a config, or a module.
        dataset: pairs, rated texts, or ``{"pairs": ..., "ratings": ...}``; see ``as_reward_batch``.
        eval_dataset: held-out data of the same form.
        config: settings.
        tokenizer: by default the model's.
        policy_kwargs: further arguments of the ``Scorer`` made around ``model``: ``device``, ...
        callbacks: see ``Agent``; ``on_evaluation`` gets a ``RewardEvaluation``.
        loggers: see ``Agent``.
        run_dir: folder of this run, None keeps nothing.
    """

    config_class: ClassVar[type[RewardModelConfig]] = RewardModelConfig
    config: RewardModelConfig
    from_preferences = True
    policy_class = Scorer  # type: ignore[assignment]
    policy_arguments: ClassVar[Mapping[str, str]] = {
        "heads": "it is the agent's setting heads",
        "append_eos": "it is the agent's setting append_eos",
        "dropout": "it is the agent's setting dropout",
    }
    policy: Scorer  # type: ignore[assignment]
    dataset: RewardBatch
    dataset_template: str | None = None
    """How the texts of the first data set are rendered; None if it was given as tokens."""

    def __init__(
        self,
        model: Any,
        *,
        dataset: Any = None,
        eval_dataset: Any = None,
        config: RewardModelConfig | None = None,
        tokenizer: Any = None,
        policy_kwargs: Mapping[str, Any] | None = None,
        callbacks: Sequence[Any] = (),
        loggers: Sequence[Any] = (),
        run_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        super().__init__(
            model,
            dataset=dataset,
            config=config,
            tokenizer=tokenizer,
            policy_kwargs=policy_kwargs,
            callbacks=callbacks,
            loggers=loggers,
            run_dir=run_dir,
        )
        self.eval_dataset = None if eval_dataset is None else self.load_dataset(eval_dataset)
        # The training loop evaluates if ``eval_envs`` is set.
        self.eval_envs = self.eval_dataset

    def make_policy(self, model: Any) -> Scorer:  # type: ignore[override]
        """The scorer around ``model``."""
        if isinstance(model, Scorer):
            return model
        cfg = self.config
        return Scorer(
            model,
            tokenizer=self.tokenizer,
            heads=cfg.heads,
            append_eos=cfg.append_eos,
            dropout=cfg.dropout,
            seed=cfg.seed,
            **self.policy_kwargs,
        )

    def idle(self) -> Idle:
        """Settings without effect on the data set, or because the scorer was made before."""
        cfg, scorer, found = self.config, self.policy, super().idle()
        if self.of_tokens:
            found |= cfg.changed("max_length", because="on data that are tokens already")
        if not self.dataset.pairs:
            found |= cfg.changed("pair_coef", "centering_coef", because="on data without pairs")
        if not self.dataset.rated:
            found |= cfg.changed("rating_coef", because="on data without ratings")
        if cfg.dropout and not any(isinstance(module, torch.nn.Dropout) for module in scorer.model.modules()):
            found |= cfg.changed("dropout", because="on a model without dropout layers")
        made_with = {"heads": scorer.heads, "append_eos": scorer.append_eos, "dropout": scorer.dropout}
        return found | unlike(cfg, made_with, made_with, "on a Scorer, which was made with its own")

    def load_dataset(self, dataset: Any) -> RewardBatch:
        """Pairs and ratings from the data set, with texts as the scorer reads them.

        Raises:
            ValueError: if a text is longer than the model's positions; see ``as_reward_batch``.
        """
        self.of_tokens = is_tokens(dataset)
        cfg, scorer = self.config, self.policy
        batch = as_reward_batch(
            dataset, scorer.tokenizer, max_length=cfg.max_length, append_eos=scorer.append_eos
        )
        if batch.template is not None and self.dataset_template is None:
            self.dataset_template = scorer.template = batch.template
            scorer.max_length = cfg.max_length
        elif batch.template is not None and batch.template != self.dataset_template:
            raise ValueError(
                "all data sets must be texts or all messages: the first is read as "
                f"{self.dataset_template!r}, this one as {batch.template!r}"
            )
        limit = self.policy.max_positions
        if limit is not None and batch.episodes.input_ids.shape[1] > limit:
            row = int(batch.episodes.lengths.argmax())
            raise ValueError(
                f"row {row} of the data set has {int(batch.episodes.lengths[row])} tokens, but the model has "
                f"{limit} positions; set max_length"
            )
        return batch

    def batch(self, index: Tensor) -> RewardBatch:
        """The items ``index`` of the data set."""
        return self.dataset.select(index)

    # -- learning --------------------------------------------------------------------------------------------

    def optimizer_step(self, batch: TrainingBatch) -> dict[str, float]:
        """One optimizer step; dropout depends only on seed and step, so a resumed run repeats it."""
        if not self.policy.dropout and not self.config.token_dropout:
            return super().optimizer_step(batch)
        with torch.random.fork_rng(devices=[self.policy.device] if self.policy.device.type == "cuda" else []):
            seed = int(hash_key(self.config.seed, self.optimizer_steps)) + process_group.rank()
            torch.manual_seed(seed % 2**63)
            return super().optimizer_step(batch)

    def totals(self, batch: TrainingBatch) -> Totals:
        """Pairs and rated texts of one optimizer step.

        Losses are divided by the expected number of each kind in a batch, so that every pair has the same
        weight; statistics are divided by the actual number.
        """
        assert isinstance(batch, RewardBatch)
        share = self.dataset.pairs / len(self.dataset)
        extra = {
            "pairs": len(batch) * share,
            "rated": len(batch) * (1 - share),
            "pairs_here": float(max(1, batch.pairs)),
            "rated_here": float(max(1, batch.rated)),
        }
        return Totals(tokens=1.0, episodes=float(len(batch)), extra=extra)

    def loss(self, batch: TrainingBatch, totals: Totals) -> tuple[Tensor, Stats]:
        """pair_coef Bradley-Terry loss + centering_coef centering + rating_coef squared error of ratings."""
        assert isinstance(batch, RewardBatch)
        cfg, extra = self.config, totals.extra
        episodes = drop_tokens(batch.episodes, cfg.token_dropout) if cfg.token_dropout else batch.episodes
        scores = self.policy(episodes)
        chosen, rejected, rated = scores.split([batch.pairs, batch.pairs, batch.rated])
        weights = self.bootstrap(batch.item, scores)
        loss = scores.sum() * 0.0
        stats: Stats = {}
        if self.dataset.pairs:
            pairs = bradley_terry_loss(
                chosen,
                rejected,
                margin=batch.margin,
                label=batch.label,
                weights=None if weights is None else weights[: batch.pairs],
                denominator=extra["pairs"],
            )
            loss = loss + cfg.pair_coef * pairs
            gap = (chosen - rejected).detach().mean(-1)
            right = torch.where(gap == 0, 0.5, ((gap > 0) == (batch.label >= 0.5)).to(gap.dtype))
            stats |= {
                "pairs/loss": pairs.detach(),
                "pairs/accuracy": right.sum() / extra["pairs_here"],
                "pairs/margin": gap.sum() / extra["pairs_here"],
            }
            if cfg.centering_coef:
                centering = centering_loss(chosen, rejected, denominator=extra["pairs"])
                loss = loss + cfg.centering_coef * centering
                stats["pairs/centering"] = centering.detach()
        if self.dataset.rated:
            ratings = rating_loss(
                rated,
                batch.ratings,
                weights=None if weights is None else weights[batch.pairs :],
                denominator=extra["rated"],
            )
            loss = loss + cfg.rating_coef * ratings
            error = (rated.detach().mean(-1) - batch.ratings).square()
            stats |= {"ratings/loss": ratings.detach(), "ratings/mse": error.sum() / extra["rated_here"]}
        return loss, stats

    def bootstrap(self, item: Tensor, like: Tensor) -> Tensor | None:
        """How often the bootstrap sample of each head contains each item: (I,) -> (I, K); None for one head.

        Poisson(1) counts, the limit of sampling with replacement, from a hash of seed, head and item: the
        same in every epoch.
        """
        heads = self.policy.heads
        if heads == 1:
            return None
        keys = torch.stack([hash_key(self.config.seed, head, item) for head in range(heads)], -1)
        return _poisson(keys).to(like)

    # -- use -------------------------------------------------------------------------------------------------

    def evaluate(self, dataset: Any = None, episodes: int | None = None, **options: Any) -> RewardEvaluation:  # type: ignore[override]
        """Accuracy and calibration on pairs, rank correlation on rated texts.

        Args:
            dataset: held-out data; None is ``eval_dataset``.
            episodes: largest number of items; None uses all.
            options: ``bins`` of the calibration error.

        Raises:
            ValueError: if there is no data.
        """
        batch = self.eval_dataset if dataset is None else self.load_dataset(dataset)
        if batch is None:
            raise ValueError("evaluate needs a dataset, got None and the agent has no eval_dataset")
        if episodes is not None:
            batch = batch.select(torch.arange(min(episodes, len(batch))))
        return measure(self.policy, batch, **options)

    def act(self, obs: Any, key: Any = None, **options: Any) -> Any:
        """Refused.

        Raises:
            TypeError: always; a reward model scores texts and has no actions.
        """
        raise TypeError("a reward model does not act; it scores: agent.policy.score_texts(texts)")


def _poisson(keys: Tensor) -> Tensor:
    """Poisson(1) counts from hashes: the number of cumulative probabilities below a uniform number."""
    draws = uniform(keys)
    probability = total = 1 / math.e
    counts = torch.zeros_like(draws)
    for k in range(1, 12):
        counts = counts + (draws >= total)
        probability /= k
        total += probability
    return counts
