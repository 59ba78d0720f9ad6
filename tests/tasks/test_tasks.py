"""The task registry, and the environments that are made from tasks."""

import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.envs.registration import EnvSpec

from textenv.prompts.prompt_set import PromptSet
from textenv.rewards.registry import REWARDS, register_reward
from textenv.tasks import (
    Task,
    TaskData,
    describe,
    letter_tokenizer,
    make_task,
    register_task,
    registry,
    task_names,
)
from textenv.tasks.make import make_env, make_vec_env


@pytest.fixture
def own_task():
    """A registered task with an argument that the user may set."""

    @register_task("own-for-test")
    def build(split: str = "train", letter: str = "a") -> TaskData:
        """Say a letter.

        At length.
        """
        return TaskData(
            prompts=[letter, "b"],
            columns={"answer": ["x", "y"]},
            tokenizer=letter_tokenizer("abc"),
            rewards=["length"],
            max_new_tokens=5,
            stop_strings=["cc"],
            min_new_tokens=1,
            suppressed_tokens=[1],
        )

    yield "own-for-test"
    del registry._TASKS["own-for-test"]


# -- registry ------------------------------------------------------------------------------------------------


def test_built_in_tasks_describe_themselves_in_a_line():
    built_in = {"prompts", "random-walks", "reviews"}
    assert built_in | {f"probe-{kind}" for kind in ("constant", "copy", "count", "end", "longest")} <= set(
        task_names()
    )
    for name, line in describe().items():
        assert line and "\n" not in line and len(line) < 110, name


def test_register_as_decorator_and_plainly(own_task):
    task = make_task(own_task)
    assert (task.name, task.description, task.arguments) == (own_task, "Say a letter.", ["letter"])
    assert make_task(task) is task
    assert task.build(letter="c").prompts == ["c", "b"]
    register_task("plain-for-test", task.builder, description="other words")
    try:
        assert make_task("plain-for-test").description == "other words"
    finally:
        del registry._TASKS["plain-for-test"]


def test_unknown_tasks_get_the_nearest_first():
    with pytest.raises(ValueError, match="unknown task 'probe-cuont'; known: probe-count, "):
        make_task("probe-cuont")


def test_a_name_belongs_to_one_builder(own_task):
    def other(split="train"):
        raise AssertionError

    with pytest.raises(ValueError, match=r"task 'own-for-test' is already registered by .*own_task.*build"):
        register_task(own_task, other)
    register_task(own_task, make_task(own_task).builder)  # the same one again is no conflict
    with pytest.raises(ValueError, match=r"the name of a task must consist of .*, got ''"):
        register_task("", other)
    with pytest.raises(TypeError, match="needs a callable builder"):
        register_task("own-too", 3)


def test_unknown_task_arguments(own_task):
    with pytest.raises(TypeError, match="task 'own-for-test' has no argument 'leter'; known: letter"):
        make_task(own_task).build(leter="c")


def test_a_builder_must_give_task_data():
    with pytest.raises(TypeError, match="task 'x' must return a TaskData, got dict"):
        Task(name="x", description="", builder=lambda split: {}).build()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prompts": []}, "prompts must hold at least one prompt, got none"),
        ({"columns": {"c": [1]}}, "column 'c' must have 2 values, one a prompt, got 1"),
        ({"max_new_tokens": 0}, "max_new_tokens must be >= 1, got 0"),
        ({"min_new_tokens": 6}, r"min_new_tokens must lie in \[0, 5\], got 6"),
    ],
)
def test_task_data_is_checked(fields, message):
    given = {"prompts": ["a", "b"], "tokenizer": letter_tokenizer("ab"), "rewards": [], "max_new_tokens": 5}
    with pytest.raises(ValueError, match=message):
        TaskData(**{**given, **fields})


def test_task_data_without_extras():
    data = TaskData(prompts=["a"], tokenizer=letter_tokenizer("ab"), rewards=[], max_new_tokens=1)
    assert data.demonstrations is None and data.preferences is None and data.optimum is None


# -- environments --------------------------------------------------------------------------------------------


def test_the_default_is_random_walks():
    env = gym.make("TextRLHF-v0")
    assert env.unwrapped.task_data.optimum == 1.0
    assert env.unwrapped.max_new_tokens == 10
    assert gym.make_vec("TextRLHF-v0", num_envs=3).num_envs == 3


