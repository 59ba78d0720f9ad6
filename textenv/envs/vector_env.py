"""`TextVectorEnv`: text generation as a vectorized Gymnasium environment; transitions happen here only.

A row is one running episode. Its state is a few device tensors; one ``step`` appends one token to every
active row. With ``autoreset="same_step"`` a finished row gets the next prompt in the same step (continuous
batching). Shape letters: N rows, L tokens of the observation, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from torch import Tensor

from textenv.envs.autoreset import AUTORESET_MODES, autoreset_name
from textenv.envs.final_rows import final_entries
from textenv.envs.guards import Guarded, one_thread
from textenv.envs.hooks import EnvHooks
from textenv.envs.host_mirror import HostMirror
from textenv.envs.observation_source import remember_source
from textenv.envs.play_step import play_step
from textenv.envs.rendering import RENDER_FPS, RENDER_MODES, render_rows
from textenv.envs.reset_options import split_options
from textenv.envs.rows import Rows
from textenv.envs.scheduler import EpisodeScheduler, noise_keys
from textenv.envs.spaces import observation_space
from textenv.envs.step_buffer import PARTNER, FinishedEpisodes
from textenv.envs.stop_strings import StopStrings
from textenv.envs.termination import TerminationRule
from textenv.envs.token_constraints import TokenConstraints, tokenizer_vocab_size
from textenv.envs.turn_options import make_turns
from textenv.envs.turn_prompts import padded
from textenv.prompts.prompt_set import PromptSet
from textenv.utils.checks import (
    as_token_ids,
    check_at_least,
    check_choice,
    check_device,
    check_flag,
    check_token_ids,
    is_integer,
    row_seeds,
)
from textenv.utils.devices import to_device
from textenv.utils.host_memory import check_fits

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class TextVectorEnv(Guarded, EnvHooks, VectorEnv[dict[str, Any], Any, Any]):
    """N episodes of text generation in parallel, one token per step.

    Observation: ``{"input_ids": (N, L) int64, "attention_mask": (N, L) int8, "prompt_length": (N,) int64}``,
    right-padded. Action: (N,) token ids in [0, V). The environment's own reward is 0; reward wrappers
    add rewards through ``EnvHooks``. An episode terminates at a stop token or stop string and is
    truncated after ``max_new_tokens`` tokens.

    Args:
        num_envs: N, number of rows.
        prompts: the prompts of the episodes.
        tokenizer: its vocabulary is the action space; its EOS ends an episode.
        max_new_tokens: token budget of a response.
        stop_token_ids: tokens that end an episode, by default the tokenizer's EOS.
        stop_strings: strings that end an episode when the response completes them.
        min_new_tokens: nothing ends an episode before this many tokens were chosen.
        suppressed_tokens: tokens that are never legal (see ``legality``).
        samples_per_prompt: consecutive episodes that share a prompt.
        shuffle: go through the prompts in a new random order every epoch, or in their own order.
        autoreset: "same_step", "next_step" or "disabled", or a ``gymnasium.vector.AutoresetMode``.
        device: of the state.
        arrays: "torch" tensors on ``device``, or "numpy" for clients that do not accept tensors.
        render_mode: None, "ansi" (``render`` returns strings), "rgb_array" (pictures) or "human" (every reset
            and step prints).
        episode_statistics: put return, length and time into ``info["episode"]`` when an episode ends.
            Switch it off below Gymnasium's own ``RecordEpisodeStatistics``, which uses the same key.
        partner: replies when a turn of the policy ends (see ``textenv.partners``). Stop tokens and strings
            then end a turn, and the partner ends the episode. None = episodes of one turn.
        max_turns: most turns of the policy in an episode with a partner, by default 8.
        max_turn_tokens: most tokens of a turn, by default ``max_new_tokens``.
        max_length: most tokens of an episode with a partner, prompt and replies included. By default it has
            room for ``max_turns`` replies of ``Partner.max_reply_tokens``.
        waiting: "block" waits within the step for every reply; "step" lets the other rows go on.
        chat: replies are messages of the tokenizer's chat template.

    Raises:
        TypeError: if a number is not an integer.
        ValueError: if an argument is out of range or prompts and tokenizer do not fit.

    Example:
        >>> from textenv.prompts.prompt_set import PromptSet
        >>> from textenv.tasks.letters import letter_tokenizer
        >>> tokenizer = letter_tokenizer("abc")
        >>> envs = TextVectorEnv(2, prompts=PromptSet([[0], [1]]), tokenizer=tokenizer, max_new_tokens=3)
        >>> obs, info = envs.reset(seed=0)
        >>> obs, rewards, terminated, truncated, info = envs.step([2, tokenizer.eos_token_id])
        >>> obs["attention_mask"].tolist(), terminated.tolist()
        ([[1, 1, 0, 0], [1, 0, 0, 0]], [False, True])
    """

    def __init__(
        self,
        num_envs: int,
        *,
        prompts: PromptSet,
        tokenizer: PreTrainedTokenizerBase,
        max_new_tokens: int,
        stop_token_ids: Sequence[int] | None = None,
        stop_strings: Sequence[str] = (),
        min_new_tokens: int = 0,
        suppressed_tokens: Sequence[int] = (),
        samples_per_prompt: int = 1,
        shuffle: bool = True,
        autoreset: str | AutoresetMode = "same_step",
        device: torch.device | str = "cpu",
        arrays: str = "torch",
        render_mode: str | None = None,
        episode_statistics: bool = True,
        partner: Any = None,
        max_turns: int | None = None,
        max_turn_tokens: int | None = None,
        max_length: int | None = None,
        waiting: str = "block",
        chat: bool = False,
    ) -> None:
        check_at_least("num_envs", num_envs, 1)
        check_at_least("max_new_tokens", max_new_tokens, 1)
        check_at_least("min_new_tokens", min_new_tokens, 0)
        check_at_least("samples_per_prompt", samples_per_prompt, 1)
        self.device = check_device("device", device)
        check_flag("shuffle", shuffle)
        check_flag("episode_statistics", episode_statistics)
        check_choice("arrays", arrays, ("torch", "numpy"))
        check_choice("render_mode", render_mode, (None, *RENDER_MODES))
        if min_new_tokens > max_new_tokens:
            raise ValueError(
                f"min_new_tokens must be <= max_new_tokens ({max_new_tokens}), got {min_new_tokens}"
            )
        vocab_size = tokenizer_vocab_size(tokenizer)
        prompts.check_token_ids(vocab_size)
        if stop_token_ids is None:
            stop_token_ids = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]

        self.num_envs = num_envs
        self.prompts = prompts
        self.tokenizer = tokenizer
        self.max_new_tokens = max_new_tokens
        budgets = {"max_turns": max_turns, "max_turn_tokens": max_turn_tokens, "max_length": max_length}
        self._turns = make_turns(
            partner, num_envs, prompts, tokenizer, max_new_tokens, waiting=waiting, chat=chat, **budgets
        )
        one_turn, turns = prompts.max_length + max_new_tokens, self._turns is not None
        self.max_length = self._turns.limits.max_length if self._turns else one_turn
        """L, the most tokens of an episode: prompt, response and replies."""
        check_fits(f"num_envs={num_envs} rows of {self.max_length} tokens", 16 * num_envs * self.max_length)
        self.samples_per_prompt = samples_per_prompt
        self.shuffle = shuffle
        self.arrays = arrays
        self.autoreset = autoreset_name(autoreset)
        self.render_mode = render_mode
        self.episode_statistics = episode_statistics
        self.autoreset_mode = AUTORESET_MODES[self.autoreset]
        """Gymnasium's name of ``autoreset``, under which its own vector environments have it."""
        self.metadata = {
            "render_modes": [*RENDER_MODES],
            "render_fps": RENDER_FPS,
            "autoreset_mode": self.autoreset_mode,
        }
        self.legality = TokenConstraints(
            vocab_size=vocab_size,
            min_new_tokens=min_new_tokens,
            stop_token_ids=check_token_ids("stop_token_ids", stop_token_ids, vocab_size),
            suppressed_tokens=check_token_ids("suppressed_tokens", suppressed_tokens, vocab_size),
        )
        """Which tokens a policy may choose; the environment itself accepts any token of its action space."""
        self.stop_strings = StopStrings(stop_strings, tokenizer)

        self.single_observation_space = observation_space(vocab_size, self.max_length)
        self.single_action_space = spaces.Discrete(vocab_size)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)

        # On the CPU: it decides what comes next before anything runs on the device.
        self._scheduler = EpisodeScheduler(
            num_envs, len(prompts), samples_per_prompt=samples_per_prompt, shuffle=shuffle
        )
        self.host_mirror = HostMirror(num_envs)
        """CPU copy of the rows' state, so that policies need not read from the device."""
        pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        self._pad = 0 if pad is None or not 0 <= pad < vocab_size else pad
        self._rows = Rows(num_envs, self.max_length, max_new_tokens, self._pad, self.device, turns=turns)
        self._termination = TerminationRule(self.legality, self.stop_strings, max_new_tokens, self.device)
        self._ready = False
        self._restart = np.zeros(0, dtype=np.int64)
        self._init_hooks()

    # -- Gymnasium's interface -----

    @one_thread
    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Start new episodes.

        Args:
            seed: row i plays episodes 0, 1, ... of stream ``seed + i`` (or of ``seed[i]``). None continues
                the streams.
            options: ``{"reset_mask": (N,) bool}`` resets only those rows; ``{"episodes": n}`` plays exactly
                the next n episodes of stream ``seed``, from one queue for all rows (also "first_ticket",
                "rank", "world_size").

        Returns:
            Observation and info, with "key", "episode_id", "prompt_index" and "active", each (N,).

        Raises:
            TypeError: if a seed or an option has the wrong type.
            ValueError: if an option is unknown, an option or a seed is out of range, or a list of seeds does
                not have N entries.
            ClosedEnvironmentError: after ``close``.
        """
        self._admit("reset")
        mask, queue = split_options(options, self.num_envs)
        if mask is not None and not self._ready:
            raise ResetNeeded("options['reset_mask'] needs a full reset() first")
        row_seeds(seed, self.num_envs)
        if is_integer(seed):
            super().reset(seed=int(seed))  # type: ignore[arg-type]
        elif seed is None and self._scheduler.seed is None:
            seed = int(self.np_random.integers(2**31))

        rows = np.arange(self.num_envs) if mask is None else np.flatnonzero(mask)
        self._scheduler.start(seed, rows)
        if mask is None:
            if queue:
                self._scheduler.open_queue(**queue)
            else:
                self._scheduler.close_queue()
            self._rows.clear()
            self.host_mirror.clear()
            self._buffer.clear()
            self._restart = rows[:0]
        else:
            self._rows.active[torch.from_numpy(mask).to(self.device)] = False
            self.host_mirror.deactivate(mask)
            self._restart = np.setdiff1d(self._restart, rows)
        if self._turns is not None:
            self._turns.forget(rows)
        self._ready = True
        self._begin_step()
        self._start_episodes(rows)
        if self.render_mode == "human":
            self.render()
        return self.host_mirror.publish(self._observe(), self._info())

    @one_thread
    def step(self, actions: Any) -> tuple[dict[str, Any], Any, Any, Any, dict[str, Any]]:
        """Append one token to every active row.

        Args:
            actions: (N,) integers in [0, V); those of inactive rows are ignored.

        Returns:
            Observation, rewards (N,) (zero: wrappers add them), terminated (N,), truncated (N,), info. When
            an episode ended, info also holds "episode" {"r", "l", "t"} with "_episode", and in same-step mode
            "final_obs" and "final_info", valid where "_final_obs" (see ``final_entries``).

        Raises:
            ResetNeeded: before the first ``reset``.
            ClosedEnvironmentError: after ``close``.
            TypeError: if the actions are not integers.
            ValueError: if they have the wrong shape or an active row's is out of range.
        """
        self._admit("step")
        if not self._ready:
            raise ResetNeeded("step() was called before reset(); call envs.reset(seed=...) first")
        chosen = as_token_ids(actions, self.num_envs, self.device)
        rows = self._rows
        acting, terminated, truncated, ended_rows, partner_rewards, late = play_step(
            self._turns, self._termination, rows, self.host_mirror, chosen
        )
        if late:  # a policy's values belong to the token that ended the turn
            self._recorded = {name: self._buffer.last(name, rows.steps) for name in self._buffer.recorded}
        self._end_step(acting, terminated, truncated)

        restart, self._restart = self._restart, self._restart[:0]
        ended = self._finish(terminated | truncated, ended_rows) if len(ended_rows) else {}
        if self.render_mode == "human":
            self.render()  # before the next prompts overwrite the finished episodes
        if len(ended_rows) and self.autoreset == "same_step":
            self._transition.replaced = self._start_episodes(ended_rows)
        if len(restart):
            self._start_episodes(restart)
        obs, info = self.host_mirror.publish(self._observe(), {**self._info(), **ended})
        if partner_rewards is not None:
            self.add_reward(PARTNER, partner_rewards)
        return obs, self._out(self.step_reward), self._out(terminated), self._out(truncated), info

    def render(self) -> tuple[Any, ...] | None:
        """The rows as N strings, or as N pictures (H, W, 3) uint8; mode "human" prints.

        Raises:
            ValueError: if the environment was made without ``render_mode``.
            ClosedEnvironmentError: after ``close``.
        """
        self._admit("render")
        if self.render_mode is None:
            raise ValueError(f"render needs render_mode, expected one of {RENDER_MODES} in make, got None")
        return render_rows(self.render_mode, self.tokenizer, self._rows, self._buffer, self._turns)

    def close_extras(self, **kwargs: Any) -> None:
        """Free the device's memory."""
        self.refuse_while_scored("close")
        if self._turns is not None:
            self._turns.close()
        del self._rows, self._termination
        self._close_hooks()

    def action_masks(self) -> Any:
        """Which tokens are legal now: (N, V) bool, under the name that sb3-contrib asks for."""
        self._admit("action_masks")
        return self._out(self.legality.mask(self._rows.turn_steps))

    # -- internal -----

    def _finish(self, done: Tensor, rows: np.ndarray) -> dict[str, Any]:
        """End the episodes of ``rows``, those that are ``done`` (N,), and return their entries of info."""
        last, index = self._transition, to_device(rows, self.device)
        extras = {} if self._turns is None else self._turns.extras(rows.tolist())
        last.finished = FinishedEpisodes.take(
            index, self._rows, last.terminated, last.truncated, self._buffer, extras
        )
        self._rows.active &= ~done
        ended: dict[str, Any] = {}
        ended_rows = self._out(done)
        if self.episode_statistics:
            elapsed = self.host_mirror.elapsed(rows)
            statistics = {
                # The tensor itself: wrappers add rewards to it after this step has returned.
                "r": self._out(last.finished.returns),
                "l": self._out(self._rows.steps * done),
                "t": elapsed if self.arrays == "numpy" else to_device(elapsed, self.device),
            }
            if self.arrays == "numpy":
                last.info_returns = statistics["r"]
            ended = {"episode": statistics, "_episode": ended_rows}
        if self.autoreset == "same_step":
            ended |= final_entries(self._observe(), {**self._info(), **ended}, ended_rows)
        elif self.autoreset == "next_step":
            self._restart = rows
        return ended

    def _start_episodes(self, rows: np.ndarray) -> Tensor:
        """Start the next episode in each of ``rows``; returns those that got one (others are inactive)."""
        assigned = self._scheduler.assign(rows)
        index = to_device(assigned.rows, self.device)
        if len(assigned.rows):
            if self._turns is None:
                ids, attention_mask, lengths = self.prompts.rows(assigned.prompts, self._pad)
            else:
                begun = self._turns.begin(assigned, self.samples_per_prompt)
                ids, attention_mask, lengths = padded(begun, self._pad)
            state: dict[str, np.ndarray | Tensor] = {
                "ids": ids,
                "attention_mask": attention_mask,
                "prompt_lengths": lengths,
                "episode_ids": assigned.episode_ids,
                "prompt_index": assigned.prompts,
                "keys": noise_keys(assigned.noise, self.max_new_tokens + 1),
            }
            self._rows.place(index, **{name: to_device(value, self.device) for name, value in state.items()})
            self.host_mirror.start(assigned.rows, lengths.numpy())
            self._buffer.reset_rows(index)
        return index

    def _observe(self) -> dict[str, Any]:
        state = self._rows.tokens, self._rows.attention_mask, self._rows.turn_starts
        copies = [self._out(tensor.clone(memory_format=torch.contiguous_format)) for tensor in state]
        names = "input_ids", "attention_mask", "prompt_length"
        return remember_source(self, dict(zip(names, copies, strict=True)))

    def _info(self) -> dict[str, Any]:
        rows = self._rows
        info = {
            "key": rows.key(),
            "episode_id": rows.episode_ids.clone(),
            "prompt_index": rows.prompt_index.clone(),
            "active": rows.active.clone(),
        }
        if self._turns is not None:
            info["waiting"] = to_device(self.host_mirror.waiting.copy(), self.device)
        return {name: self._out(value) for name, value in info.items()}

    def _out(self, tensor: Tensor) -> Any:
        return tensor.cpu().numpy() if self.arrays == "numpy" else tensor
