"""Every block of README, CONTRIBUTING and docs runs, in the order of its page, as a reader would run it.

Each page has a folder of its own. What is too large for a test is made smaller by the tables here, and by
nothing else; what cannot run in a test stands in ``SKIPPED`` with its reason.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.helpers.doc_blocks import (
    PAGES,
    PYTHON,
    ROOT,
    SHELL,
    YAML,
    Block,
    blocks_of,
    check_yaml,
    commands_of,
    registries_kept,
    run_command,
    run_python,
)
from tests.helpers.models import save_tiny

HOW = """{place}: this block of the page failed in a test. If the page is right and the block is only too
large or needs something, add to the tables of tests/test_docs.py:
  ARGUMENTS  further arguments for a command (sizes, folders), by a pattern of the command
  REPLACED   (page, text of the page, what the test runs in its place): sizes and places only
  GIVEN      Python that runs first: names that the page takes for granted
  FILES      files that the page takes for granted
  SKIPPED    (page, text of the command or block, reason) for what no test can run"""

_ONLINE = "--settings.iterations 1 --settings.episodes_per_iteration 8 --settings.eval_episodes 4"
_OFFLINE = "--settings.steps 1 --settings.batch_size 4"
_STUDY = "--seeds 1 --jobs 1 --evaluations 1 --eval_episodes 4 --best_of [2] --best_of_prompts 2"
_QUIET = r"(?!.*--(help|print.config))"
ARGUMENTS: list[tuple[str, str]] = [
    (rf"^textenv (train|sft|reward-model)\b{_QUIET}", "--num_envs 8 --loggers []"),
    (
        rf"^textenv train sb3\b{_QUIET}",
        "--settings.iterations 1 --settings.n_steps 4 --settings.eval_episodes 4",
    ),
    (rf"^textenv train (ppo|grpo|best-half|--config first)\b{_QUIET}", _ONLINE),
    (rf"^textenv train (ppo --task random-walks|--config first)\b{_QUIET}", "--start '{steps: 1}'"),
    (rf"^textenv (train (dpo|ilql)|sft|reward-model)\b{_QUIET}", _OFFLINE),
    (rf"^textenv (train (dpo|ilql)|sft)\b{_QUIET}", "--settings.eval_episodes 4"),
    (r"^textenv evaluate\b(?!.*--dataset)", "--episodes 4"),
    (r"^textenv generate\b.*--limit null", "--limit 2"),
    (rf"^textenv compare\b{_QUIET}", _STUDY),
    (
        rf"^textenv compare configs/study_random_walks.yaml\b{_QUIET}",
        "--tasks.random-walks.start.steps 1 "
        "--agents.ilql.settings.steps 1 --agents.ilql.settings.warmup_steps 0 "
        + " ".join(
            f"--agents.{agent}.settings.total_episodes 14 --agents.{agent}.settings.episodes_per_iteration 14"
            for agent in ("ppo", "rloo", "grpo")
        ),
    ),
    (
        rf"^textenv compare study.yaml --import{_QUIET}",
        "--agents.best-half.settings.iterations 1 --agents.ppo.settings.iterations 1",
    ),
    (
        rf"^textenv compare study.yaml --agents.wide{_QUIET}",
        "--agents.narrow.settings.iterations 1 --agents.wide.settings.iterations 1",
    ),
    (r"^python examples/custom_agent.py\b", "--seeds 1 --iterations 1"),
    (
        rf"^textenv pipeline\b{_QUIET}",
        "--num_envs 8 --final_episodes 4 --sft.steps 1 --sft.warmup_steps 0 --sft.checkpoint_every 0 "
        "--rl.iterations 1 --rl.episodes_per_iteration 8 --rl.epochs 1 --rl.minibatches 1 "
        "--rl.eval_episodes 4 --rl.eval_every 0 --rl.checkpoint_every 0 --reward.warmup_steps 0",
    ),
    (
        rf"^textenv pipeline --config (configs/reviews|examples)\b{_QUIET}",
        "--reward.epochs 1 --judge.epochs 1 --judge.warmup_steps 0",
    ),
]
"""(pattern of a command, arguments after its own); all that fit are added in this order."""
_SHORT_RUN = "iterations=1, episodes_per_iteration=8, eval_episodes=4, start=False"
REPLACED: list[tuple[str, str, str]] = [
    (
        "README.md",
        "iterations=20, eval_episodes=32",
        "iterations=1, episodes_per_iteration=8, eval_episodes=4",
    ),
    (
        "docs/custom_task.md",
        'task="sorted", loggers',
        'task="sorted", iterations=1, episodes_per_iteration=8, eval_episodes=4, loggers',
    ),
    (
        "docs/games.md",
        'task="maze")',
        'task="maze", iterations=1, episodes_per_iteration=8, eval_episodes=4, start=False, loggers=())',
    ),
    (
        "docs/tools.md",
        'task="calculator")',
        'task="calculator", iterations=1, episodes_per_iteration=8, eval_episodes=4, start=False)',
    ),
    ("docs/games.md", "maze_episodes(5000", "maze_episodes(50"),
    ("docs/index.md", "range(20)", "range(2)"),
    ("docs/turns.md", "iterations=30", "iterations=1, eval_episodes=4"),
    ("docs/turns.md", "episodes_per_iteration=128", "episodes_per_iteration=8"),
    *[
        ("docs/turns.md", f"{given}, loggers=())", f"{given}, {_SHORT_RUN}, loggers=())")
        for given in ('task="guess-number"', 'partner=["guess-number", {"top": 8}]')
    ],
    ("docs/other_agents.md", "{iterations: 20, learning_rate", "{iterations: 1, learning_rate"),
    ("docs/ray.md", "num_actors=4", "num_actors=1"),
    ("docs/ray.md", "PPOConfig()", "PPOConfig(iterations=1, episodes_per_iteration=8)"),
    ("docs/ray.md", "range(3)", "range(1)"),
    (
        "docs/ray.md",
        "PPO(model, envs=envs, rollouts=",
        "PPO(model, envs=envs, config=PPOConfig(iterations=1, episodes_per_iteration=8), rollouts=",
    ),
    ("docs/policy_gradient.md", "episodes_per_iteration=128\n", "episodes_per_iteration=8, iterations=1\n"),
    ("docs/policy_gradient.md", "episodes_per_iteration=128)", "episodes_per_iteration=8)"),
    ("docs/configuration.md", "result = agent.resume", "agent = result.agent\nresult = agent.resume"),
    ("docs/sampling_agents.md", "n=64)", "n=16, eval_episodes=4)"),
    (
        "docs/engines.md",
        'rollouts=EngineRollouts(engine_kwargs={"gpu_memory_utilization": 0.4}, sleep=True)',
        "rollouts=EngineCollector(EngineRollouts(sleep=True), engine=TransformersEngine())",
    ),
    ("docs/studies.md", '"episodes_per_iteration": 16', '"episodes_per_iteration": 8'),
    ("docs/own_data.md", 'run_dir="runs/py-sft"', 'run_dir="runs/py-sft", steps=1, eval_episodes=4'),
    (
        "docs/own_data.md",
        'run_dir="runs/py-ppo"',
        'run_dir="runs/py-ppo", iterations=1, episodes_per_iteration=8, eval_episodes=4',
    ),
]
"""(page, text, what stands there in the test)."""
_PLAYED = """
import gymnasium as gym
import textenv
from textenv.agents import LanguagePolicy
from textenv.tasks.models import small_gpt2