def test_the_task_sets_what_is_not_given(own_task):
    envs = make_vec_env(2, task=own_task)
    base = envs.unwrapped
    assert (base.max_new_tokens, base.legality.min_new_tokens, base.legality.suppressed_tokens) == (
        5,
        1,
        (1,),
    )
    assert base.stop_strings
    assert base.prompts.columns == {"answer": ["x", "y"]}
    assert envs.term.name == "length"
    bare = make_vec_env(
        2,
        task=own_task,
        task_kwargs={"letter": "c"},
        rewards=[],
        max_new_tokens=7,
        min_new_tokens=0,
        stop_strings=[],
        suppressed_tokens=[],
    )
    assert bare is bare.unwrapped
    assert (bare.max_new_tokens, bare.legality.min_new_tokens, bare.legality.suppressed_tokens) == (7, 0, ())
    assert not bare.stop_strings
    assert bare.prompts.texts == ["c", "b"]


def test_rewards_are_wrapped_in_order_the_first_innermost(own_task):
    envs = make_vec_env(2, task=own_task, rewards=["length", ["length", {"coef": -1.0}], "missing-eos"])
    names, layer = [], envs
    while layer is not envs.unwrapped:
        names.append(layer.name)
        layer = layer.env
    assert names == ["missing-eos", "length#2", "length"]


def test_single_environment_pays_like_a_row_of_the_vector_environment(own_task):
    env, envs = make_env(task=own_task), make_vec_env(1, task=own_task, arrays="numpy", autoreset="disabled")
    observation, _ = env.reset(seed=5)
    rows, _ = envs.reset(seed=5)
    done = False
    rewards = []
    while not done:
        assert all(np.array_equal(observation[key], rows[key][0]) for key in observation)
        observation, reward, terminated, truncated, _ = env.step(0)
        rows, paid, *_ = envs.step(np.array([0]))
        assert reward == pytest.approx(float(paid[0]))
        rewards.append(reward)
        done = terminated or truncated
    assert len(rewards) == 5 and rewards[-1] == pytest.approx(-0.05)


def test_steps_and_tokens_are_one_number(own_task):
    assert make_vec_env(1, task=own_task, max_episode_steps=3).unwrapped.max_new_tokens == 3
    assert make_vec_env(1, task=own_task, max_episode_steps=3, max_new_tokens=3).unwrapped.max_new_tokens == 3
    with pytest.raises(ValueError, match="max_new_tokens and max_episode_steps must be equal, got 4 and 3"):
        make_vec_env(1, task=own_task, max_episode_steps=3, max_new_tokens=4)


@pytest.mark.parametrize("make", [make_env, make_vec_env])
def test_unknown_arguments_get_the_nearest(make):
    with pytest.raises(TypeError, match="unexpected keyword argument 'max_tokens'; known: max_new_tokens, "):
        make(max_tokens=3)


@pytest.mark.parametrize("make", [make_env, make_vec_env])
def test_unknown_arguments_are_said_in_pythons_words(make):
    """TorchRL's GymEnv passes frameskip=, and drops it where the error says exactly this."""
    with pytest.raises(
        TypeError, match=rf"^{make.__name__}\(\) got an unexpected keyword argument 'frameskip'; "
    ):
        make(frameskip=1)
    with pytest.raises(TypeError, match="unexpected keyword argument 'frameskip'"):
        gym.make("TextRLHF-v0", frameskip=1)


def test_unknown_arguments_through_gymnasium():
    with pytest.raises(TypeError, match="unexpected keyword argument 'reward'; known: rewards, "):
        gym.make("TextRLHF-v0", reward=[])


def test_prompts_of_ones_own():
    tokenizer = letter_tokenizer("abc")
    rows = [{"prompt": "ab", "answer": "x"}, {"prompt": "c", "answer": "y"}]
    envs = make_vec_env(2, prompts=rows, tokenizer=tokenizer, max_new_tokens=3)
    assert envs is envs.unwrapped  # no task, no rewards
    assert envs.prompts.texts == ["ab", "c"] and envs.prompts.columns == {"answer": ["x", "y"]}
    assert make_vec_env(2, prompts=["a"], tokenizer=tokenizer).max_new_tokens == 64
    walks = make_vec_env(2, task="random-walks", prompts=["d", "s"])
    assert walks.unwrapped.prompts.texts == ["d", "s"] and walks.term.name == "random-walks-optimality"
    ready = PromptSet([[0], [1]])
    assert make_vec_env(2, prompts=ready, tokenizer=tokenizer, max_new_tokens=3).prompts is ready
    assert make_vec_env(2, prompts=ready, task="random-walks").unwrapped.max_new_tokens == 10


