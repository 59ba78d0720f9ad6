"""The end of an iteration: evaluate if it is time to, run the callbacks, log, save a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from textenv.agents.distributed import process_group

SPENT = ("env_tokens", "gradient_tokens", "reward_calls")
"""Counters of the cost of a run: tokens generated to learn from, tokens (prompts included) of the rows of all
optimizer steps, and episodes for which rewards were computed. Evaluations do not count."""


def end_iteration(agent: Any, metrics: Mapping[str, float], *, last: bool) -> None:
    """End an iteration of an agent; afterwards ``agent.stopped`` says whether a callback ended the run.

    Args:
        agent: the agent.
        metrics: of the iteration; the counters are added to them.
        last: whether this is the last iteration of the run.
    """
    cfg, now = agent.config, agent.iteration
    counters = ("episodes", agent.episodes_seen), ("optimizer_steps", agent.optimizer_steps)
    spent = ((name, getattr(agent, name)) for name in SPENT)
    row = dict(metrics) | {name: float(count) for name, count in (*counters, *spent)}
    row = process_group.broadcast(row)
    asked = any(process_group.gather(agent.callbacks.wants_evaluation(agent, row)))
    due = bool(cfg.eval_every and now % cfg.eval_every == 0)
    evaluated = agent.eval_envs is not None and (last or due or asked)
    if evaluated:
        agent.evaluation = agent.evaluate()
        agent.callbacks.on_evaluation(agent, agent.evaluation)
        row |= {f"eval/{name}": value for name, value in agent.evaluation.metrics.items()}
        agent.loggers.log_table("eval/samples", *agent.evaluation.sample_table(), now)
    stop = any(process_group.gather(agent.callbacks.on_iteration(agent, row)))
    if last or stop or evaluated or now % cfg.log_every == 0:
        agent.loggers.log(row, now)
        agent.history.append(row)
    agent.stopped = stop
    save = cfg.checkpoint_every and now % cfg.checkpoint_every == 0
    if agent.run_dir is not None and (last or stop or save):
        agent.checkpoint()
