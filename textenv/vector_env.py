"""`TextVectorEnv`: text generation as a vectorized Gymnasium environment; the only place where a
transition happens.

A row is one episode in progress. Its state is a handful of device tensors; one ``step`` appends one token
to every active row. With ``autoreset="same_step"`` a finished row gets the next prompt at once, which is
continuous batching.
Shape letters: N rows, L tokens of the observation, T response tokens, F rows that finished in a step.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from torch import Tensor

from textenv.checks import as_token_ids, check_at_least, check_choice, refuse_actions
from textenv.episodes import EpisodeBatch
from textenv.ledger import RAW_PREFIX, Finished, Ledger
from textenv.legality import Legality
from textenv.prompts import PromptSet
from textenv.render import render_row
from textenv.rows import Rows
from textenv.stop_strings import StopStrings
from textenv.tickets import TicketStreams, noise_base, noise_key, prompt_index

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

AUTORESET_MODES = {
    "same_step": AutoresetMode.SAME_STEP,
    "next_step": AutoresetMode.NEXT_STEP,
    "disabled": AutoresetMode.DISABLED,
}
RENDER_MODES = ("ansi", "human")
RESET_OPTIONS = ("episodes", "first_ticket", "rank", "world_size", "reset_mask")


class TextVectorEnv(VectorEnv[dict[str, Any], Any, Any]):
    """N texts written in parallel, one token a step.

    Observation: ``{"input_ids": (N, L) int64, "attention_mask": (N, L) int8, "prompt_length": (N,) int64}``,
    right-padded. Action: (N,) token ids in [0, V). The environment itself pays 0; rewards come from reward
    wrappers. An episode terminates at a stop token or stop string and is truncated after
    ``max_new_tokens`` tokens.

    Args:
        num_envs: N, rows played in parallel.
        prompts: the prompts to deal.
        tokenizer: its vocabulary is the action space; its EOS ends an episode.
        max_new_tokens: token budget of a response.
        stop_token_ids: tokens that end an episode, by default the tokenizer's EOS.
        stop_strings: strings that end an episode when the response completes them.
        min_new_tokens: stop tokens are illegal before this many tokens were chosen.
        suppressed_tokens: tokens that are never legal.
        samples_per_prompt: consecutive tickets that share a prompt.
        shuffle: deal prompts in a fresh random order every epoch, or in their own order.
        autoreset: "same_step", "next_step" or "disabled".
        device: where the state lives.
        arrays: "torch" tensors on ``device``, or "numpy" for clients that can't take tensors.
        render_mode: None, "ansi" (``render`` returns strings) or "human" (``render`` prints).
        episode_statistics: put return, length and time into ``info["episode"]`` when an episode ends.
            Switch it off below Gymnasium's own ``RecordEpisodeStatistics``, which claims the same key.

    Raises:
        ValueError: if an argument is out of range or prompts and tokenizer do not fit.
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
        autoreset: str = "same_step",
        device: torch.device | str = "cpu",
        arrays: str = "torch",
        render_mode: str | None = None,
        episode_statistics: bool = True,
    ) -> None:
        check_at_least("num_envs", num_envs, 1)
        check_at_least("max_new_tokens", max_new_tokens, 1)
        check_at_least("min_new_tokens", min_new_tokens, 0)
        check_at_least("samples_per_prompt", samples_per_prompt, 1)
        check_choice("autoreset", autoreset, AUTORESET_MODES)
        check_choice("arrays", arrays, ("torch", "numpy"))
        if render_mode is not None:
            check_choice("render_mode", render_mode, RENDER_MODES)
        if min_new_tokens > max_new_tokens:
            raise ValueError(
                f"min_new_tokens must be <= max_new_tokens ({max_new_tokens}), got {min_new_tokens}"
            )
        vocab_size = len(tokenizer)
        if prompts.min_token_id < 0 or prompts.max_token_id >= vocab_size:
            worst = prompts.min_token_id if prompts.min_token_id < 0 else prompts.max_token_id
            raise ValueError(
                f"prompts must hold token ids in [0, {vocab_size}) (the tokenizer's), got {worst}"
            )
        if stop_token_ids is None:
            stop_token_ids = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]

        self.num_envs = num_envs
        self.prompts = prompts
        self.tokenizer = tokenizer
        self.max_new_tokens = max_new_tokens
        self.max_length = prompts.max_length + max_new_tokens
        self.samples_per_prompt = samples_per_prompt
        self.shuffle = shuffle
        self.device = torch.device(device)
        self.arrays = arrays
        self.autoreset = autoreset
        self.render_mode = render_mode
        self.episode_statistics = episode_statistics
        self.metadata = {"render_modes": list(RENDER_MODES), "autoreset_mode": AUTORESET_MODES[autoreset]}
        self.legality = Legality(
            vocab_size=vocab_size,
            min_new_tokens=min_new_tokens,
            stop_token_ids=tuple(stop_token_ids),
            suppressed_tokens=tuple(suppressed_tokens),
        )
        self.stop_strings = StopStrings(stop_strings, tokenizer)
        self.policy: Any = None
        """The policy that ``bind`` was told of; KL penalties ask it for log-probs and its reference."""

        self.single_observation_space = spaces.Dict(
            {
                "input_ids": spaces.Box(0, vocab_size - 1, (self.max_length,), np.int64),
                "attention_mask": spaces.Box(0, 1, (self.max_length,), np.int8),
                "prompt_length": spaces.Discrete(self.max_length + 1),
            }
        )
        self.single_action_space = spaces.Discrete(vocab_size)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)

        # Tickets live on the CPU: they decide which prompt comes next, before anything runs on the device.
        self._tickets = TicketStreams(num_envs)
        self._started = np.zeros(num_envs)

        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        self._pad = 0 if pad is None or not 0 <= pad < vocab_size else pad
        self._rows = Rows.empty(num_envs, self.max_length, self._pad, self.device)
        self._ledger = Ledger(num_envs, max_new_tokens, self.device)
        self._columns = torch.arange(self.max_length, device=self.device)
        self._row_index = torch.arange(num_envs, device=self.device)
        self._stops = torch.tensor(list(stop_token_ids), dtype=torch.int64, device=self.device)
        self._may_complete = self.stop_strings.may_complete.to(self.device)
        self._ready = False
        self._waiting: np.ndarray | None = None
        self._recorded_next: dict[str, Tensor] = {}
        self._recorded_last: dict[str, Tensor] = {}
        self._forget_step()

    # -- Gymnasium's face -----

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Start new episodes.

        Args:
            seed: row i deals tickets 0, 1, ... of stream ``seed + i`` (or of ``seed[i]``). None goes on
                counting.
            options: ``{"reset_mask": (N,) bool}`` resets only those rows; ``{"episodes": n}`` plays
                exactly the next n tickets of stream ``seed``, drawn from one queue by all rows (also
                "first_ticket", "rank", "world_size").

        Returns:
            Observation and info, with the keys "key", "episode_id", "prompt_index" and "active", each (N,).

        Raises:
            ValueError: if an option is unknown or out of range, or a seed list does not have N entries.
        """
        options = dict(options or {})
        for name in options:
            check_choice("options", name, RESET_OPTIONS)
        mask = options.pop("reset_mask", None)
        rows = np.arange(self.num_envs) if mask is None else np.flatnonzero(self._check_mask(mask))
        if seed is None and self._tickets.seed is None:
            seed = int(self.np_random.integers(2**31))
        elif isinstance(seed, int | np.integer):
            super().reset(seed=int(seed))
        self._tickets.start(seed, rows)
        if "episodes" in options:
            if mask is not None:
                raise ValueError(
                    "options['episodes'] starts all rows and can't be combined with 'reset_mask'"
                )
            self._tickets.open_queue(**options)
        elif options:
            raise ValueError(f"options {sorted(options)} need options['episodes']")
        elif mask is None:
            self._tickets.queue = None
        if mask is None:
            self._rows.active.fill_(False)
        self._ready = True
        self._waiting = None
        self._forget_step()
        self._deal(rows)
        return self._observe(), self._info()

    def step(self, actions: Any) -> tuple[dict[str, Any], Any, Any, Any, dict[str, Any]]:
        """Append one token to every active row.

        Args:
            actions: (N,) integers in [0, V); those of inactive rows are ignored.

        Returns:
            Observation, rewards (N,) (zero: wrappers pay), terminated (N,), truncated (N,), info. When an
            episode ended, info also holds "episode" {"r", "l", "t"} with "_episode", and in same-step mode
            the batched "final_obs" and "final_info", valid where "_final_obs".

        Raises:
            ResetNeeded: before the first ``reset``.
            TypeError: if the actions are not integers.
            ValueError: if they have the wrong shape, are out of range, or an active row's token is not legal.
        """
        if not self._ready:
            raise ResetNeeded("step() was called before reset(); call envs.reset(seed=...) first")
        chosen = as_token_ids(actions, self.num_envs, self.device)
        rows, acting = self._rows, self._rows.active.clone()
        legal = self.legality.is_legal(chosen, rows.steps)
        stops = torch.isin(chosen, self._stops) if len(self._stops) else torch.zeros_like(acting)
        out_of_budget = rows.steps + 1 >= self.max_new_tokens
        maybe = (
            self._may_complete[chosen.clamp(0, self.legality.vocab_size - 1)] if self.stop_strings else None
        )
        # The one place per token where the host waits for the device.
        checks = [
            (acting & ~legal).any(),
            (acting & (stops | out_of_budget)).any(),
            *([] if maybe is None else [maybe.any()]),
        ]
        flags = torch.stack(checks).tolist()
        if flags[0]:
            refuse_actions(self.legality, chosen, rows.steps, acting & ~legal)
        if maybe is not None and flags[2]:
            stops = stops | self._stop_strings_completed(chosen, acting & maybe & ~stops)
            flags[1] = bool((acting & (stops | out_of_budget)).any())

        rows.append(chosen, acting, self._row_index)
        terminated = acting & stops
        truncated = acting & out_of_budget & ~terminated
        done = terminated | truncated
        self._forget_step()
        self._acting, self._done = acting, done
        self._terminated, self._truncated = terminated, truncated
        rewards = torch.zeros(self.num_envs, device=self.device)

        self._recorded_last, self._recorded_next = self._recorded_next, {}
        waiting, self._waiting = self._waiting, None
        extra: dict[str, Any] = {}
        if flags[1]:
            extra = self._finish(done)
        if waiting is not None:
            self._deal(waiting)
        observation, info = self._observe(), self._info()
        info.update(extra)
        if self.render_mode == "human":
            self.render()
        return observation, self._out(rewards), self._out(terminated), self._out(truncated), info

    def render(self) -> tuple[str, ...] | None:
        """The rows as text: N strings in mode "ansi"; printed in mode "human".

        Raises:
            ValueError: if the environment was made without ``render_mode``.
        """
        if self.render_mode is None:
            raise ValueError(f"render needs render_mode, expected one of {RENDER_MODES} in make, got None")
        frames = tuple(
            render_row(self.tokenizer, self._rows, row, self._ledger.totals(row))
            for row in range(self.num_envs)
        )
        if self.render_mode == "ansi":
            return frames
        print("\n".join(frames), flush=True)
        return None

    # -- what rewards and policies ask -----

    def bind(self, policy: Any) -> None:
        """Tell reward terms which policy plays here."""
        self.policy = policy

    def record(self, **values: Tensor) -> None:
        """Store what the policy knows about the coming step, (N,) each: ``log_prob`` and ``value``.

        They come back in the finished episodes as ``log_probs`` and ``values``.
        """
        for name, value in values.items():
            if tuple(value.shape) != (self.num_envs,):
                raise ValueError(
                    f"record({name}=...) must have shape ({self.num_envs},), got {tuple(value.shape)}"
                )
        self._ledger.record(values, self._rows.steps)
        self._recorded_next = values

    def recorded(self, name: str) -> Tensor | None:
        """(N,) what was recorded under ``name`` for the last step, or None."""
        return self._recorded_last.get(name)

    @property
    def finished(self) -> EpisodeBatch | None:
        """The F episodes that ended in the last step, in row order; None if none did. Rewards are not in
        it.
        """
        if self._finished is None:
            return None
        if self._finished_batch is None:
            self._finished_batch = self._to_batch(self._finished)
        return self._finished_batch

    @property
    def finished_rows(self) -> Tensor:
        """(F,) int64: the rows of ``finished``."""
        return self._row_index[:0] if self._finished is None else self._finished.rows

    @property
    def stepped(self) -> EpisodeBatch:
        """The episodes of all rows that acted in the last step, finished or not, up to the token just
        chosen.
        """
        if self._stepped_batch is None:
            state = self._rows if self._before_reset is None else self._before_reset
            rows = self.stepped_rows
            self._stepped_batch = state.take(rows).to_batch(
                self.prompts,
                self.legality.to_sampling(),
                terminated=self._terminated[rows],
                truncated=self._truncated[rows],
            )
        return self._stepped_batch

    @property
    def stepped_rows(self) -> Tensor:
        """(S,) int64: the rows of ``stepped``."""
        return self._acting.nonzero().squeeze(-1)

    def pay(self, name: str, values: Tensor) -> None:
        """Book the reward of term ``name`` for the last step: (N,) float. Names under "raw/" are noted,
        not counted.
        """
        if tuple(values.shape) != (self.num_envs,):
            raise ValueError(
                f"pay({name!r}, values) must have shape ({self.num_envs},), got {tuple(values.shape)}"
            )
        values = values.to(self.device) * self._acting
        if not name.startswith(RAW_PREFIX):
            self.paid_now = self.paid_now + values
        steps = (self._rows.steps - 1).clamp_min(0)
        self._ledger.pay(name, values, steps, self._finished, reset=self._before_reset is not None)
        if self._finished is not None and self.shown_returns is not None:
            self.shown_returns[...] = self._finished.returns.cpu().numpy()

    def take_finished(self) -> EpisodeBatch | None:
        """Like ``finished``, with everything that was paid: what a rollout keeps."""
        return None if self._finished is None else self._to_batch(self._finished, with_rewards=True)

    @property
    def ticket_count(self) -> int:
        """The next ticket of the queue: the one number that a resumed run needs
        (``options["first_ticket"]``).
        """
        return self._tickets.count

    @property
    def stream_seed(self) -> int | None:
        """The seed of the ticket stream, None before the first reset."""
        return self._tickets.seed

    @property
    def tickets_left(self) -> int:
        """Tickets of this rollout that have not been dealt yet."""
        return 0 if self._tickets.queue is None else self._tickets.queue.left

    @property
    def tickets_dealt(self) -> int:
        """Tickets of this rollout that were dealt."""
        return 0 if self._tickets.queue is None else self._tickets.queue.dealt

    # -- inside -----

    def _forget_step(self) -> None:
        """Drop what belongs to the previous step."""
        self.paid_now = torch.zeros(self.num_envs, device=self.device)
        self._acting = self._done = self._terminated = self._truncated = torch.zeros_like(self._rows.active)
        self._finished: Finished | None = None
        self._finished_batch: EpisodeBatch | None = None
        self._stepped_batch: EpisodeBatch | None = None
        self._before_reset: Rows | None = None
        self.shown_returns: np.ndarray | None = None

    def _finish(self, done: Tensor) -> dict[str, Any]:
        """Snapshot the rows that are done, reset or retire them, and return what info says about it."""
        index = done.nonzero().squeeze(-1)
        rows = index.cpu().numpy()
        self._finished = Finished.take(index, self._rows, self._terminated, self._truncated, self._ledger)
        self._rows.active &= ~done
        extra: dict[str, Any] = {}
        if self.episode_statistics:
            elapsed = np.zeros(self.num_envs, dtype=np.float32)
            elapsed[rows] = time.perf_counter() - self._started[rows]
            statistics = {
                "r": self._out(self._finished.returns),
                "l": self._out(self._rows.steps * done),
                "t": elapsed if self.arrays == "numpy" else torch.from_numpy(elapsed).to(self.device),
            }
            if self.arrays == "numpy":
                self.shown_returns = statistics["r"]
            extra = {"episode": statistics, "_episode": self._out(done)}
        if self.autoreset == "same_step":
            final_info = {**self._info(), **extra}
            extra.update(final_obs=self._observe(), _final_obs=self._out(done), final_info=final_info)
            extra["_final_info"] = self._out(done)
            self._before_reset = self._rows.clone()
            self._deal(rows)
        elif self.autoreset == "next_step":
            self._waiting = rows
        return extra

    def _deal(self, rows: np.ndarray) -> None:
        """Give each of ``rows`` its next ticket; rows for which none is left are parked."""
        rows, seeds, tickets = self._tickets.draw(rows)
        if len(rows) == 0:
            return
        prompts = prompt_index(
            seeds,
            tickets,
            len(self.prompts),
            samples_per_prompt=self.samples_per_prompt,
            shuffle=self.shuffle,
        )
        ids, lengths = self.prompts.rows(prompts)
        index = torch.from_numpy(rows).to(self.device)
        self._rows.place(
            index,
            ids.to(self.device),
            lengths.to(self.device),
            pad_token_id=self._pad,
            tickets=torch.from_numpy(tickets).to(self.device),
            prompt_index=torch.from_numpy(prompts).to(self.device),
            noise=noise_base(seeds, tickets).to(self.device),
        )
        self._ledger.clear(index)
        self._started[rows] = time.perf_counter()

    def _observe(self) -> dict[str, Any]:
        rows = self._rows
        return {
            "input_ids": self._out(rows.tokens.clone()),
            "attention_mask": self._out(rows.attention_mask.clone()),
            "prompt_length": self._out(rows.prompt_lengths.clone()),
        }

    def _info(self) -> dict[str, Any]:
        rows = self._rows
        return {
            "key": self._out(noise_key(rows.noise, rows.steps)),
            "episode_id": self._out(rows.tickets.clone()),
            "prompt_index": self._out(rows.prompt_index.clone()),
            "active": self._out(rows.active.clone()),
        }

    def _out(self, tensor: Tensor) -> Any:
        return tensor.cpu().numpy() if self.arrays == "numpy" else tensor

    def _to_batch(self, finished: Finished, *, with_rewards: bool = False) -> EpisodeBatch:
        fields: dict[str, Any] = finished.records()
        if with_rewards:
            terms = finished.reward_terms()
            counted = [values for name, values in terms.items() if not name.startswith(RAW_PREFIX)]
            fields["reward_terms"] = terms
            if counted:
                fields["rewards"] = torch.stack(counted).sum(0)
        return finished.state.to_batch(
            self.prompts,
            self.legality.to_sampling(),
            terminated=finished.terminated,
            truncated=finished.truncated,
            **fields,
        )

    def _check_mask(self, mask: Any) -> np.ndarray:
        mask = mask.cpu().numpy() if isinstance(mask, Tensor) else np.asarray(mask)
        if mask.shape != (self.num_envs,) or mask.dtype != np.bool_:
            raise ValueError(
                f"options['reset_mask'] must be a boolean array of shape ({self.num_envs},), "
                f"got {mask.dtype} of shape {mask.shape}"
            )
        if not self._ready:
            raise ResetNeeded("options['reset_mask'] needs a full reset() first")
        return mask

    def _stop_strings_completed(self, actions: Tensor, candidates: Tensor) -> Tensor:
        """(N,) bool: rows among ``candidates`` whose response completes a stop string by this action."""
        found = torch.zeros_like(candidates)
        for row in candidates.nonzero().squeeze(-1).tolist():
            start, end = int(self._rows.prompt_lengths[row]), int(self._rows.lengths[row])
            response = [*self._rows.tokens[row, start:end].tolist(), int(actions[row])]
            # Like stop tokens, a stop string counts only once min_new_tokens are there; it can still be
            # completed later.
            if len(response) > self.legality.min_new_tokens:
                found[row] = self.stop_strings.completed(response)
        return found
