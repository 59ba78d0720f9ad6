"""The command line: what a user types, and the mistakes that users make."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import AutoModelForCausalLM

from tests.helpers.models import save_tiny
from textenv.agents.base import registry
from textenv.agents.base.registry import BUILTIN
from textenv.agents.checkpointing.run_folder import RunFolder
from textenv.agents.cli.main import COMMANDS, main
from textenv.agents.loggers.jsonl import read_metrics
from textenv.agents.make import list_agents
from textenv.agents.ppo import PPOConfig
from textenv.rewards import registry as rewards
from textenv.rewards.catalog import BUILTIN as reward_lines
from textenv.tasks import registry as tasks
from textenv.tasks.catalog import BUILTIN as task_lines
from textenv.tasks.letters import letter_tokenizer

CONFIGS = Path(__file__).parents[3] / "configs"
TINY = ["--settings.iterations=1", "--settings.episodes_per_iteration=4", "--env.max_new_tokens=3"]
TINY += ["--settings.minibatches=1", "--settings.epochs=1", "--loggers=[]", "--num_envs=4"]
Say = Callable[..., tuple[int, str, str]]


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Say]:
    """Type a command in an empty folder: -> exit code, output, errors."""
    monkeypatch.chdir(tmp_path)
    modules = set(sys.modules)

    def type_in(*argv: str | Path) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main([str(token) for token in argv])
        return code, *capsys.readouterr()

    yield type_in
    for table in (rewards.REWARDS, registry.AGENTS):
        for name in [name for name, made in table.items() if not made.__module__.startswith("textenv.")]:
            del table[name]
    for name in set(sys.modules) - modules:
        if str(getattr(sys.modules[name], "__file__", None)).startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny language model with its tokenizer, as transformers saves them."""
    tokenizer = letter_tokenizer("abcdefgh")
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    return save_tiny(tmp_path_factory.mktemp("model"), tokenizer)


def lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    return lines(tmp_path / "prompts.jsonl", [{"prompt": "ab"}, {"prompt": "cd"}])


@pytest.fixture
def reward_file(tmp_path: Path) -> Path:
    path = tmp_path / "my_own_rewards.py"
    path.write_text(
        "def count_a(completions, weight=1.0, **columns):\n"
        "    return [weight * text.count('a') for text in completions]\n"
        "def broken(completions, **columns):\n"
        "    return [1 / 0 for _ in completions]\n"
    )
    return path


# -- help and lists ------------------------------------------------------------------------------------------


