"""Rollouts of one size in a separate process, so that the measured memory is that of this size only.

``python -m benchmarks.rollout_worker WORKLOAD-AS-JSON``; the parent is ``benchmarks.rollout.scaling``.
"""

from __future__ import annotations

import json
import sys
import time

import torch

from benchmarks.models import ModelShape, language_model
from benchmarks.rollout import Workload, make_envs
from benchmarks.worker import Pipe
from textenv.generation.policy import DecodingPolicy
from textenv.rollout import collect


def main() -> None:
    """Run rollouts of ``episodes`` episodes for the parent until it ends."""
    pipe = Pipe()
    torch.set_num_threads(1)
    fields = json.loads(sys.argv[1])
    work = Workload(**{**fields, "shape": ModelShape(**fields["shape"])})
    pipe.imported()
    envs, policy = make_envs(work), DecodingPolicy(language_model(work.shape))

    def cycle() -> dict[str, float]:
        begin = time.perf_counter()
        batch = collect(envs, policy, episodes=work.episodes)
        return {"seconds": time.perf_counter() - begin, "tokens": int(batch.action_mask.sum())}

    pipe.serve(cycle)


if __name__ == "__main__":
    main()
