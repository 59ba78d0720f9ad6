"""Training in two processes on the CPU: the same as in one, and no process waits for one that has stopped."""

from __future__ import annotations

import json
import shutil
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM

from tests.agents.distributed import distributed_worker as worker
from textenv.agents.data.batch import TrainingBatch
from textenv.agents.data.ratings import RewardBatch
from textenv.agents.distributed import process_group
from textenv.agents.distributed.batch_sharding import rows_of_rank
from textenv.agents.distributed.data_parallel import (
    check_minibatches,
    gather_episodes,
    local_rows,
    microbatches,
    shard_rows,
)
from textenv.agents.optim.launcher import asked_for, zero_stage
from textenv.envs.scheduler import EpisodeQueue, EpisodeScheduler
from textenv.episodes.batch import EpisodeBatch
from textenv.episodes.preferences import PreferenceBatch
from textenv.modeling.log_probs import length_groups, single_length_group

pytestmark = pytest.mark.timeout(600)
Found = tuple[Path, list[dict[str, Any]]]
needs_deepspeed = pytest.mark.skipif(
    find_spec("deepspeed") is None, reason="DeepSpeed is not installed: pip install 'textenv[deepspeed]'"
)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Everything that a saved agent learned: model, heads, moments, averages."""
    files = ["model.safetensors", "heads.safetensors", "optimizer.safetensors", "trainer.safetensors"]
    found = [load_file(folder / name) for name in files if (folder / name).exists()]
    return {f"{i}/{name}": value for i, tensors in enumerate(found) for name, value in tensors.items()}


def assert_close(one: Path, two: Path, tolerance: float = 1e-5) -> None:
    a, b = weights(one), weights(two)
    assert set(a) == set(b)
    for name, value in a.items():
        torch.testing.assert_close(b[name], value, rtol=0, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Found:
    """Agents trained in two processes and, in this one, alone: alone, process 0, process 1."""
    folder = tmp_path_factory.mktemp("equal")
    results = worker.launch(folder / "two", "train_all", timeout=500)
    (folder / "one").mkdir()
    return folder, [worker.train_all(folder / "one"), *(result["train_all"] for result in results)]


@pytest.fixture(scope="module")
def troubled(tmp_path_factory: pytest.TempPathFactory) -> Found:
    folder = tmp_path_factory.mktemp("trouble") / "two"
    scenarios = ("unlike_lengths", "nan_reward", "nan_loss", "stop", "half")
    return folder, worker.launch(folder, *scenarios, timeout=500)


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Found:
    """FSDP2 between two processes; alone, process 0, process 1."""
    folder = tmp_path_factory.mktemp("sharded")
    scenarios = ("train_sharded", "refused", "half")
    results = worker.accelerate_launch("fsdp2.yaml", folder / "two", *scenarios, timeout=500)
    (folder / "one").mkdir()
    return folder, [{"train_sharded": worker.train_sharded(folder / "one")}, *results]


@pytest.fixture(scope="module")
def zero(tmp_path_factory: pytest.TempPathFactory) -> Found:
    """DeepSpeed's engine between two processes: process 0, process 1."""
    folder = tmp_path_factory.mktemp("zero")
    # The first scenario runs by the configuration as it is, the second one changes it.
    scenarios = ("half", "train_zero", "refused", "nan_loss")
    return folder, worker.accelerate_launch("deepspeed_zero3.yaml", folder / "two", *scenarios, timeout=500)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """PPO trained without a pause, in one process."""
    from textenv.agents.training import train

    folder = tmp_path_factory.mktemp("whole") / "agent"
    train(**worker.arguments("ppo", iterations=4, ema_decay=None)).agent.save(folder)
    return folder


class TestTheSameAsOneProcess:
    def test_weights_moments_and_metrics(self, trained: Found) -> None:
        folder, (alone, first, second) = trained
        for name in worker.SETTINGS:
            assert_close(folder / "one" / name, folder / "two" / name)
            assert first[name] == second[name], f"{name}: the processes must agree to the last bit"
            assert len(first[name]) == len(alone[name])
            for one, two in zip(alone[name], first[name], strict=True):
                if abs(one.get("rewards/margin", 1.0)) < 1e-6:  # equal up to rounding
                    two = {**two, "rewards/accuracy": one["rewards/accuracy"]}
                assert one == pytest.approx(two, rel=1e-4, abs=1e-5, nan_ok=True), name

    def test_states_of_rewards_and_controllers(self, trained: Found) -> None:
        folder, _ = trained
        one, two = (
            json.loads((folder / place / "ppo" / "trainer.json").read_text()) for place in ("one", "two")
        )
        assert one["counters"] == two["counters"]
        for found in (one, two):
            del found["reward_terms"]["normalized"]["of"]
        assert one["reward_terms"]["normalized"] == pytest.approx(two["reward_terms"]["normalized"])
        assert one["reward_terms"]["kl"]["coef"] != 0.05, "the controller must have moved"
        assert one["reward_terms"]["kl"]["coef"] == pytest.approx(two["reward_terms"]["kl"]["coef"], abs=1e-9)
        assert one["state"]["score_std"] == pytest.approx(two["state"]["score_std"], rel=1e-6)

    def test_plain_transformers_loads_the_folder(self, trained: Found) -> None:
        folder, _ = trained
        model = AutoModelForCausalLM.from_pretrained(folder / "two" / "ppo")
        saved = load_file(folder / "one" / "ppo" / "model.safetensors")["transformer.wte.weight"]
        torch.testing.assert_close(model.state_dict()["transformer.wte.weight"], saved, rtol=0, atol=1e-5)