envs = gym.make_vec("TextRLHF-v0", num_envs=8, task="probe-end")
model = small_gpt2(envs.unwrapped.tokenizer, layers=1, width=16, heads=2, positions=32)
"""
_OWN = """
import textenv

prompts = held_out = ["one", "two"]


def reward(completions, **columns):
    return [-float(len(text)) for text in completions]
"""
GIVEN: dict[str, str] = {
    "docs/configuration.md": "import textenv\n",
    "docs/engines.md": f"""{_PLAYED}
from tests.helpers.engine_helpers import TransformersEngine
from textenv.agents import EngineCollector
""",
    "docs/policy_gradient.md": f"{_PLAYED}{_OWN}\nfrom textenv.agents import RLOO, RLOOConfig\n",
    "docs/ray.md": _PLAYED,
    "docs/report.md": f"""{_PLAYED}
from textenv.agents.reports import recorder

recorder.enabled = True
short = {{"iterations": 1, "episodes_per_iteration": 8, "eval_episodes": 4, "loggers": ()}}
agent = textenv.train("ppo", task="probe-end", run_dir="runs/first", **short).agent
episodes, tokenizer = agent.last_batch.episodes, agent.tokenizer
advantages = agent.last_batch["advantages"]
""",
    "docs/rewards.md": "async def ask_a_server(prompt, completion):\n    return 1.0\n",
    "docs/sampling_agents.md": _OWN,
}
"""Page -> Python that runs before its first block."""
SKIPPED: list[tuple[str, str, str]] = [
    ("docs/share_task.md", "textenv rescore", "runs of tests keep no episodes; test_rescore.py has it"),
    ("README.md", "pip install .", "tests/test_project.py builds what it installs"),
    ("README.md", "make install", "needs a network: what continuous integration runs first"),
    ("README.md", "make docs", "tests/test_site.py builds the site"),
    *[
        ("README.md", command, "docs/own_data.md has it")
        for command in (
            "textenv sft",
            "textenv reward-model",
            "textenv train ppo --model runs/sft",
            "textenv generate runs/ppo",
        )
    ],
    ("docs/index.md", "pip install .", "tests/test_project.py builds what it installs"),
    ("docs/index.md", "textenv train ppo --task random-walks", "README.md has it"),
    ("docs/configuration.md", "textenv compare configs/study_random_walks.yaml", "README.md has it"),
    ("docs/configuration.md", "textenv pipeline --config configs/reviews.yaml", "docs/pipeline.md has it"),
    ("docs/studies.md", "textenv compare configs/study_random_walks.yaml --jobs 2", "README.md has it"),
    ("docs/pipeline.md", "make demo", "takes ten minutes: a benchmark"),
    ("docs/pipeline.md", "make smollm", "takes ten minutes: a benchmark"),
    ("docs/pipeline.md", "pip install", "needs a network"),
    (
        "docs/pipeline.md",
        "python -m textenv.tasks.fetch --model",
        "needs a network; tests/tasks/test_fetch_model.py has an archive",
    ),
    *[
        ("docs/works_with.md", start, "make test-clients runs it: tests/clients")
        for start in (
            "import gymnasium as gym\nimport torch\nfrom torchrl",
            "import gymnasium as gym\nimport torch\nfrom tianshou",
            "import gymnasium as gym\nimport torch\nfrom skrl",
            "import gymnasium as gym\nfrom gymnasium.wrappers import vector",
            "python -m rl_zoo3.train",
            "python -m rl_zoo3.enjoy",
        )
    ],
    ("docs/report.md", "textenv push runs/first me/walks --license", "uploads"),
    (
        "docs/report.md",
        "from textenv.agents.reports.model_card",
        "uploads; tests/agents/reports/test_model_card.py has a hub of its own",
    ),
]
"""(page, beginning of a command or of a block, why no test runs it)."""
ELSEWHERE = {"docs/ray.md": "tests/agents/rollouts/test_ray.py"}
"""Page -> the file of tests that runs it, with what it needs."""
PROMPTS = [{"prompt": f"Write about {word}: "} for word in ("tea", "rain")]
DEMONSTRATIONS = [{"prompt": row["prompt"], "completion": "It is warm."} for row in PROMPTS]
PAIRS = [{"prompt": row["prompt"], "chosen": "It is warm.", "rejected": "No."} for row in PROMPTS]
RATED = [{**row, "reward": 0.5} for row in DEMONSTRATIONS]
FILES = {
    "docs/configuration.md": {
        "prompts.jsonl": [{"prompt": "a"}, {"prompt": "b"}],  # the walks' tokenizer knows letters only
        "my_rewards.py": "def polite(completions, weight=1, **_):\n    return [weight] * len(completions)\n",
        "demonstrations/train.jsonl": DEMONSTRATIONS,
        "preferences/train.jsonl": PAIRS,
        "rated.jsonl": RATED,
        "posts/train.jsonl": DEMONSTRATIONS,
        "posts/validation.jsonl": DEMONSTRATIONS,
        "pairs/train.jsonl": PAIRS,
        "pairs/validation.jsonl": PAIRS,
    },
    "docs/custom_task.md": {"tasks_of_mine.py": "# The first block of the page stands in this file.\n"},
    "docs/own_data.md": {"pairs.jsonl": PAIRS, "held_out.jsonl": PAIRS, "prompts.jsonl": PROMPTS},
    "docs/data.md": {
        "rated.jsonl": RATED,
        "test.jsonl": [{**row, "topic": "tea", "summary": "tea"} for row in PROMPTS],
    },
}
"""Page -> file -> its rows (JSON lines) or its text."""

BLOCKS = {page.relative_to(ROOT).as_posix(): list(blocks_of(page)) for page in PAGES}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, byte_tokenizer: Any) -> Path:
    """A tiny model with its tokenizer, in each page's folder as ``gpt2``, ``smollm2`` and ``my-model``."""
    return save_tiny(tmp_path_factory.mktemp("model"), byte_tokenizer, width=16, positions=256)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of fetched data: the reviews' files, with a few made-up sentences in them."""
    from tests.tasks.test_tasks_reviews import WORDS, tiny_files
    from textenv.tasks import fetch

    folder = tmp_path_factory.mktemp("cache")
    data = folder / fetch.snippets_folder().name
    data.mkdir()
    begins = ["A new", "This old", "My first", "His last", "Her long", "Our short", "One more", "No other"]
    begins += ["Each such", "Any such"]
    pairs = [(x, y) for x in WORDS for y in WORDS[:3]]
    texts = [f"{begin} film is {x} and {y} for {i}." for begin in begins for i, (x, y) in enumerate(pairs)]
    for name, content in tiny_files(texts).items():
        (data / name).write_text(content, encoding="utf-8", newline="")
    (data / fetch.MARKER).write_text(json.dumps({"sha256": fetch.SHA256}))
    return folder


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: Path, cache: Path) -> Iterator[Path]:
    """A reader's folder, with the checkout's examples and settings; what a page registers goes with it."""
    from textenv.agents.reports import recorder
    from textenv.tasks import snippets

    for folder in ("configs", "examples"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    for name in ("gpt2", "smollm2", "my-model"):
        shutil.copytree(model, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("TEXTENV_CACHE", str(cache))
    snippets._load_fetched.cache_clear()
    monkeypatch.setattr(recorder, "enabled", recorder.enabled)
    modules, path = set(sys.modules), list(sys.path)
    with registries_kept():
        yield tmp_path
    places = (str(tmp_path), str(ROOT / "examples"))
    for name in set(sys.modules) - modules:
        if str(getattr(sys.modules[name], "__file__", None)).startswith(places):
            del sys.modules[name]
    sys.path[:] = path
    snippets._load_fetched.cache_clear()


def replaced(page: str, text: str) -> str:
    for where, old, new in REPLACED:
        if where == page:
            text = text.replace(old, new)
    return text


def skipped(page: str, text: str) -> bool:
    return any(where == page and text.startswith(start) for where, start, _ in SKIPPED)


def arguments(command: str) -> list[str]:
    return [
        token for pattern, more in ARGUMENTS if re.search(pattern, command) for token in shlex.split(more)
    ]


def run_page(page: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the blocks of a page in their order, in this folder, which is the working folder."""
    for name, content in FILES.get(page, {}).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        lines = content if isinstance(content, str) else "".join(f"{json.dumps(row)}\n" for row in content)
        (folder / name).write_text(lines, encoding="utf-8")
    module = ModuleType("__main__")
    given = Block(page, 1, "python", GIVEN.get(page, ""))
    monkeypatch.setitem(sys.modules, "__main__", module)
    run_python(given, module, folder)
    for block in BLOCKS[page]:
        try:
            run_block(block, module, folder)
        except BaseException as error:
            error.add_note(HOW.format(place=block.place))
            raise


def run_block(block: Block, module: ModuleType, folder: Path) -> None:
    text = replaced(block.page, block.text)
    if block.language in SHELL:
        for command in commands_of(text):
            if not skipped(block.page, command):
                run_command(command, arguments(command))
    elif not skipped(block.page, text):
        changed = Block(block.page, block.line, block.language, text)
        if block.language in PYTHON:
            run_python(changed, module, folder)
        elif block.language in YAML:
            check_yaml(changed)


@pytest.mark.parametrize(
    "page", [page for page, blocks in BLOCKS.items() if blocks and page not in ELSEWHERE]
)
def test_the_blocks_run(page: str, desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_page(page, desk, monkeypatch)


def test_every_entry_of_the_tables_is_used() -> None:
    texts = {page: [block.text for block in blocks] for page, blocks in BLOCKS.items()}
    commands = {
        page: [
            command
            for block in blocks
            if block.language in SHELL
            for command in commands_of(replaced(page, block.text))
        ]
        for page, blocks in BLOCKS.items()
    }
    every = [command for found in commands.values() for command in found]
    for pattern, _ in ARGUMENTS:
        assert any(re.search(pattern, command) for command in every), f"ARGUMENTS: nothing fits {pattern}"
    for page, old, _ in REPLACED:
        assert any(old in text for text in texts[page]), f"REPLACED: {page} has no block with {old!r}"
    for page, start, reason in SKIPPED:
        found = [*commands[page], *texts[page]]
        assert any(text.startswith(start) for text in found), f"SKIPPED: {page} has no block {start!r}"
        assert reason
    for page in (*GIVEN, *FILES, *ELSEWHERE):
        assert BLOCKS[page], f"{page} has no blocks"
    for page, test in ELSEWHERE.items():
        assert f'run_page("{page}"' in (ROOT / test).read_text(encoding="utf-8")


def test_a_block_without_language_or_end_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.helpers.doc_blocks.ROOT", tmp_path)
    page = tmp_path / "page.md"
    for text, message in (
        ("```\nx\n```\n", r"page\.md:1: a block must say its language"),
        ("\n```fortran\nx\n```\n", r"page\.md:2: .*got 'fortran'"),
        ("```python\nx\n", r"page\.md:1: the block is not closed"),
    ):
        page.write_text(text)
        with pytest.raises(ValueError, match=message):
            list(blocks_of(page))
    page.write_text("1. one\n\n   ```python\n   if x:\n       y\n   ```\n")
    assert [(block.line, block.text) for block in blocks_of(page)] == [(4, "if x:\n    y\n")]
