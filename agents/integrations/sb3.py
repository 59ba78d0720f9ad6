"""Stable-Baselines3 on text: its unmodified PPO and A2C train a language model on the native environment.

    envs = gymnasium.make_vec("TextRLHF-v0", num_envs=16, task="probe-copy")
    learner = sb3_agent(stable_baselines3.PPO, "gpt2", envs, n_steps=64)
    learner.learn(50_000)

Shape letters: N environment rows, b observations, s sequences, A actions, L tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.distributions import CategoricalDistribution, Distribution
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from textenv.agents.integrations.sb3_buffer import SequenceRolloutBuffer
from textenv.agents.policies.language_policy import LanguagePolicy
from textenv.envs.final_rows import final_row
from textenv.envs.token_constraints import TokenConstraints
from textenv.episodes.batch import EpisodeBatch


class TextVecEnv(VecEnv):
    """The native vector environment, with its reward wrappers, as a ``VecEnv`` of Stable-Baselines3.

    Args:
        envs: a ``TextVectorEnv`` or wrappers around one, with ``autoreset="same_step"``.
        bootstrap_truncated: let SB3 add V after the last token to an episode that the token budget ended. By
            default it is not told of truncation (``info["TimeLimit.truncated"]`` stays False), for the budget
            is part of the task; ``info["truncated"]`` says it either way.

    Raises:
        ValueError: for another autoreset mode.
    """

    def __init__(self, envs: Any, *, bootstrap_truncated: bool = False) -> None:
        base = envs.unwrapped
        if base.autoreset != "same_step":
            raise ValueError(f"envs must have autoreset='same_step', got {base.autoreset!r}")
        self.envs = envs
        self.bootstrap_truncated = bootstrap_truncated
        self._policy: LMActorCriticPolicy | None = None
        self._actions: np.ndarray | None = None
        super().__init__(envs.num_envs, base.single_observation_space, base.single_action_space)

    def bind(self, policy: LMActorCriticPolicy) -> None:
        """Bind the acting policy to the environment; a KL penalty needs it.

        ``sb3_agent`` does it; call it with ``learner.policy`` after SB3's own ``load``.
        """
        self._policy = policy
        self.envs.unwrapped.bind(policy.language)

    def reset(self) -> dict[str, np.ndarray]:
        """Start new episodes, from the seeds of ``seed`` if there are new ones."""
        seeds = None if self._seeds[0] is None else [None if s is None else int(s) for s in self._seeds]
        observation, _ = self.envs.reset(seed=seeds)
        self._reset_seeds()
        self._reset_options()
        self.reset_infos = [{} for _ in range(self.num_envs)]
        return _arrays(observation)

    def step_async(self, actions: np.ndarray) -> None:
        """Keep the actions, and record their log-probs in the environment."""
        self._actions = np.asarray(actions).reshape(self.num_envs)
        known = None if self._policy is None else self._policy.last_act
        # Actions of another origin (``predict``, a script) are not the ones that it was sampled with.
        if known is not None and np.array_equal(known["action"], self._actions):
            self.envs.unwrapped.record(log_prob=known["log_prob"], value=known["value"])

    def step_wait(self) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, list[dict[str, Any]]]:
        """Write the tokens; a row that ended holds its next episode, its last observation is in its info."""
        observation, rewards, terminated, truncated, info = self.envs.step(self._actions)
        rewards = np.array(_array(rewards), dtype=np.float32)
        terminated, truncated = _array(terminated), _array(truncated)
        done = terminated | truncated
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        if done.any():
            final = info["final_obs"]
            final = final if isinstance(final, np.ndarray) else _arrays(final)
            episode = _arrays(info.get("episode", {}))
            for row in np.flatnonzero(done).tolist():
                cut = bool(truncated[row] and not terminated[row])
                infos[row] = {
                    "terminal_observation": final_row(final, row),
                    "TimeLimit.truncated": cut and self.bootstrap_truncated,
                    "truncated": cut,
                }
                if episode:
                    infos[row]["episode"] = {name: value[row].item() for name, value in episode.items()}
        return _arrays(observation), rewards, done, infos

    def render(self, mode: str | None = None) -> Any:
        """The rows as text, see ``TextVectorEnv.render``."""
        return self.envs.render()

    def close(self) -> None:
        """Release the environment."""
        self.envs.close()

    def _owner(self, name: str) -> Any:
        return self.envs if hasattr(self.envs, name) else self.envs.unwrapped

    def get_attr(self, attr_name: str, indices: int | Iterable[int] | None = None) -> list[Any]:
        """An attribute of the one environment, for each row asked for."""
        value = getattr(self._owner(attr_name), attr_name)
        return [value for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: int | Iterable[int] | None = None) -> None:
        """Set an attribute of the environment, which all rows share.

        Raises:
            ValueError: if some rows only are meant.
        """
        if indices is not None and len(list(self._get_indices(indices))) != self.num_envs:
            raise ValueError(f"set_attr({attr_name!r}) sets all rows, got indices {indices}")
        layer = self.envs
        while layer is not self.envs.unwrapped and attr_name not in vars(layer):
            layer = layer.env
        setattr(layer, attr_name, value)

    def env_method(
        self, method_name: str, *method_args: Any, indices: int | Iterable[int] | None = None, **kwargs: Any
    ) -> list[Any]:
        """Call a method of the environment once; a result with N entries is handed out row by row."""
        result = getattr(self._owner(method_name), method_name)(*method_args, **kwargs)
        split = hasattr(result, "__len__") and len(result) == self.num_envs
        result = _array(result) if isinstance(result, Tensor) else result
        return [result[row] if split else result for row in self._get_indices(indices)]

    def env_is_wrapped(
        self, wrapper_class: type[Any], indices: int | Iterable[int] | None = None
    ) -> list[bool]:
        """Whether a wrapper is there; ``Monitor`` counts as there, for its info["episode"] is."""
        found, layer = False, self.envs
        while layer is not None and not found:
            found = isinstance(layer, wrapper_class)
            layer = getattr(layer, "env", None)
        found = found or (issubclass(wrapper_class, Monitor) and self.envs.unwrapped.episode_statistics)
        return [found for _ in self._get_indices(indices)]


class LMActorCriticPolicy(ActorCriticPolicy):
    """A causal LM with a value head as an actor-critic policy of Stable-Baselines3.

    Acting decodes with a key-value cache; training runs teacher-forced, on sequences
    (``SequenceRolloutBuffer``) or, with SB3's own buffer, on one prefix per token. Dropout is 0.

    Args:
        observation_space: of the environment.
        action_space: of the environment.
        lr_schedule: of the algorithm.
        use_sde: must be False.
        model: a ``LanguagePolicy``, or what one is made of. Give a name, folder or config if the algorithm is
            to be saved by SB3: it pickles these arguments.
        legality: the environment's rule of legal tokens; None = all tokens of the action space.
        value_head: see ``LanguagePolicy``.
        optimizer_class: as in SB3.
        optimizer_kwargs: as in SB3.
        options: further arguments of ``LanguagePolicy``.

    Raises:
        ValueError: with ``use_sde``, or for other spaces than a text environment's.
    """

    last_act: dict[str, np.ndarray] | None
    """Result of the last ``forward``: "action", "log_prob", "value", (N,) each."""
    scored_tokens = 0
    """Tokens of the rows that the last ``evaluate_actions`` scored, prompts included."""

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        lr_schedule: Any,
        use_sde: bool = False,
        *,
        model: Any,
        legality: TokenConstraints | None = None,
        value_head: Any = True,
        optimizer_class: type[torch.optim.Optimizer] = torch.optim.Adam,
        optimizer_kwargs: dict[str, Any] | None = None,
        **options: Any,
    ) -> None:
        if use_sde:
            raise ValueError("use_sde is for continuous actions, tokens are not; got True")
        if not isinstance(action_space, spaces.Discrete) or not isinstance(observation_space, spaces.Dict):
            raise ValueError(f"expected a text environment's spaces, got {observation_space}, {action_space}")
        if optimizer_kwargs is None:
            optimizer_kwargs = {"eps": 1e-5} if optimizer_class is torch.optim.Adam else {}
        # ActorCriticPolicy's own constructor would build the networks that the language model replaces.
        BasePolicy.__init__(
            self,
            observation_space,
            action_space,
            optimizer_class=optimizer_class,
            optimizer_kwargs=optimizer_kwargs,
        )
        self.use_sde = False
        self._arguments = {"model": model, "legality": legality, "value_head": value_head, **options}
        if isinstance(model, LanguagePolicy):
            model.add_critic("shared" if value_head is True else value_head)
            self.language = model
        else:
            self.language = LanguagePolicy(model, value_head=value_head, **options)
        self.legality = TokenConstraints(vocab_size=int(action_space.n)) if legality is None else legality
        self.language.legality = self.language.decoding.legality = self.legality
        self.last_act = None
        trainable = [parameter for parameter in self.parameters() if parameter.requires_grad]
        make_optimizer: Any = optimizer_class
        self.optimizer = make_optimizer(trainable, lr=lr_schedule(1), **optimizer_kwargs)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {
            "observation_space": self.observation_space,
            "action_space": self.action_space,
            "lr_schedule": self._dummy_schedule,
            "optimizer_class": self.optimizer_class,
            "optimizer_kwargs": self.optimizer_kwargs,
            **self._arguments,
        }

    def forward(self, obs: Any, deterministic: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """Choose tokens: observations of b rows -> actions (b,), values (b, 1), log-probs (b,)."""
        actions, info = self._act(obs, deterministic)
        # A critic with a separate trunk does not take part in decoding.
        values = info["value"] if "value" in info else self.predict_values(obs).squeeze(-1)
        known = {"action": actions, "log_prob": info["log_prob"], "value": values}
        self.last_act = {name: _array(value) for name, value in known.items()}
        return actions, values.unsqueeze(-1), info["log_prob"]

    def _predict(self, observation: Any, deterministic: bool = False) -> Tensor:
        return self._act(observation, deterministic)[0]

    def _act(self, obs: Any, deterministic: bool) -> tuple[Tensor, dict[str, Tensor]]:
        decoding, before = self.language.decoding, self.language.decoding.greedy
        decoding.greedy = before or deterministic
        try:
            return decoding.act({**obs, "prompt_length": obs["prompt_length"].flatten()})
        finally:
            decoding.greedy = before

    def evaluate_actions(self, obs: Any, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Score actions with gradient, flat: values (A, 1), log-probs (A,), entropies (A,).

        Args:
            obs: prefixes (b, L), of which each has one action; or, with an ``action_mask`` (s, L), sequences
                that hold their A actions already.
            actions: (A,) in the order of the mask.

        Raises:
            ValueError: if the mask does not have A actions.
        """
        obs = dict(obs)
        ids, mask = obs["input_ids"].long(), obs["attention_mask"].bool()
        wanted = obs.get("action_mask")
        if wanted is None:
            rows, lengths = torch.arange(len(ids), device=ids.device), mask.sum(-1)
            ids, mask, wanted = ids.clone(), mask.clone(), torch.zeros_like(mask)
            ids[rows, lengths] = actions.long().flatten()
            mask[rows, lengths] = wanted[rows, lengths] = True
        self.scored_tokens = int(mask.sum())
        wanted = wanted.bool()
        if int(wanted.sum()) != actions.numel():
            raise ValueError(f"action_mask must have {actions.numel()} actions, got {int(wanted.sum())}")
        prompt = obs["prompt_length"].long().flatten()
        # The rule may depend on the step, which is counted from the response's first token.
        columns = torch.arange(ids.shape[1], device=ids.device)
        own = wanted if self.legality.is_trivial else mask & (columns >= prompt.unsqueeze(-1))
        episodes = EpisodeBatch(input_ids=ids, attention_mask=mask, prompt_lengths=prompt, action_mask=own)
        out = self.language(episodes, values=True, entropy=True)
        return out.values[wanted].unsqueeze(-1), out.log_probs[wanted], out.entropy[wanted]

    def predict_values(self, obs: Any) -> Tensor:
        """V of b observations: (b, 1), without gradient."""
        ids, mask = obs["input_ids"].long(), obs["attention_mask"].bool()
        episodes = EpisodeBatch(
            input_ids=ids,
            attention_mask=mask,
            prompt_lengths=obs["prompt_length"].long().flatten(),
            action_mask=torch.zeros_like(mask),
        )
        found = self.language.evaluate(episodes, values=False, final_values=True).final_values
        assert found is not None
        return found.unsqueeze(-1)

    def get_distribution(self, obs: Any) -> Distribution:
        """The distribution of the next token of b observations."""
        ids, mask = obs["input_ids"].long(), obs["attention_mask"].long()
        lengths = mask.sum(-1)
        model: Any = self.language.model
        logits = model(input_ids=ids, attention_mask=mask).logits
        logits = logits[torch.arange(len(ids), device=ids.device), lengths - 1]
        legal = self.legality.apply(logits, lengths - obs["prompt_length"].flatten())
        distribution = CategoricalDistribution(self.legality.vocab_size)
        return distribution.proba_distribution(action_logits=legal / self.language.temperature)