class TestTrouble:
    def test_responses_of_very_different_length(self, troubled: Found) -> None:
        # Process 0's half of the episodes ends after one token, the other's after 32: 16.5 on average.
        found = [result["unlike_lengths"] for result in troubled[1]]
        assert [result["lengths"][1:] for result in found] == [[16.5, 16.5]] * 2
        assert [result["steps"] for result in found] == [6, 6]

    @pytest.mark.parametrize(
        ("scenario", "error", "said"),
        [
            ("nan_reward", "RewardError", "nan"),
            ("nan_loss", "NonFiniteError", "loss is not finite in iteration 2"),
        ],
    )
    def test_a_nan_in_one_process_stops_all(
        self, troubled: Found, scenario: str, error: str, said: str
    ) -> None:
        folder, results = troubled
        assert [result[scenario]["error"] for result in results] == [error, error]
        assert all(said in result[scenario]["said"] for result in results)
        run = scenario.removeprefix("nan_")
        failures = list(folder.glob(f"{run}-*/failures/*/failure.json"))
        assert [path.parts[-4] for path in failures] == [f"{run}-0"], "process 0 alone keeps the evidence"

    def test_the_weights_are_those_before_the_step(self, troubled: Found) -> None:
        assert [result["nan_loss"]["steps"] for result in troubled[1]] == [1, 1]

    def test_a_stop_in_one_process_stops_all(self, troubled: Found) -> None:
        first, second = (result["stop"] for result in troubled[1])
        assert first["iterations"] == second["iterations"] == 2
        assert first["evaluation"] == second["evaluation"]
        assert first["evaluation"]["episodes"] == 7.0

    def test_only_process_0_writes_and_speaks(self, troubled: Found) -> None:
        folder, results = troubled
        assert len((folder / "stop-0" / "metrics.jsonl").read_text().splitlines()) == 2
        assert (folder / "stop-0" / "best" / "model.safetensors").exists()
        assert list((folder / "stop-0" / "checkpoints").iterdir())
        assert not [path for path in folder.glob("*-1/**/*") if path.is_file()]
        assert "eval/return/mean" in results[0]["output"]
        assert "eval/return/mean" not in results[1]["output"]


class TestSharded:
    """FSDP2 on the CPU: the same training again, with half of each block in each process."""

    def test_it_trains_as_one_process_does(self, sharded: Found) -> None:
        folder, (alone, *results) = sharded
        for name, expected in alone["train_sharded"].items():
            for result in results:
                found = result["train_sharded"][name]
                assert found["sharded"] and found["held"] < 0.8 * found["all"]
                assert found["loss"] == pytest.approx(expected["loss"], abs=1e-5)
            assert_close(folder / "one" / name, folder / "two" / name)
            AutoModelForCausalLM.from_pretrained(folder / "two" / name)

    def test_what_does_not_go_together_is_refused(self, sharded: Found) -> None:
        for result in sharded[1][1:]:
            assert "ema_decay must be None" in result["refused"]["average"]["said"]
            assert "adapters can't be trained on sharded weights" in result["refused"]["adapters"]["said"]

    def test_the_first_fsdp_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(process_group, "world_size", lambda: 2)
        monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
        monkeypatch.setenv("FSDP_VERSION", "1")
        with pytest.raises(ValueError, match="fsdp_version must be 2, got 1"):
            asked_for()


