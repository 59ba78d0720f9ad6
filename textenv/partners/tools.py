"""The partner "tools": runs the tools that the policy calls in a turn, and replies with their results."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from textenv.partners.partner import Opening, Partner, Reply, ReplyError, ToolDescription
from textenv.partners.registry import register_partner
from textenv.partners.tool_formats import (
    EXPECTED,
    MARKS,
    PYTHON_TAG,
    Call,
    MalformedCall,
    calls_of_message,
    expected,
    parse_calls,
)
from textenv.partners.tool_runs import run
from textenv.partners.tool_schemas import Tool, find_tool, make_tools, methods_of
from textenv.prompts.messages import opened_turn, takes_tools
from textenv.prompts.turn_template import TurnTemplate
from textenv.utils.checks import check_choice, check_flag, check_positive
from textenv.utils.names import nearest, shown

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FORMATS = ("auto", "tokenizer", *EXPECTED)
"""Values of ``call_format``."""
_RESULT = "{}"
_PLAIN_RESULTS = {"hermes": "\n<tool_response>\n{}\n</tool_response>\n"}


@register_partner("tools")
class ToolsPartner(Partner):
    """Runs the tools that the policy calls. A turn without a call is the answer, and ends the episode.

    The chat template shows the tools' schemas to the policy; without a chat template, or if it knows no
    tools, a text follows the prompt. Calls that are malformed, name no tool, or have wrong arguments get a
    reply that says what was expected. ``Reply.info`` has the numbers ``tool_calls`` and ``tool_errors`` of
    the turn, and the texts ``errors``. An exception or time-out of a tool is an error reply, too, and counted
    in ``partner_errors`` and ``partner_timeouts``; ``on_error`` can end the episode or raise it instead.

    Args:
        tools: functions with type hints and docstrings in Google's format (coroutine functions, too), names
            of ``register_tool``, or ``"module:function"`` (see ``make_partner``).
        environment: a class as TRL's ``environment_factory`` takes it, or its name: its public methods are
            tools, ``reset(**row)`` begins an episode and may return a text that follows the prompt, and
            ``get_reward()``, if there is one, gives the reward of an episode that ends with an answer.
            ``reset`` gets ``rng``, too, if it names it.
        timeout: seconds that a call may take. After a time-out of a method of ``environment`` the episode
            ends.
        call_format: "hermes" (JSON in ``<tool_call>``: Hermes, Qwen), "llama3" (JSON), "python"
            (``name(1, key="a")``, or a list of such calls), or "tokenizer" (its ``parse_response``).
            "auto" is "tokenizer" if it can, else what the chat template shows, else "hermes".
        role: of the replies in chats; by default "tool" if the template knows it, else "user".
        describe: whether the policy is shown the tools.
        result_format: the reply; ``{}`` stands for the result.
        error_text: the result of a failed call, for tokenizers that cannot spell the message.

    Raises:
        ValueError: if there is no tool, a schema cannot be made, or an argument is out of range.
        TypeError: if a tool is no function.

    Example:
        >>> def add(a: int, b: int) -> int:
        ...     '''Add two numbers.
        ...
        ...     Args:
        ...         a: the first.
        ...         b: the second.
        ...     '''
        ...     return a + b
        >>> partner = ToolsPartner([add], call_format="python")
        >>> partner.reply("add(2, b=3)").text, partner.reply("It is 5.").done
        ('5', True)
    """

    max_reply_tokens = 128
    on_error = "reply"

    def __init__(
        self,
        tools: Sequence[Callable[..., Any] | str] = (),
        environment: Callable[[], Any] | str | None = None,
        timeout: float | None = None,
        call_format: str = "auto",
        role: str | None = None,
        describe: bool = True,
        result_format: str | None = None,
        error_text: str | None = None,
    ) -> None:
        if isinstance(tools, str) or not isinstance(tools, Sequence):
            raise TypeError(f"tools must be a list of functions or names, got {shown(tools)}")
        check_choice("call_format", call_format, FORMATS)
        check_flag("describe", describe)
        if timeout is not None:
            check_positive("timeout", timeout)
        if result_format is not None and "{}" not in result_format:
            raise ValueError(f"result_format must contain {{}}, got {result_format!r}")
        self.tools: dict[str, Tool] = make_tools([find_tool(tool) for tool in tools])
        self._timeout = timeout
        self.call_format = call_format
        self.role = role
        self.describe = describe
        self.result_format = result_format
        self.error_text = error_text
        self._functions = [tool.function for tool in self.tools.values()]
        self._factory = None if environment is None else find_tool(environment)
        self._environment: Any = None
        self._busy = False
        self._tokenizer: PreTrainedTokenizerBase | None = None
        self._format = "hermes" if call_format == "auto" else call_format
        self._role = role or "user"
        self._result = result_format or _RESULT
        self._prefix = ""
        if self._factory is None and not self.tools:
            raise ValueError("the partner 'tools' needs tools or an environment, got neither")
        self._renew()

    @classmethod
    def resolve(cls, arguments: Mapping[str, Any], *, allow_imports: bool) -> dict[str, Any]:
        """Functions and classes instead of their names, see ``Partner.resolve``."""
        found = dict(arguments)
        tools = found.get("tools", ())
        if isinstance(tools, list | tuple):
            found["tools"] = [find_tool(tool, allow_imports=allow_imports) for tool in tools]
        if found.get("environment") is not None:
            found["environment"] = find_tool(found["environment"], allow_imports=allow_imports)
        if not (tools or found.get("environment")):
            raise ValueError("the partner 'tools' needs tools or an environment, got neither")
        return found

    def _renew(self) -> None:
        """A new environment and its tools."""
        if self._factory is None:
            return
        self._environment, self._busy = self._factory(), False
        if not callable(getattr(self._environment, "reset", None)):
            raise TypeError(f"an environment must have a method reset, got {shown(self._environment)}")
        self.tools = make_tools([*self._functions, *methods_of(self._environment)])

    # -- episodes -----

    def bind(self, tokenizer: PreTrainedTokenizerBase, *, chat: bool) -> ToolDescription:
        """Choose the format of calls and replies, and return the tools' schemas or a text about them.

        Raises:
            ValueError: if the chat template shows calls in a format that is unknown here.
        """
        schemas = [tool.schema for tool in self.tools.values()]
        in_template = chat and takes_tools(tokenizer)
        self._tokenizer = tokenizer
        self._format = _format_of(tokenizer, in_template) if self.call_format == "auto" else self.call_format
        self._role = self.role or _role_of(tokenizer, schemas, in_template)
        plain = _PLAIN_RESULTS.get(self._format, "\n{}\n")
        in_message = chat and self._role != "user"
        self._result = self.result_format or (_RESULT if in_message else plain)
        if self._format == "tokenizer":
            options = {"tools": schemas}
            asked = [{"role": "user", "content": "textenv"}]
            self._prefix = opened_turn(asked, tokenizer, options=options) if chat else ""
        if not self.describe:
            return None
        return schemas if in_template else self._description()

    def begin(self, rng: np.random.Generator, **columns: Any) -> Opening:
        """Reset the environment, if there is one."""
        if self._factory is None:
            return None
        if self._busy:
            self._renew()
        reset = self._environment.reset
        parameters = inspect.signature(reset).parameters
        given = {**columns, "rng": rng} if "rng" in parameters else columns
        if not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
            given = {name: value for name, value in given.items() if name in parameters}
        opening = run(reset, given, None)
        if opening is not None and not isinstance(opening, str):
            name = type(self._environment).__name__
            raise TypeError(f"{name}.reset must return a text or None, got {shown(opening)}")
        return opening

    def reply_ids(self, ids: Sequence[int]) -> Reply:
        """Reply to the token ids of a turn."""
        assert self._tokenizer is not None
        if self._format != "tokenizer":
            marks = {self._tokenizer.convert_tokens_to_ids(mark) for mark in MARKS}
            ids = [i for i in ids if i not in self._tokenizer.all_special_ids or i in marks]
        return self.reply(str(self._tokenizer.decode(list(ids), skip_special_tokens=False)))

    def reply(self, text: str) -> Reply:
        """Run the calls in a turn; without a call the episode ends.

        Raises:
            ReplyError: if a tool raised an exception or timed out.
        """
        try:
            calls = self._parse(text)
        except MalformedCall as error:
            return self._reply([self._failed(str(error))], 1, [str(error)])
        if not calls:
            return Reply(reward=self._reward(), done=True, info=_info(0, []))
        results: list[str] = []
        errors: list[str] = []
        failed: list[BaseException] = []
        for call in calls:
            try:
                results.append(self._run(call, failed))
            except ValueError as error:
                errors.append(str(error))
                results.append(self._failed(str(error)))
        reply = self._reply(results, len(calls), errors)
        if failed:
            raise ReplyError(str(failed[0]), reply, timed_out=isinstance(failed[0], TimeoutError)) from (
                failed[0]
            )
        return reply

    # -- calls -----

    def _parse(self, text: str) -> list[Call]:
        if self._format != "tokenizer":
            return parse_calls(text, self._format, self.tools)
        parse = getattr(self._tokenizer, "parse_response")  # noqa: B009 - not in transformers' stubs
        options: dict[str, Any] = {}
        if "prefix" in inspect.signature(parse).parameters:
            options = {"prefix": self._prefix, "tools": [tool.schema for tool in self.tools.values()]}
        try:
            message = parse(text, **options)
        except Exception as error:
            raise MalformedCall(f"malformed call, {error}; expected {expected('tokenizer')}") from error
        return calls_of_message(message)

    def _run(self, call: Call, failed: list[BaseException]) -> str:
        """The result of a call as text; exceptions of the tool are put into ``failed``.

        Raises:
            ValueError: saying what is wrong with the call, or what went wrong in it.
        """
        if call.name not in self.tools:
            raise ValueError(f"unknown tool {call.name!r}; {nearest(call.name, list(self.tools))}")
        tool = self.tools[call.name]
        arguments = tool.checked(call.arguments)
        try:
            if self._busy:
                raise RuntimeError("the environment is still busy with a call that timed out")
            return _text(run(tool.function, arguments, self._timeout))
        except (Exception, SystemExit) as error:
            owner = getattr(tool.function, "__self__", None)
            self._busy |= isinstance(error, TimeoutError) and owner is self._environment is not None
            failed.append(error)
            raise ValueError(f"{call.name}: {type(error).__name__}: {error}") from error

    def _reward(self) -> float:
        get_reward = getattr(self._environment, "get_reward", None)
        return 0.0 if get_reward is None else float(run(get_reward, {}, None) or 0.0)

    def _reply(self, results: Sequence[str], calls: int, errors: Sequence[str]) -> Reply:
        text = self._result.replace("{}", "\n".join(results))
        return Reply(text, role=self._role, done=self._busy, info=_info(calls, errors))

    def _failed(self, message: str) -> str:
        return f"Error: {message}" if self.error_text is None else self.error_text

    def _description(self) -> str:
        lines = [json.dumps(tool.schema["function"], ensure_ascii=False) for tool in self.tools.values()]
        return "\n".join(
            [
                "\n\nYou can call these tools:",
                *lines,
                f"To call one, write\n{expected(self._format)}",
                "and wait for its result. A turn without a call is your answer.\n",
            ]
        )


def tool_counts(replies: Sequence[Mapping[str, Any]]) -> tuple[int, int]:
    """Calls and failed calls of an episode.

    Args:
        replies: ``extras["replies"]`` of the episode.

    >>> tool_counts([{"info": {"tool_calls": 2, "tool_errors": 1}}, {"info": {}}])
    (2, 1)
    """
    infos = [reply["info"] for reply in replies]
    return sum(i.get("tool_calls", 0) for i in infos), sum(i.get("tool_errors", 0) for i in infos)


def _info(calls: int, errors: Sequence[str]) -> dict[str, Any]:
    counts = {"tool_calls": calls, "tool_errors": len(errors)}
    return {**counts, "errors": list(errors)} if errors else counts


def _text(result: Any) -> str:
    """A result as text: a string as it is, other values as JSON where they can be."""
    if isinstance(result, str) and result:
        return result
    try:
        return json.dumps(result, ensure_ascii=False)
    except (TypeError, ValueError):
        return str(result)


def _format_of(tokenizer: PreTrainedTokenizerBase, in_template: bool) -> str:
    """The format of calls that a chat template with tools shows."""
    if not in_template:
        return "hermes"
    if getattr(tokenizer, "response_template", None) or getattr(tokenizer, "response_schema", None):
        return "tokenizer"
    template = str(tokenizer.chat_template)
    if "<tool_call>" in template and "<function=" not in template:
        return "hermes"
    if PYTHON_TAG in template or '"parameters":' in template:
        return "llama3"
    raise ValueError(
        "the chat template shows calls of tools in no format that is known here; give the tokenizer a "
        f"response_template, or the partner call_format, one of {list(EXPECTED)}"
    )


def _role_of(
    tokenizer: PreTrainedTokenizerBase, schemas: Sequence[Mapping[str, Any]], in_template: bool
) -> str:
    """The role of replies: "tool" if the chat template takes messages of that role, else "user"."""
    if in_template:
        try:
            template = TurnTemplate(tokenizer, chat=True, options={"tools": list(schemas)})
            template.encode("1", role="tool", closed=True)
        except ValueError:
            return "user"
        return "tool"
    return "user"