def test_help_and_lists_come_at_once() -> None:
    code = """
import sys, time
from contextlib import redirect_stdout
from io import StringIO
from textenv.agents.cli.main import main
for command in ["", "agents", "tasks", "rewards", "train --help", "train ppo --help", "pipeline --help",
                "compare --help", "evaluate --help", "generate --help", "report --help", "push --help",
                "reward-model --help"]:
    with redirect_stdout(StringIO()) as shown:
        assert main(command.split()) == 0, command
    assert shown.getvalue().strip(), command
    heavy = {"torch", "transformers", "datasets", "matplotlib", "scipy", "accelerate"} & set(sys.modules)
    assert not heavy, (command, heavy)
assert main(["train", "ppo", "--settings.epoch", "3"]) == 2
assert "torch" not in sys.modules
assert time.process_time() < 5, time.process_time()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith(
        "textenv: error: unknown option --settings.epoch; did you mean --settings.e"
    )
    assert done.stderr.count("\n") == 1


def test_the_lists_say_what_the_registries_say(say: Say) -> None:
    found = {"tasks": tasks.describe(), "rewards": rewards.describe(), "agents": list_agents()}
    made_by = {name: made.__module__ for name, made in rewards.REWARDS.items()}
    assert set(reward_lines) == {
        name
        for name, module in made_by.items()
        if module.startswith("textenv.rewards.") and "example" not in name
    }
    modules = {name: tasks.make_task(name).builder.__module__ for name in tasks.task_names()}
    assert set(task_lines) == {
        name
        for name, module in modules.items()
        if module.startswith("textenv.tasks.") and "example" not in name
    }
    assert set(registry.LINES) == set(BUILTIN)
    for what, described in found.items():
        code, out, _ = say(what)
        assert code == 0
        assert [line.split()[0] for line in out.splitlines() if line[0] != " "] == sorted(described)
        built_in = {"tasks": task_lines, "rewards": reward_lines, "agents": registry.LINES}[what]
        assert all(0 < len(described[name]) <= 110 for name in built_in)


def test_one_of_a_list_is_documented(say: Say) -> None:
    assert "prompt_words" in say("tasks", "reviews")[1]
    assert "Args:" in say("rewards", "normalized")[1]
    assert "textenv train ppo --help" in say("agents", "ppo")[1]
    code, _, errors = say("agents", "pp0")
    assert (code, errors.startswith("textenv: error: unknown agent 'pp0'; known: ppo")) == (2, True)


def test_help_of_a_command_has_the_fields_docs(say: Say) -> None:
    code, out, _ = say("train", "ppo", "--help")
    assert code == 0
    assert "--settings.clip_range" in out
    assert "The probability ratio is clipped to" in out
    assert say("train", "--help")[0] == 0
    for command in COMMANDS:
        code, out, errors = say(command, "--help")
        assert (code, errors) == (0, "")
        assert "usage: textenv" in out


def test_printed_settings_are_a_configuration_file(say: Say, tmp_path: Path) -> None:
    code, out, _ = say("train", "ppo", "--task=random-walks", "--settings.clip-range=0.3", "--print-config")
    assert code == 0
    settings = yaml.safe_load(out)
    walks = tasks.make_task("random-walks").settings("ppo")["settings"]
    assert settings["settings"] == PPOConfig.with_defaults({"clip_range": 0.3}, walks).to_dict()
    assert settings["agent"] == "ppo"
    (tmp_path / "mine.yaml").write_text(out)
    code, again, _ = say("train", "--config=mine.yaml", "--num_envs", "3", "--print-config")
    assert (code, yaml.safe_load(again)) == (0, {**settings, "num_envs": 3})


# -- training ------------------------------------------------------------------------------------------------


def test_prompts_from_a_file_and_a_reward_of_ones_own(
    say: Say, model: Path, prompts: Path, reward_file: Path
) -> None:
    given = ["--model", model, "--prompts", prompts, *TINY]
    code, out, errors = say("train", "ppo", *given, "--reward", "my_own_rewards:count_a", "--run_dir=run")
    assert (code, errors) == (0, "")
    assert "terms/count_a" in out
    assert "model: run/checkpoints/step-00000001" in out
    assert AutoModelForCausalLM.from_pretrained("run/checkpoints/step-00000001")
    # Another run in the same folder is refused; resumed, it is finished already, or goes on with more steps.
    code, _, errors = say("train", "ppo", *given, "--reward", "my_own_rewards.py:count_a", "--run_dir=run")
    assert (code, errors.count("\n"), "run holds another run" in errors) == (1, 1, True)
    longer = ["--settings.iterations=2" if token == "--settings.iterations=1" else token for token in given]
    longer += ["--reward", f"{reward_file}:count_a", "--run_dir=run"]
    assert say("train", "ppo", *longer, "--resume")[0] == 0
    assert [row["step"] for row in read_metrics("run")] == [1, 2]


def test_evaluate_and_generate(say: Say, model: Path, prompts: Path, reward_file: Path) -> None:
    given = ["--reward", "[length, [my_own_rewards:count_a, {weight: 2}]]", "--env.max_new_tokens=3"]
    code, out, _ = say(
        "evaluate", model, "--prompts", prompts, *given, "--episodes=4", "--out=found.json", "--greedy"
    )
    assert code == 0
    assert "terms/count_a" in out
    found = json.loads(Path("found.json").read_text())
    assert found["metrics"]["episodes"] == 4
    code, out, _ = say("generate", model, "--prompt=[ab, cd]", "--env.max_new_tokens=3")
    assert code == 0
    assert [line.split(" >>> ")[0] for line in out.splitlines()] == ["ab", "cd"]
    code, out, _ = say("generate", model, "--prompts", prompts, "--env.max_new_tokens=3", "--out=out.jsonl")
    rows = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
    assert [row["prompt"] for row in rows] == ["ab", "cd"]
    assert set(rows[0]) == {"prompt", "completion", "truncated"}


def test_lora_from_the_command_line(say: Say, model: Path, prompts: Path) -> None:
    given = ["--model", model, "--prompts", prompts, "--reward=length", *TINY, "--policy.lora={r: 2}"]
    assert say("train", "ppo", *given, "--run_dir=run")[0] == 0
    assert (RunFolder("run").checkpoint_dir(1) / "adapter" / "adapter_model.safetensors").is_file()


PAIRS = [{"prompt": "ab", "chosen": "cd", "rejected": "d"}, {"prompt": "c", "chosen": "a", "rejected": "e"}]


def test_sft_and_reward_model_on_folders(say: Say, model: Path, tmp_path: Path) -> None:
    lines(tmp_path / "sft" / "train.jsonl", [{"prompt": "ab", "completion": c} for c in "cde"])
    lines(tmp_path / "pairs" / "train.jsonl", PAIRS)
    small = ["--model", model, "--settings.steps=1", "--settings.batch_size=2", "--loggers=[]"]
    code, out, errors = say("sft", "--dataset=sft", *small, "--run_dir=policy")
    assert (code, errors) == (0, "")
    assert "sft/nll" in out
    assert "episode/length" in out and "return/" not in out  # there is no reward here
    code, out, errors = say("reward-model", "--dataset=pairs", *small, "--run_dir=scorer")
    assert (code, errors) == (0, "")
    assert "pairs/accuracy" in out
    code, _, errors = say("generate", "scorer", "--prompt=[a]")
    assert (code, "is a reward model, which writes no text" in errors) == (2, True)
    code, _, errors = say("evaluate", "policy", "--dataset=pairs")
    assert (code, "model must be a sequence classifier, got a GPT2LMHeadModel" in errors) == (2, True)
    assert "A model that writes texts is measured on --prompts (with --reward) or --task" in errors


def test_an_agent_and_a_task_of_ones_own(say: Say, tmp_path: Path, model: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from textenv.agents.sft import SFT\n"
        "from textenv.agents.base.registry import register_agent\n"
        "@register_agent('mine')\n"
        "class Mine(SFT):\n"
        "    '''My agent.'''\n"
    )
    assert "mine" in say("agents", "--import", "mine.py")[1]
    lines(tmp_path / "data.jsonl", [{"prompt": "ab", "completion": "cd"}])
    given = ["--dataset=data.jsonl", "--model", model, "--loggers=[]", "--run_dir=run"]
    assert say("train", "mine", "--import=mine.py", *given)[0] == 0
    assert RunFolder("run").read_info()["agent"] == "mine"


# -- mistakes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        (["trian", "ppo"], 2, "unknown command 'trian'; known: train, "),
        (["train"], 2, "name the agent: textenv train AGENT; known: "),
        (["train", "pp"], 2, "unknown agent 'pp'; known: ppo"),
        (["train", "ppo", "--learning_rate=1"], 2, "did you mean --settings.learning_rate?"),
        (["train", "ppo", "--settings.clip-rang=1"], 2, "did you mean --settings.clip_range"),
        (["train", "ppo", "--settings.clip_range=2"], 2, "settings.clip_range must be in (0, 1), got 2"),
        (["train", "ppo", "--settings.epochs=x"], 2, "settings.epochs must be int, got x"),
        (["train", "ppo", "--env.truncation_side=up"], 2, "must be one of 'left', 'right', 'error', got up"),
        (["train", "ppo", "--config=no.yaml"], 2, "no.yaml"),
        (["train", "ppo", "--task=walks"], 1, "unknown task 'walks'"),
        (["train", "ppo", "--resume", "--task=random-walks"], 2, "--resume needs --run_dir"),
        (["train", "ppo", "--model=./none"], 2, "./none: no such folder"),
        (["train", "ppo", "--model=m", "--prompts=none.jsonl"], 1, "needs --reward (or --task), got None"),
        (["generate"], 2, "name the model: textenv generate FOLDER"),
        (["generate", "none/"], 2, "generate needs one of --prompt, --prompts and --task"),
        (["generate", "none/", "--prompt=[a]"], 2, "none/: no such folder"),
        (["evaluate", "none/", "--top_p=2", "--task=reviews"], 2, "top_p must be in (0, 1], got 2"),
        (["agents", "--import=none"], 1, "there is no module 'none'"),
        (["agents", "--import=none.py"], 1, "none.py: no such file"),
    ],
)
def test_mistakes_are_told_in_one_line(say: Say, argv: list[str], code: int, message: str) -> None:
    got, out, errors = say(*argv)
    assert (got, out, errors.count("\n")) == (code, "", 1)
    assert errors.startswith("textenv: error: ")
    assert message in errors


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("task: x\nnum_env: 3\n", "c.yaml, line 2: unknown key 'num_env'; did you mean num_envs"),
        ("settings:\n  lr: 3\n  epoch: 2\n", "line 2: unknown key 'settings.lr'"),
        ("env:\n  max_tokens: 3\n", "did you mean env.max_new_tokens"),
        ("- a\n", "c.yaml must hold options, name: value; got a seq"),
        ("# nothing yet\n", "c.yaml is empty; it must hold options, name: value"),
        ("a: [\n", "c.yaml is not YAML"),
        ("settings: {epochs: x}\n", "settings.epochs must be int, got x"),
        ("settings: {gamma: 2}\n", "settings.gamma must be in [0, 1], got 2"),
        ("agent: sft\n", "the command line names the agent 'ppo', the file 'sft'"),
    ],
)
def test_mistakes_in_files_name_the_place(say: Say, tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "c.yaml").write_text(text)
    code, out, errors = say("train", "ppo", "--config=c.yaml")
    assert (code, out, errors.count("\n")) == (2, "", 1)
    assert message in errors


def test_mistakes_in_data_and_rewards(
    say: Say, tmp_path: Path, model: Path, prompts: Path, reward_file: Path
) -> None:
    lines(tmp_path / "bad.jsonl", [{"prompt": "ab"}, {"promt": "c"}])
    given = ["train", "ppo", "--model", model, *TINY, "--run_dir=run"]
    code, _, errors = say(*given, "--prompts=bad.jsonl", "--reward=length")
    assert (code, "bad.jsonl:2 has no column 'prompt'" in errors) == (1, True)
    code, _, errors = say(*given, "--prompts", prompts, "--reward=my_own_rewards:count_b")
    assert (code, "has no 'count_b'; known: count_a, broken" in errors) == (1, True)
    code, _, errors = say(*given, "--prompts", prompts, "--reward=lenght")
    assert (code, "unknown reward 'lenght'; known: length" in errors) == (1, True)
    assert not Path("run").exists()
    code, _, errors = say(*given, "--prompts", prompts, "--reward=my_own_rewards:broken")
    assert code == 1
    assert "reward 'broken' raised ZeroDivisionError: division by zero for prompt" in errors
    assert errors.count("\n") == 1
    with pytest.raises(Exception, match="division by zero"):
        say(
            *given[:-1],
            "--run_dir=other",
            "--prompts",
            prompts,
            "--reward=my_own_rewards:broken",
            "--traceback",
        )


def test_damaged_models_and_strange_letters(say: Say, model: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(model, damaged)
    (damaged / "model.safetensors").write_bytes((model / "model.safetensors").read_bytes()[:300])
    for source, prompt, message in (
        (damaged, "a", "the model's .safetensors file is damaged"),
        (model, "Z", "Missing [UNK] token"),
    ):
        code, _, errors = say("generate", source, f"--prompt=[{prompt}]", "--env.max_new_tokens=2")
        assert (code, errors.count("\n"), message in errors) == (1, 1, True)


def test_an_interrupted_run_says_how_to_go_on(say: Say, model: Path, prompts: Path, tmp_path: Path) -> None:
    (tmp_path / "stop.py").write_text("def stop(completions, **columns):\n    raise KeyboardInterrupt\n")
    given = ["train", "ppo", "--model", model, "--prompts", prompts, *TINY, "--run_dir=run"]
    code, _, errors = say(*given, "--reward=stop.py:stop")
    assert (code, errors) == (
        130,
        "textenv: interrupted; nothing was saved, so there is nothing to continue\n",
    )
    assert not Path("run").exists()


def test_a_file_can_not_import_code_by_itself(
    say: Say, tmp_path: Path, model: Path, prompts: Path, reward_file: Path
) -> None:
    reward_file.write_text(reward_file.read_text() + "open('imported', 'w').close()\n")
    file = tmp_path / "c.yaml"
    file.write_text("reward: [normalized, {of: 'my_own_rewards:count_a'}]\n")
    given = [
        "train",
        "ppo",
        "--config=c.yaml",
        "--model",
        model,
        "--prompts",
        prompts,
        *TINY,
        "--run_dir=run",
    ]
    code, _, errors = say(*given)
    assert (code, "comes from a file; use --allow_imports" in errors) == (1, True)
    assert not Path("imported").exists()
    file.write_text(file.read_text() + "allow_imports: true\n")
    assert say(*given)[0] == 2
    assert not Path("imported").exists()
    file.write_text("reward: [normalized, {of: 'my_own_rewards:count_a'}]\n")
    assert say(*given, "--allow-imports")[0] == 0
    assert Path("imported").exists()


# -- the configurations that come with the library -----------------------------------------------------------


WARNED = {
    "sft": "textenv: warning: sft cannot learn random-walks",
    "ppo": "textenv: warning: all 4 episodes of the first 1 iterations returned 0",  # one step of pretraining
}


@pytest.mark.parametrize("name", ["random_walks_sft", "random_walks_ppo", "random_walks_ilql"])
def test_training_configurations_run(name: str, say: Say) -> None:
    file = CONFIGS / f"{name}.yaml"
    agent = yaml.safe_load(file.read_text())["agent"]
    small = ["--settings.eval_episodes=4", "--loggers=[]", "--run_dir=run"]
    if agent == "ppo":
        small += ["--settings.iterations=1", "--settings.episodes_per_iteration=4"]
        small += ["--model=null", "--start={steps: 1}"]
    else:
        small += ["--settings.steps=1", "--settings.batch_size=4"]
    code, out, errors = say("train", "--config", file, *small)
    warned = WARNED.get(agent, "")
    assert code == 0
    assert errors.startswith(warned) and errors.count("\n") == bool(warned)
    assert "return/mean" in out


SMALL_PIPELINE = [
    *("--sft.steps=1", "--sft.batch_size=2", "--reward.batch_size=2", "--reward.max_length=12"),
    *("--rl.iterations=1", "--rl.episodes_per_iteration=4", "--rl.epochs=1", "--rl.minibatches=1"),
    *("--rl.eval_episodes=4", "--max_new_tokens=3", "--num_envs=4", "--final_episodes=4"),
    *("--loggers=[]", "--run_dir=run"),
]
TURN = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}


def write_recipe_data(name: str, folder: Path) -> list[str]:
    """Data of the recipe's shape, a few rows of letters; returns the options that name them."""
    for split in ("train", "validation"):
        if name == "summarization":
            lines(folder / "posts" / f"{split}.jsonl", [{"prompt": c, "completion": "cd"} for c in "abe"])
            lines(folder / "pairs" / f"{split}.jsonl", PAIRS)
        else:
            turns = [{key: [{"role": TURN[key], "content": row[key]}] for key in row} for row in PAIRS]
            lines(folder / "data" / "hh" / f"{split}.jsonl", turns)
            talks = [{"messages": row["prompt"] + row["chosen"]} for row in turns]
            lines(folder / "data" / "hh-sft" / f"{split}.jsonl", talks)
    if name == "dialogue":
        return []
    return ["--task_kwargs.data=posts", "--data.sft=posts", "--data.pairs=pairs"]


