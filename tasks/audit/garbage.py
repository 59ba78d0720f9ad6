"""Check that partner and rewards survive bad answers."""

from __future__ import annotations

from typing import Any

import numpy as np

from textenv.episodes.conversations import ERRORS, TIMEOUTS
from textenv.partners.calls import ReplyCalls, Turn
from textenv.partners.partner import replies_by
from textenv.partners.registry import PartnerSpec
from textenv.tasks.audit.findings import Finding
from textenv.tasks.audit.subject import Subject
from textenv.tasks.audit.token_policies import KINDS, TokenPolicy
from textenv.utils.names import shown

TEXTS = (
    *("", " ", "\n\t", "\x00", "\x1b[2J", "\ufffd", "\u0665\u0660", "{", "[[", "</s>", "<|im_end|>"),
    *("NaN", "-1", "1e999", "9" * 5000, "a" * 20_000, "word " * 4_000),
)
"""Turns that a policy could write."""


def check_garbage(subject: Subject) -> list[Finding]:
    """Empty, endless, repeated and control-token answers, and odd texts, raise no error."""
    findings, played, failed_calls = [], [], 0
    for kind in KINDS:
        if kind == "random":
            continue  # played by the other checks
        with subject.envs() as envs:
            try:
                policy = TokenPolicy(envs.unwrapped, kind)
            except ValueError:
                continue
            try:
                batch = subject.collect(envs, policy, min(subject.count, 8))
            except Exception as error:
                text = f"{kind} answers raise {type(error).__name__}: {error}"
                findings.append(Finding("garbage", "error", text))
                continue
        subject.played[kind] = batch
        failed_calls += sum(sum(batch.extras.get(name, ())) for name in (ERRORS, TIMEOUTS))
        played.append(kind)
    if failed_calls:
        text = f"{failed_calls} turns raised an error of the partner or took too long; on_error hides it"
        findings.append(Finding("garbage", "warning", text))
    spec = subject.partner
    if spec is not None:
        findings += _odd_texts(subject, spec)
    if not any(finding.severity == "error" for finding in findings):
        findings.insert(0, Finding("garbage", "ok", f"{', '.join(played)} answers raise no error"))
    return findings


def _odd_texts(subject: Subject, spec: PartnerSpec) -> list[Finding]:
    """Give odd texts to new partners, one each."""
    if replies_by(spec.cls) == "reply_ids":
        return [Finding("garbage", "skipped", "odd texts: the partner reads token ids")]
    findings = []
    base = subject.idle.unwrapped
    columns = {name: column[0] for name, column in base.prompts.columns.items()}
    for text in TEXTS:
        partner = spec.bound(base.tokenizer, chat=base.turn_arguments()["chat"])
        calls = ReplyCalls(spec)
        try:
            rng = np.random.Generator(np.random.PCG64([subject.seed, 0]))
            partner.begin(rng, **spec.begin_arguments({**columns, "episode_id": 0}))
            calls.ask([Turn(0, partner, text, [])])
            error = calls.collect("all")[0].error
        except Exception as raised:
            error = raised
        finally:
            calls.close()
            partner.close()
        if error is not None and spec.on_error == "raise":
            severity = "error" if _can_say(base, text) else "warning"
            about = f"the turn {shown(text)} raises {type(error).__name__}: {error}"
            findings.append(Finding("garbage", severity, about[:400]))
    return sorted(findings, key=lambda finding: finding.severity)[:3]  # errors first


def _can_say(base: Any, text: str) -> bool:
    """Whether a turn can have this text, with the environment's tokenizer and budget."""
    try:
        ids = base.tokenizer(text, add_special_tokens=False)["input_ids"]
    except Exception:  # of tokenizers, for text outside of their vocabulary
        return False
    unknown = base.tokenizer.unk_token_id
    return len(ids) <= base.max_turn_tokens and (unknown is None or unknown not in ids)
