"""Packages of extras: modules load without them, and where one is missing the error names the extra."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn

from tests.helpers.required_packages import closure, link_packages
from tests.test_project import FILES, PROJECT, ROOT, label
from textenv.agents.evaluation.correlation import pearson, ranks, spearman
from textenv.agents.evaluation.metrics.registry import METRICS
from textenv.agents.evaluation.metrics.suite import check_metrics
from textenv.agents.evaluation.metrics.text import entropy_n
from textenv.agents.pipeline.hacking_watch import RewardHackingWatch
from textenv.agents.policies.adapter_files import load_adapter_folder
from textenv.agents.policies.adapters import add_lora
from textenv.agents.study.config import StudyConfig
from textenv.agents.study.runner import run_study
from textenv.partners import make_partner
from textenv.rewards.registry import make_reward
from textenv.tasks.fetch_model import convert_gguf
from textenv.utils.extras import import_extra

OPTIONAL = (
    *("bert_score", "bitsandbytes", "deepspeed", "gguf", "nltk", "peft", "ray", "rouge_score", "sacrebleu"),
    *("scipy", "tabulate", "tensorboard", "textarena", "vaderSentiment", "vllm"),
)
"""Modules of packages that only extras bring."""


def hide(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    for name in [*sys.modules]:
        if name.partition(".")[0] == package:
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)


def metric(name: str) -> Any:
    check_metrics([name])
    return METRICS[name](None)


STUDY = {"agents": {"ppo": {}}, "tasks": {"random-walks": {}}}
NEEDS: dict[str, tuple[str, str, Callable[[Path], Any]]] = {
    "reward rouge": ("rouge_score", "metrics", lambda _: make_reward("rouge")),
    "reward bleu": ("sacrebleu", "metrics", lambda _: make_reward("bleu")),
    "reward chrf": ("sacrebleu", "metrics", lambda _: make_reward("chrf")),
    "reward ter": ("sacrebleu", "metrics", lambda _: make_reward("ter")),
    "partner textarena": (
        "textarena",
        "textarena",
        lambda _: make_partner(["textarena", {"game": "Mastermind-v0-raw"}]).make(),
    ),
    "metric rouge": ("rouge_score", "metrics", lambda _: metric("rouge")),
    "metric bleu": ("sacrebleu", "metrics", lambda _: metric("bleu")),
    "metric self_bleu": ("sacrebleu", "metrics", lambda _: metric("self_bleu")),
    "metric meteor": ("nltk", "metrics", lambda _: metric("meteor")),
    "metric bert_score": ("bert_score", "metrics", lambda _: metric("bert_score")),
    "reward lexicon-sentiment": ("vaderSentiment", "reviews", lambda _: make_reward("lexicon-sentiment")),
    "watch": ("scipy", "pipeline", lambda _: RewardHackingWatch("length")),
    "study scipy": ("scipy", "study", lambda path: run_study(StudyConfig(**STUDY), path)),
    "study tabulate": ("tabulate", "study", lambda path: run_study(StudyConfig(**STUDY), path)),
    "lora": ("peft", "lora", lambda _: add_lora(nn.Linear(2, 2), True)),
    "adapter folder": ("peft", "lora", lambda path: load_adapter_folder(path, nn.Linear(2, 2), {}, seed=0)),
    "gguf": ("gguf", "gguf", lambda path: convert_gguf(path / "model.gguf", path / "model")),
}
"""What needs a package -> the package, its extra, how to use it."""


@pytest.mark.parametrize("case", NEEDS)
def test_a_missing_package_is_an_error_that_names_its_extra(
    case: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    package, extra, use = NEEDS[case]
    hide(monkeypatch, package)
    with pytest.raises(ImportError, match=rf"needs {package}: pip install 'textenv\[{extra}\]'$"):
        use(tmp_path)
    assert not [*tmp_path.iterdir()]


def test_an_error_inside_of_an_installed_package_is_not_hidden(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "half_installed.py").write_text("import no_such_dependency\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="No module named 'no_such_dependency'"):
        import_extra("half_installed", extra="study", what="a study")


def module_level_imports(path: Path) -> Iterator[str]:
    """Packages that are imported when a module is loaded."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield (node.module or "").partition(".")[0]


