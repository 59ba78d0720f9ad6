"""The partner "textarena": single-player games of the package TextArena."""

from __future__ import annotations

import contextlib
import io
from typing import Any

import numpy as np

from textenv.partners.global_random import GlobalRandom
from textenv.partners.partner import Partner, Reply
from textenv.partners.registry import register_partner
from textenv.utils.extras import import_extra
from textenv.utils.names import nearest

GAMES = (
    "2048",
    "Bandit",
    "Blackjack",
    "Countdown",
    "Crosswords",
    "Cryptarithm",
    "FifteenPuzzle",
    "FrozenLake",
    "GuessTheNumber",
    "LightsOut",
    "LogicPuzzle",
    "Mastermind",
    "Minesweeper",
    "PegJump",
    "RushHour",
    "Secretary",
    "Set",
    "Slitherlink",
    "Sokoban",
    "Sudoku",
    "ThreeCardMonte",
    "TowerOfHanoi",
)
"""Games of one player that need no network and no data, and repeat themselves with the same seed (0.7.4)."""


@register_partner("textarena")
class TextArena(Partner):
    """Plays a game of TextArena (Guertler et al. 2025). Its reward comes at the end of the game.

    The games use Python's global random numbers; here each episode has its own. The package itself depends on
    ``chess``, which is licensed under GPL-3.0.

    Args:
        game: name with version, such as "Mastermind-v0-raw"; the games of ``GAMES`` in all their versions.
        options: further arguments of the game.

    Raises:
        ModuleNotFoundError: without the package.
        ValueError: if the game is not one of these.
    """

    max_reply_tokens = 256

    def __init__(self, game: str, options: dict[str, Any] | None = None) -> None:
        if not isinstance(game, str) or game.partition("-v")[0] not in GAMES:
            name = str(game).partition("-v")[0]
            raise ValueError(
                f"game must be a single-player game such as 'Mastermind-v0-raw', got {game!r}; "
                f"{nearest(name, GAMES)}"
            )
        import_extra("textarena", extra="textarena", what="the partner 'textarena'")
        self.game, self.options = game, dict(options or {})
        self._env: Any = None
        self._random = GlobalRandom(0)

    def begin(self, rng: np.random.Generator) -> str:
        """Start a game; its rules are the opening."""
        seed = int(rng.integers(2**31))
        self._random = GlobalRandom(seed)
        with self._guarded():
            textarena = import_extra("textarena", extra="textarena", what="the partner 'textarena'")
            self._env = textarena.make(self.game, **self.options)
            self._env.reset(num_players=1, seed=seed)
            return self._observation()

    def reply(self, text: str) -> Reply:
        """Play a turn."""
        with self._guarded():
            done, _ = self._env.step(text)
            said = self._observation()
            if not done:
                return Reply(said)
            rewards, found = self._env.close()
        reward = 0.0 if not rewards else float(rewards.get(0, 0.0))
        return Reply(said, reward=reward, done=True, info={"invalid": bool(found[0].get("invalid_move"))})

    def _observation(self) -> str:
        _, messages = self._env.get_observation()
        return "\n" + "\n".join(str(message[1]) for message in messages) + "\n"

    @contextlib.contextmanager
    def _guarded(self) -> Any:
        """Within the block: random numbers of this episode, and nothing is printed."""
        with self._random, contextlib.redirect_stdout(io.StringIO()):
            yield