class TestZero:
    """DeepSpeed's engine on the CPU: the same training again, in each of ZeRO's stages."""

    @needs_deepspeed
    @pytest.mark.parametrize("stage", [1, 2, 3])
    def test_it_trains_as_one_process_does(self, sharded: Found, zero: Found, stage: int) -> None:
        one, two = sharded[0] / "one", zero[0] / "two" / str(stage)
        for name, expected in sharded[1][0]["train_sharded"].items():
            for result in zero[1]:
                found = result["train_zero"][str(stage)][name]
                assert found["loss"] == pytest.approx(expected["loss"], abs=1e-5)
                assert found["norm"] == pytest.approx(expected["norm"], abs=1e-5, rel=1e-5)
                assert found["moments"] < 0.6 * found["trains"], "each process has its half, and some padding"
                assert (found["held"] < 0.8 * found["all"]) == (stage == 3)
            assert_close(one / name, two / name)
            AutoModelForCausalLM.from_pretrained(two / name)

    @needs_deepspeed
    def test_products_in_bfloat16(self, sharded: Found, zero: Found) -> None:
        exact = sharded[1][0]["train_sharded"]["sft"]["loss"]
        for result in zero[1]:
            assert result["train_zero"]["bfloat16"]["loss"] == pytest.approx(exact, rel=0.02)

    @needs_deepspeed
    def test_what_does_not_go_together_with_stage_3_is_refused(self, zero: Found) -> None:
        for result in zero[1]:
            assert "ema_decay must be None" in result["refused"]["average"]["said"]
            assert "adapters can't be trained on sharded weights" in result["refused"]["adapters"]["said"]

    @needs_deepspeed
    def test_a_nan_in_one_process_stops_all(self, zero: Found) -> None:
        for result in zero[1]:
            assert "loss is not finite in iteration 2" in result["nan_loss"]["said"]
            assert result["nan_loss"]["steps"] == 1

    @pytest.mark.parametrize(
        ("name", "value", "said"),
        [
            ("ACCELERATE_DEEPSPEED_ZERO_STAGE", "0", "zero_stage must be 1, 2 or 3, got 0"),
            (
                "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE",
                "cpu",
                "offload_optimizer_device must be none with DeepSpeed, got cpu",
            ),
        ],
    )
    def test_what_is_not_used_here_is_refused(
        self, monkeypatch: pytest.MonkeyPatch, name: str, value: str, said: str
    ) -> None:
        monkeypatch.setattr(process_group, "world_size", lambda: 2)
        monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
        assert zero_stage() == 2
        monkeypatch.setenv(name, value)
        with pytest.raises(ValueError, match=said):
            zero_stage()


class TestResume:
    """A run goes on in another number of processes, and with whole weights or sharded ones."""

    @pytest.mark.parametrize("before", ["troubled", "sharded", pytest.param("zero", marks=needs_deepspeed)])
    def test_from_two_processes_to_one(
        self, request: pytest.FixtureRequest, uninterrupted: Path, before: str
    ) -> None:
        folder = request.getfixturevalue(before)[0]
        folder = folder if before == "troubled" else folder / "two"
        assert worker.rest(folder) == {"tickets": 48, "rows": 4}
        assert_close(uninterrupted, folder / "resumed")

    def test_from_one_process_to_two_sharded_ones(self, tmp_path: Path, uninterrupted: Path) -> None:
        assert worker.half(tmp_path) == {"tickets": 24}
        for result in worker.launch(tmp_path, "rest", variables=worker.SHARDED, timeout=500):
            assert result["rest"] == {"tickets": 48, "rows": 4}
        assert_close(uninterrupted, tmp_path / "resumed")

    @needs_deepspeed
    def test_from_one_process_to_two_of_deepspeed(self, tmp_path: Path, uninterrupted: Path) -> None:
        worker.half(tmp_path / "2")
        shutil.copytree(tmp_path / "2", tmp_path / "3")
        for result in worker.launch(tmp_path, "rest_zero", variables=worker.zero(2), timeout=500):
            assert result["rest_zero"] == {stage: {"tickets": 48, "rows": 4} for stage in ("2", "3")}
        for stage in ("2", "3"):
            assert_close(uninterrupted, tmp_path / stage / "resumed")


@pytest.mark.parametrize(
    ("name", "kind", "processes", "reshards", "stage"),
    [
        ("ddp", "MULTI_GPU", 8, None, None),
        ("ddp_cpu", "MULTI_GPU", 2, None, None),
        ("fsdp2", "FSDP", 8, True, None),
        ("fsdp2_zero2", "FSDP", 8, False, None),
        ("deepspeed_zero2", "DEEPSPEED", 8, None, 2),
        ("deepspeed_zero3", "DEEPSPEED", 8, None, 3),
    ],
)
def test_accelerate_reads_the_configurations(
    name: str, kind: str, processes: int, reshards: bool | None, stage: int | None
) -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    found = load_config_from_file(str(worker.ROOT / "configs" / "accelerate" / f"{name}.yaml"))
    assert (found.distributed_type.value, found.num_processes) == (kind, processes)
    assert found.mixed_precision == "no"
    assert found.fsdp_config.get("fsdp_reshard_after_forward") == reshards
    assert reshards is None or found.fsdp_config["fsdp_version"] == 2
    assert found.deepspeed_config.get("zero_stage") == stage


