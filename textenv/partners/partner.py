"""`Partner`, who replies when a turn of the policy ends, and `Reply`, what it says."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

import numpy as np

from textenv.utils.checks import is_integer
from textenv.utils.names import shown

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ON_ERROR = ("raise", "reply", "end")
Opening: TypeAlias = "str | Sequence[Mapping[str, Any]] | None"
"""What a partner says before the first turn: a text, a list of messages, or nothing."""
ToolDescription: TypeAlias = "Sequence[Mapping[str, Any]] | str | None"
"""What the policy is shown of a partner's tools: JSON schemas for the chat template, a text, or nothing."""


@dataclass(frozen=True)
class Reply:
    """What a partner says after a turn of the policy.

    Raises:
        TypeError: if a field has the wrong type.
        ValueError: if the reward is not finite.

    >>> Reply("lower", reward=-0.1)
    Reply(text='lower', reward=-0.1, done=False, role='user', ids=None, info={})
    """

    text: str = ""
    """The text that follows the turn. After the last turn (``done``) it is stored and not appended."""
    reward: float = 0.0
    """Reward of the turn, for its last token."""
    done: bool = False
    """The episode ends: it is terminated."""
    role: str = "user"
    """The role of the message, for tokenizers with a chat template."""
    ids: Sequence[int] | None = None
    """Token ids to append instead of ``text``; nothing is added around them."""
    info: Mapping[str, Any] = field(default_factory=dict)
    """Further JSON values of this turn; the record holds them."""

    def __post_init__(self) -> None:
        if not isinstance(self.text, str):
            raise TypeError(f"Reply.text must be a string, got {shown(self.text)}")
        if isinstance(self.reward, bool) or not isinstance(self.reward, int | float | np.number):
            raise TypeError(f"Reply.reward must be a number, got {shown(self.reward)}")
        if not math.isfinite(self.reward):
            raise ValueError(f"Reply.reward must be finite, got {self.reward}")
        if not isinstance(self.done, bool | np.bool_):
            raise TypeError(f"Reply.done must be a bool, got {shown(self.done)}")
        if not isinstance(self.role, str) or not self.role:
            raise TypeError(f"Reply.role must be a role's name, got {shown(self.role)}")
        if self.ids is not None and not all(is_integer(i) for i in self.ids):
            raise TypeError(f"Reply.ids must be a list of token ids, got {shown(self.ids)}")
        if not isinstance(self.info, Mapping):
            raise TypeError(f"Reply.info must be a dict, got {shown(self.info)}")


class ReplyError(RuntimeError):
    """An exception of a partner that has a reply of its own for ``on_error="reply"``.

    Args:
        message: what went wrong.
        reply: what follows the turn.
        timed_out: count it as a time-out, not as an error.
    """

    def __init__(self, message: str, reply: Reply, *, timed_out: bool = False) -> None:
        super().__init__(message)
        self.reply = reply
        self.timed_out = timed_out


def as_reply(value: Any, where: str) -> Reply:
    """What ``reply`` returned as a `Reply`: a string is its text, None ends the episode.

    Raises:
        TypeError: if it is none of them.
    """
    if isinstance(value, Reply):
        return value
    if value is None:
        return Reply(done=True)
    if isinstance(value, str):
        return Reply(value)
    raise TypeError(f"{where} must return a Reply, a string or None, got {shown(value)}")


class Partner:
    """The other role of an episode. An environment has one instance for each of its rows.

    ``begin`` starts an episode and must reset everything that the last one left behind. A subclass defines
    ``reply`` (a function, or a coroutine function for partners that wait for a network), ``reply_ids`` or
    ``reply_batch``. All randomness comes from ``rng``: episodes of one group (``samples_per_prompt``) get
    equal generators, and so the same world.

    Example:
        >>> class Echo(Partner):
        ...     def begin(self, rng, **columns):
        ...         self.left = int(rng.integers(1, 3))
        ...         return "Say something."
        ...     def reply(self, text):
        ...         self.left -= 1
        ...         return Reply(text, done=self.left == 0)
        >>> partner = Echo()
        >>> partner.begin(np.random.default_rng(0))
        'Say something.'
        >>> partner.reply("hello").done
        False
    """

    max_reply_tokens: ClassVar[int] = 64
    """Longest reply in tokens, with the tokens of the chat template. It sizes the default ``max_length``."""
    workers: ClassVar[int] = 0
    """Threads that call ``reply``, for slow partners; 0 calls it within ``step``, one row after another."""
    timeout: ClassVar[float | None] = None
    """Seconds that a reply may take; needs ``workers`` or a coroutine."""
    on_error: ClassVar[str] = "raise"
    """After an exception or a time-out: "raise" it, make it the "reply", or "end" the episode."""

    @classmethod
    def resolve(cls, arguments: Mapping[str, Any], *, allow_imports: bool) -> Mapping[str, Any]:
        """The arguments of a spec with objects instead of names of code.

        Args:
            arguments: of the constructor.
            allow_imports: whether ``"module:name"`` may be imported.
        """
        return arguments

    def bind(self, tokenizer: PreTrainedTokenizerBase, *, chat: bool) -> ToolDescription:
        """Get the tokenizer, once, before the first episode.

        Args:
            tokenizer: of the episodes.
            chat: whether replies are messages of its chat template.

        Returns:
            What the policy is shown of the partner's tools with every prompt: JSON schemas for the chat
            template, a text that follows the prompt, or None.
        """
        return None

    def begin(self, rng: np.random.Generator, *args: Any, **columns: Any) -> Opening:
        """Start an episode. A subclass names the arguments that it takes.

        Args:
            rng: a generator that depends on the seed and the group of the episode only.
            args: none are given.
            columns: the columns of the prompt, ``episode_id``, and the arguments of the spec that are
                parameters here. A method without ``**columns`` gets those that it names.

        Returns:
            The text or the messages that follow the prompt, or None.
        """
        return None

    def reply(self, text: str) -> Reply | str | None:
        """Reply to a turn of the policy.

        Args:
            text: the turn, without the token that ended it.

        Returns:
            A `Reply`, its text alone, or None to end the episode.
        """
        raise NotImplementedError(f"{type(self).__name__} must define reply, reply_ids or reply_batch")

    def close(self) -> None:
        """Free what the partner holds. It is called when the environment is closed and after a time-out."""


def replies_by(partner: Partner | type[Partner]) -> str:
    """The name of the method by which a partner replies: "reply_batch", "reply_ids" or "reply".

    Raises:
        TypeError: if it defines none of them.
    """
    cls = partner if isinstance(partner, type) else type(partner)
    for name in ("reply_batch", "reply_ids"):
        if callable(getattr(cls, name, None)):
            return name
    if cls.reply is Partner.reply:
        raise TypeError(f"partner {cls.__name__} must define reply, reply_ids or reply_batch")
    return "reply"