def sb3_agent(
    algorithm: type[Any],
    model: Any,
    envs: Any,
    *,
    sequences: bool = True,
    bootstrap_truncated: bool = False,
    policy_kwargs: Mapping[str, Any] | None = None,
    **options: Any,
) -> Any:
    """An on-policy algorithm of Stable-Baselines3 (``PPO``, ``A2C``) around a language model.

    Args:
        algorithm: the class.
        model: see ``LMActorCriticPolicy``.
        envs: the native vector environment with its reward wrappers.
        sequences: train on whole sequences; False uses SB3's buffer of one prefix per token.
        bootstrap_truncated: see ``TextVecEnv``.
        policy_kwargs: further arguments of ``LMActorCriticPolicy``.
        options: arguments of the algorithm: ``n_steps``, ``learning_rate``, ``seed``, ...

    Returns:
        The algorithm; ``learner.policy.language`` is the ``LanguagePolicy``.
    """
    base = envs.unwrapped
    rows = TextVecEnv(envs, bootstrap_truncated=bootstrap_truncated)
    arguments: dict[str, Any] = {"model": model, "legality": base.legality}
    if not isinstance(model, LanguagePolicy):
        arguments["tokenizer"] = base.tokenizer
    if sequences:
        options.setdefault("rollout_buffer_class", SequenceRolloutBuffer)
    # Without gamma = 1 a reward at the end of a long text is worth little at its beginning.
    options.setdefault("gamma", 1.0)
    learner = algorithm(
        LMActorCriticPolicy, rows, policy_kwargs={**arguments, **(policy_kwargs or {})}, **options
    )
    rows.bind(learner.policy)
    return learner


def _array(value: Any) -> np.ndarray:
    return value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)


def _arrays(values: Mapping[str, Any]) -> dict[str, np.ndarray]:
    return {name: _array(value) for name, value in values.items()}
