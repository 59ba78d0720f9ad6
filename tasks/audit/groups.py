"""Check that the members of a group (``samples_per_prompt``) share their world."""

from __future__ import annotations

import inspect

from textenv.tasks.audit.compare import first_difference, parts
from textenv.tasks.audit.findings import Finding
from textenv.tasks.audit.subject import Subject
from textenv.tasks.audit.token_policies import TokenPolicy
from textenv.utils.names import shown

SIZE = 3
"""Members of a group in this check."""


def check_groups(subject: Subject) -> list[Finding]:
    """Members that say the same meet the same prompt, replies and rewards."""
    groups = max(1, subject.count // SIZE)
    with subject.envs(samples_per_prompt=SIZE) as envs:
        policy = TokenPolicy(envs.unwrapped, "random", group_size=SIZE)
        batch = subject.collect(envs, policy, groups * SIZE)
    different = []
    for row in range(len(batch)):
        found = first_difference(parts(batch, row - row % SIZE), parts(batch, row))
        if found is not None:
            different.append((row // SIZE, *found))
    if not different:
        return [Finding("groups", "ok", f"the members of {groups} groups of {SIZE} meet the same world")]
    group, name, one, other = different[0]
    text = (
        f"members that say the same meet different worlds in {len({d[0] for d in different})} of {groups} "
        f"groups, first group {group}: the {name} is {shown(one)} and then {shown(other)}"
    )
    spec = subject.partner
    if name.startswith("reply") and spec is not None:
        if "episode_id" in inspect.signature(spec.cls.begin).parameters:
            return [Finding("groups", "warning", f"{text}; begin asks for episode_id, so this may be meant")]
        text += "; all randomness must come from the rng of begin"
    return [Finding("groups", "error", text)]