@pytest.mark.parametrize("name", ["summarization", "dialogue"])
def test_recipes_run_on_data_of_their_shape(name: str, say: Say, tmp_path: Path, model: Path) -> None:
    given = ["--config", CONFIGS / f"{name}.yaml", "--model", model, "--task_kwargs.max_prompt_tokens=8"]
    given += [*write_recipe_data(name, tmp_path), *SMALL_PIPELINE]
    code, out, errors = say("pipeline", *given)
    assert (code, errors) == (0, "")
    assert AutoModelForCausalLM.from_pretrained("run/rl/model")
    code, out, errors = say("pipeline", *given)  # nothing is left to do
    assert (code, errors) == (0, "")
    assert "rl: reused" in out
    code, _, errors = say("pipeline", *given, "--rl.learning_rate=1")
    assert (code, errors.count("\n")) == (1, 1)
    assert "run/rl was made from other settings (learning_rate: " in errors
    assert say("generate", "run", "--prompt=[a]", "--env.max_new_tokens=2")[0] == 0


def test_the_pipelines_settings_are_complete(say: Say) -> None:
    code, out, _ = say("pipeline", "--config", CONFIGS / "reviews.yaml", "--print-config")
    assert code == 0
    settings, written = yaml.safe_load(out), yaml.safe_load((CONFIGS / "reviews.yaml").read_text())
    assert settings["judge"]["seed"] == 1
    assert settings["rl"]["learning_rate"] == written["rl"]["learning_rate"]
    code, _, errors = say("pipeline", "--rl.learning_rat=1")
    assert (code, "did you mean --rl.learning_rate" in errors) == (2, True)