def test_long_prompts_are_cut(own_task):
    tokenizer = letter_tokenizer("abc")
    made = {
        side: make_vec_env(1, prompts=["abc"], tokenizer=tokenizer, max_prompt_tokens=2, truncation_side=side)
        for side in ("left", "right")
    }
    texts = {side: tokenizer.decode(envs.reset(seed=0)[0]["input_ids"][0, :2]) for side, envs in made.items()}
    assert texts == {"left": "bc", "right": "ab"}


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"prompts": ["a"]}, "task 'prompts' needs a tokenizer"),
        ({"prompts": PromptSet([[0]])}, "a PromptSet needs its tokenizer"),
        ({"prompts": PromptSet([[0]]), "tokenizer": letter_tokenizer("a")}, "max_new_tokens must be given"),
        (
            {"task": "random-walks", "tokenizer": "gpt2"},
            "task 'random-walks' has its own tokenizer and takes no other",
        ),
        ({"prompts": ["a"], "task_kwargs": {"seed": 1}}, r"task_kwargs \['seed'\] need a task"),
        ({"rewards": 3}, "rewards must be a reward spec or a list of them, got 3"),
        ({"rewards": ["lenght"]}, "unknown reward 'lenght'"),
        ({"task": "random-walk"}, "unknown task 'random-walk'"),
        ({"truncation_side": "up"}, "truncation_side"),
    ],
)
def test_pieces_that_do_not_fit(kwargs, message):
    with pytest.raises(ValueError, match=message):
        make_vec_env(1, **kwargs)


# -- specs ---------------------------------------------------------------------------------------------------

SPECS = [
    {},
    {"task": "probe-copy", "task_kwargs": {"letters": 3}, "rewards": []},
    {"task": "probe-end", "rewards": ("length", ("clipped", {"of": ("length", {"coef": -1}), "low": -2}))},
    {"task": "probe-end", "rewards": ["missing-eos"], "max_new_tokens": 4, "stop_strings": ("aa",)},
]


@pytest.mark.parametrize("kwargs", SPECS)
@pytest.mark.parametrize("vector", [False, True])
def test_specs_survive_json(kwargs, vector):
    def make(spec, **more):
        return gym.make_vec(spec, **more) if vector else gym.make(spec, **more)

    env = make("TextRLHF-v0", **kwargs, **({"num_envs": 2} if vector else {}))
    again = make(EnvSpec.from_json(env.spec.to_json()))
    assert again.spec == env.spec
    assert str(again) == str(env)
    assert again.unwrapped.max_new_tokens == env.unwrapped.max_new_tokens


def test_rewards_in_a_spec_are_canonical_lists():
    from textenv.rewards.text import Length

    given = ("missing-eos", {"name": "length", "coef": -1.0}, Length(coef=-2.0))
    env = gym.make_vec("TextRLHF-v0", rewards=given)
    assert env.spec.kwargs["rewards"] == [
        ["missing-eos", {}],
        ["length", {"coef": -1.0}],
        ["length", {"coef": -2.0}],
    ]
    again = gym.make_vec(EnvSpec.from_json(env.spec.to_json()))
    assert again.term.coef == -2.0


def test_a_registered_function_is_written_by_name_and_another_cannot_be():
    @register_reward("shout-for-test")
    def shout(completions, **columns):
        return [float(text.isupper()) for text in completions]

    try:
        env = gym.make_vec("TextRLHF-v0", rewards=[shout])
        assert env.spec.kwargs["rewards"] == [["shout-for-test", {}]]
    finally:
        del REWARDS["shout-for-test"]
    env = gym.make_vec("TextRLHF-v0", rewards=[lambda completions, **columns: [0.0] * len(completions)])
    with pytest.raises(TypeError, match="not JSON serializable"):
        env.spec.to_json()
    assert gym.make_vec(env.spec).term.name == env.term.name  # within the process the object itself is there


def test_torch_device_is_written_as_a_string():
    env = gym.make_vec("TextRLHF-v0", device=torch.device("cpu"))
    assert '"device": "cpu"' in env.spec.to_json()


# -- the folder ----------------------------------------------------------------------------------------------


def run_python(code: str, **kwargs):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, **kwargs)


def test_importing_tasks_is_light():
    done = run_python(
        "import sys, textenv.tasks; assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    assert done.returncode == 0, done.stderr


def test_bare_import_is_refused():
    from pathlib import Path

    root = Path(__file__).parents[2]
    done = run_python("import tasks", cwd=root)
    assert done.returncode and "this folder is imported as textenv.tasks" in done.stderr


def test_lazy_names():
    import textenv.tasks as tasks

    assert all(getattr(tasks, name) is not None for name in tasks.__all__)
    assert set(tasks.__all__) <= set(dir(tasks))
    with pytest.raises(AttributeError, match=r"textenv\.tasks attribute make_taks"):
        _ = tasks.make_taks