class TestAlone:
    def test_nothing_happens(self) -> None:
        process_group.start()
        parameter = nn.Parameter(torch.ones(2))
        parameter.grad = torch.full((2,), 3.0)
        assert (
            process_group.world_size() == 1
            and process_group.is_main()
            and process_group.place()
            == {
                "rank": 0,
                "world_size": 1,
            }
        )
        assert not process_group.all_reduce_gradients([parameter])
        assert parameter.grad.tolist() == [3.0, 3.0]
        assert process_group.gather("x") == ["x"] and process_group.all_reduce_sum(1.5) == [1.5]
        episodes = EpisodeBatch.from_ids([[1]] * 3, [[2], [3, 4], [5]])
        assert gather_episodes(episodes) is episodes and shard_rows(episodes) is episodes
        assert local_rows(episodes) is None
        parts = list(microbatches(TrainingBatch(episodes), 100))
        assert [counts for _, counts in parts] == [True] and parts[0][0].episodes is episodes

    def test_a_single_process_imports_no_code_for_several(self) -> None:
        """One iteration of PPO with an evaluation and a checkpoint."""
        code = """
import sys, tempfile
import textenv
with tempfile.TemporaryDirectory() as folder:
    textenv.train(
        "ppo", task="probe-end", iterations=1, episodes_per_iteration=8, epochs=1, minibatches=2, num_envs=4,
        eval_episodes=4, loggers=(), report=False, start=False, run_dir=folder,
    )
sharding = ("distributed.batch_sharding", "optim.fsdp", "optim.deepspeed", "rollouts.ray_collector")
print([name for name in sharding if f"textenv.agents.{name}" in sys.modules])
"""
        done = worker.PYTHON.run(["-c", code])
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() == "[]"

    def test_an_error_passes_through(self) -> None:
        with pytest.raises(KeyError, match="gone"), process_group.collective("a test"):
            raise KeyError("gone")


class TestShares:
    def test_rows_are_dealt_by_length(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(process_group, "world_size", lambda: 2)
        lengths = torch.tensor([3, 9, 1, 7, 5])
        assert rows_of_rank(0, lengths).tolist() == [1, 4, 2]  # 9 + 5 + 1 tokens
        assert rows_of_rank(1, lengths).tolist() == [3, 0]  # 7 + 3

    def test_a_pass_in_step_with_others_is_not_divided(self) -> None:
        lengths = torch.tensor([9, 2, 2, 9])
        with single_length_group():
            ((rows, width),) = length_groups(lengths, 4)
        assert rows.tolist() == [0, 1, 2, 3] and width == 9
        assert len(list(length_groups(lengths, 4))) == 2

    def test_minibatches_need_a_row_for_every_process(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(process_group, "world_size", lambda: 4)
        check_minibatches(16, 4)
        with pytest.raises(ValueError, match=r"4 processes need .* >= 4, got 16 / 8"):
            check_minibatches(16, 8)

    def test_an_item_of_a_reward_model_is_as_long_as_its_texts(self) -> None:
        pairs = PreferenceBatch(
            chosen=EpisodeBatch.from_ids([[1], [1]], [[2, 3], [4]]),
            rejected=EpisodeBatch.from_ids([[1], [1]], [[5], [6, 7, 8]]),
        )
        rated = EpisodeBatch.from_ids([[1]], [[2, 2, 2, 2]], rewards=[1.0])
        assert RewardBatch.of(pairs, rated).row_lengths.tolist() == [3 + 2, 2 + 4, 5]

    @pytest.mark.parametrize(("first", "episodes", "group"), [(0, 24, 3), (6, 20, 3), (4, 9, 2), (5, 10, 1)])
    def test_groups_stay_together(self, first: int, episodes: int, group: int) -> None:
        queues = [
            EpisodeQueue(seed=0, first=first, episodes=episodes, rank=rank, world_size=3, group=group)
            for rank in range(3)
        ]
        assigned_ids = [queue.episode_ids.tolist() for queue in queues]
        assert sorted(chain.from_iterable(assigned_ids)) == list(range(first, first + episodes))
        assert sum(len({episode_id // group for episode_id in ids}) for ids in assigned_ids) == len(
            {episode_id // group for episode_id in range(first, first + episodes)}
        )

    def test_an_environment_deals_whole_groups(self) -> None:
        scheduler = EpisodeScheduler(2, 5, samples_per_prompt=4)
        scheduler.open_queue(16, rank=1, world_size=2)
        assert scheduler.queue is not None
        assert scheduler.queue.episode_ids.tolist() == [4, 5, 6, 7, 12, 13, 14, 15]