def test_modules_load_without_extras() -> None:
    alone = "agents/optim/adamw_8bit.py"  # the module of an extra, which is itself imported on use
    for path in FILES:
        found = set(module_level_imports(path)) & set(OPTIONAL)
        assert not found or label(path) == alone, f"{label(path)} imports {found}: see utils/extras.py"


def test_extras_and_required_packages_are_declared() -> None:
    extras = PROJECT["project"]["optional-dependencies"]
    required = {spec.split(">")[0].split("=")[0].split("[")[0] for spec in PROJECT["project"]["dependencies"]}
    own = {"gymnasium", "torch", "transformers", "datasets", "stable-baselines3", "accelerate"}
    assert own | {"sentencepiece", "wandb"} <= required
    assert required.isdisjoint({"rouge-score", "sacrebleu", "vaderSentiment", "tabulate", "scipy"})
    provider = packages_distributions()  # it reads the files of every installed package
    for package, extra, _ in NEEDS.values():
        names = {name.lower().replace("_", "-") for name in provider[package]}
        assert any(spec.lower().startswith(name) for name in names for spec in extras[extra])


FIRST_COMMANDS = """
from importlib.util import find_spec
assert not [name for name in {optional} if find_spec(name)]
from textenv.agents.cli.main import main
few = ["--env.max_new_tokens=3", "--num_envs=4"]
train = ["--settings.iterations=1", "--settings.episodes_per_iteration=8", "--settings.eval_episodes=8"]
assert main(["train", "ppo", "--task", "random-walks", "--run_dir=run", "--start.steps=1", *train, *few]) == 0
assert main(["evaluate", "run", "--task", "random-walks", "--episodes=8", *few]) == 0
assert main(["generate", "run", "--task", "random-walks", "--limit=2", *few]) == 0
assert main(["report", "run"]) == 0
assert main(["tasks"]) == main(["agents"]) == main(["rewards"]) == 0
"""


@pytest.fixture(scope="module")
def required(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Environment variables of a Python that has the required packages alone."""
    folder = tmp_path_factory.mktemp("required")
    link_packages(closure(PROJECT["project"]["dependencies"]), folder)
    return {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT / 'src'}"}


def run_python(*arguments: str, env: dict[str, str], cwd: Path) -> None:
    # -S leaves out the packages that are installed for this Python.
    command = [sys.executable, "-S", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=env)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_first_commands_need_no_extra(required: dict[str, str], tmp_path: Path) -> None:
    run_python("-c", FIRST_COMMANDS.format(optional=OPTIONAL), env=required, cwd=tmp_path)
    assert (tmp_path / "run" / "report.html").is_file()


def test_the_quickstart_needs_no_extra(required: dict[str, str], tmp_path: Path) -> None:
    run_python(str(ROOT / "examples" / "quickstart.py"), env=required, cwd=tmp_path)


def test_correlations_and_entropy_are_those_of_scipy() -> None:
    from scipy import stats

    generator = np.random.default_rng(0)
    for n in (2, 3, 10, 200):
        x, y = generator.normal(size=n), generator.normal(size=n).round(1)
        x[0], y[-1] = x[-1] + 1, y[0] + 1
        assert pearson(x, y) == pytest.approx(stats.pearsonr(x, y).statistic, abs=1e-15)
        assert spearman(x, y) == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-15)
        assert ranks(y).tolist() == stats.rankdata(y).tolist()
    # Worked by hand: deviations (-1, 0, 1) and (-4/3, -1/3, 5/3) have the correlation 3 / sqrt(2 * 14/3).
    assert pearson(np.array([1.0, 2.0, 3.0]), np.array([0.0, 1.0, 3.0])) == pytest.approx(3 / (28 / 3) ** 0.5)
    assert pearson(np.array([1e200, 2e200, 3e200]), np.array([3.0, 2.0, 1.0])) == pytest.approx(-1.0)
    counts = [3, 1, 4]
    tokens = [[place] * count for place, count in enumerate(counts)]
    assert entropy_n(tokens, 1) == stats.entropy(counts)
