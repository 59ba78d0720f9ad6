"""Mutation score of the numerical code: how many of N randomly drawn faults make a test fail?

    python -m benchmarks.mutation --count 100 --seed 2026 --json mutation.json

The faults are drawn from all sites that ``mutation_operators`` finds in FILES; the draw depends on the seed
alone. Each fault is put into a copy of the checkout. A forked process runs the files of TESTS on it until one
fails, starting with those that name the module most often. A fault that no test catches is listed.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.common import arguments, print_table, write_json
from benchmarks.mutation_operators import Mutation, mutations_of

ROOT = Path(__file__).resolve().parent.parent
FILES = (
    "agents/a2c.py",
    "agents/archer.py",
    "agents/base/critic.py",
    "agents/base/extra_losses.py",
    "agents/losses/advantages.py",
    "agents/losses/aggregation.py",
    "agents/base/groups.py",
    "agents/grpo.py",
    "agents/ilql.py",
    "agents/losses/ilql.py",
    "agents/losses/best_of_n.py",
    "agents/losses/importance.py",
    "agents/losses/masked.py",
    "agents/losses/policy_gradient.py",
    "agents/monte_carlo.py",
    "agents/nlpo.py",
    "agents/online_dpo.py",
    "agents/base/policy_gradient.py",
    "agents/dpo.py",
    "agents/losses/preference.py",
    "agents/ppo.py",
    "agents/reinforce.py",
    "agents/losses/reward_model.py",
    "agents/rft.py",
    "agents/rloo.py",
    "agents/losses/running.py",
    "agents/losses/turns.py",
    "agents/optim/weight_average.py",
    "agents/rwr.py",
    "rewards/full_kl.py",
    "rewards/kl.py",
    "textenv/modeling/kl.py",
    "textenv/modeling/fused_log_probs.py",
    "textenv/modeling/log_probs.py",
    "textenv/generation/nucleus.py",
)
"""Losses, advantages, KL, value functions, importance weights, groups and log-probs."""

TESTS = (
    "adaptive_kl",
    "advantages",
    "archer",
    "aggregations",
    "best_of_n",
    "config",
    "ensembles",
    "group_baseline",
    "idle_settings",
    "ilql",
    "importance",
    "kl",
    "log_probs",
    "loss_gradients",
    "loss_inputs",
    "loss_terms",
    "losses",
    "masked_inputs",
    "master_weights",
    "monte_carlo",
    "nlpo",
    "online_dpo",
    "policy",
    "policy_gradient",
    "ppo",
    "preference",
    "preference_losses",
    "references",
    "reinforce",
    "reward_model",
    "rewards_kl",
    "rft",
    "settings_effect",
    "sft",
    "task_returns",
    "turns",
)
"""Test files by name, without ``test_`` and ``.py``, in any folder of ``tests``."""


def sites(root: Path) -> list[Mutation]:
    """All mutations of FILES, in a fixed order."""
    return [found for file in FILES for found in mutations_of(file, (root / file).read_bytes())]


def draw(root: Path, count: int, seed: int) -> list[Mutation]:
    """``count`` mutations drawn without replacement.

    Raises:
        ValueError: if there are fewer sites.
    """
    everything = sites(root)
    if count > len(everything):
        raise ValueError(f"count must be at most the {len(everything)} sites, got {count}")
    return random.Random(seed).sample(everything, count)


def tests_for(root: Path, file: str) -> list[str]:
    """Test files in the order in which they run: the more often one names the module, the earlier."""
    stem = Path(file).stem
    module = re.compile(rf"\b{stem}\b")
    wanted = {f"test_{name}.py" for name in TESTS}
    existing = [path for path in sorted((root / "tests").rglob("test_*.py")) if path.name in wanted]
    if not existing:
        raise FileNotFoundError(f"{root / 'tests'} holds none of the {len(wanted)} test files")
    named = {path: len(module.findall(path.read_text())) for path in existing}
    first = f"test_{stem}.py"
    order = sorted(named, key=lambda path: (path.name != first, -named[path], path.name))
    return [str(path) for path in order]


def copy_checkout(root: Path, target: Path) -> None:
    """Copy what git tracks; links stay links, so that the copy imports its own files."""
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=root, capture_output=True, check=True).stdout
    for name in filter(None, tracked.decode().split("\0")):
        if (root / name).is_symlink() or (root / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / name, target / name, follow_symlinks=False)


def run_tests(root: Path, tests: list[str], limit: float) -> tuple[str, str]:
    """Run tests in a forked process until one fails.

    Returns:
        ("survived" | "caught" | "timeout", the first failed test or the exit code).
    """
    log = root / "pytest.log"
    child = os.fork()
    if child == 0:
        os.setsid()
        sink = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(sink, 1)
        os.dup2(sink, 2)
        os.chdir(root)
        sys.path.insert(0, str(root))
        os.environ["PYTHONPATH"] = str(root)
        import pytest

        code = pytest.main(["-x", "-q", "--no-header", "-p", "no:cacheprovider", "-p", "no:xdist", *tests])
        os._exit(int(code))
    deadline = time.monotonic() + limit
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            code = os.waitstatus_to_exitcode(status)
            failed = re.search(r"^(?:FAILED|ERROR) (\S+)", log.read_text(errors="replace"), re.MULTILINE)
            return ("survived", "") if code == 0 else ("caught", failed[1] if failed else f"exit code {code}")
        time.sleep(0.05)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "timeout", f"more than {limit:.0f} s"


def preload() -> None:
    """Import the libraries once, so that a forked process starts at once; never textenv itself."""
    import datasets  # noqa: F401
    import gymnasium  # noqa: F401
    import hypothesis  # noqa: F401
    import scipy.stats  # noqa: F401
    import torch
    import transformers  # noqa: F401
    from transformers import AutoModelForCausalLM, GPT2LMHeadModel, LlamaForCausalLM  # noqa: F401

    torch.set_num_threads(1)
    assert not any(name.split(".")[0] == "textenv" for name in sys.modules)


def main() -> None:
    """Draw, run, report."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--count", type=int, default=100, help="number of faults to draw")
    parser.add_argument("--seed", type=int, default=2026, help="seed of the draw")
    parser.add_argument("--first", type=int, default=0, help="index of the first drawn fault to run")
    parser.add_argument("--last", type=int, help="index after the last drawn fault to run")
    parser.add_argument("--limit", type=float, default=900, help="seconds for the tests of one fault")
    parser.add_argument("--root", type=Path, default=ROOT, help="the checkout to measure")
    parser.add_argument("--match", help="run all faults that match this pattern, instead of a draw")
    parser.add_argument("--list", action="store_true", help="print the drawn faults and run nothing")
    options = parser.parse_args()
    everything = sites(options.root)
    if options.match:
        drawn = [found for found in everything if re.search(options.match, found.name)]
    else:
        drawn = draw(options.root, options.count, options.seed)
    how = f"matching {options.match}" if options.match else f"drawn with seed {options.seed}"
    print(f"{len(everything)} sites, {len(drawn)} {how}", flush=True)
    if options.list:
        print("\n".join(f"{i:3} {found.name}" for i, found in enumerate(drawn)))
        return
    sys.dont_write_bytecode = True
    preload()
    results: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory(prefix="mutation-") as folder:
        copy = Path(folder)
        copy_checkout(options.root, copy)
        subprocess.run([sys.executable, "-m", "compileall", "-q", str(copy)], check=False)
        for i, found in list(enumerate(drawn))[options.first : options.last]:
            file = copy / found.file
            source, times = file.read_bytes(), (file.stat().st_atime, file.stat().st_mtime)
            file.write_bytes(found.apply(source))
            begin = time.monotonic()
            verdict, by = run_tests(copy, tests_for(copy, found.file), options.limit)
            file.write_bytes(source)
            os.utime(file, times)
            took = round(time.monotonic() - begin, 1)
            results.append(
                {"number": i, "mutation": found.name, "verdict": verdict, "by": by, "seconds": took}
            )
            print(f"{i:3} {verdict:8} {took:6.1f} s  {found.name}  {by}", flush=True)
            write_json(options.json, {"seed": options.seed, "results": results})
    caught = sum(result["verdict"] != "survived" for result in results)
    survivors = [
        [result["number"], result["mutation"]] for result in results if result["verdict"] == "survived"
    ]
    print_table(f"{caught} of {len(results)} faults caught", ["number", "survivor"], survivors)


if __name__ == "__main__":
    main()
