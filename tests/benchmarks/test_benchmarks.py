"""The benchmarks' pieces on tiny sizes: that they measure what they say, not how fast anything is."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from benchmarks import mutation, random_walks, rollout, turns
from benchmarks.common import interleave, matmul_flops, write_json
from benchmarks.fingerprints import differences, record, rows_hashes, tensor_digest, tensors_digest
from benchmarks.models import ModelShape, language_model, random_prompts, sequence_classifier, word_tokenizer
from benchmarks.mutation_operators import mutations_of
from benchmarks.ppo_cycle import CASES, contender, contenders_of, expected_tokens, ratios, run_case
from benchmarks.worker import Worker, memory_mb
from textenv.generation.policy import DecodingPolicy
from textenv.rollout import collect

TINY = ModelShape(layers=1, width=16, heads=2, vocab=64, positions=64)


def test_interleave_takes_turns_and_drops_the_warmup() -> None:
    played: list[str] = []

    def player(name: str):
        def play() -> float:
            played.append(name)
            return float(len(played))

        return play

    results = interleave({"a": player("a"), "b": player("b")}, repeats=2, warmup=1)
    assert played == ["a", "b"] * 3
    assert results == {"a": [3.0, 5.0], "b": [4.0, 6.0]}
    with pytest.raises(ValueError, match="repeats must be >= 1, got 0"):
        interleave({}, repeats=0)


def test_end_of_sequence_has_the_probability_asked_for() -> None:
    model = language_model(replace(TINY, eos_probability=0.25))
    text = random_prompts(TINY, count=32, length=20)
    probabilities = model(text).logits.softmax(-1)
    assert probabilities[..., TINY.eos_token_id].mean().item() == pytest.approx(0.25, rel=0.05)
    assert probabilities[..., TINY.pad_token_id].max().item() == 0.0
    endless = language_model(TINY)(text).logits.softmax(-1)
    assert endless[..., TINY.eos_token_id].max().item() == 0.0
    assert model.lm_head.weight is model.transformer.wte.weight


def test_tokenizer_and_prompts_fit_the_model() -> None:
    tokenizer = word_tokenizer(TINY)
    assert len(tokenizer) == TINY.vocab
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (TINY.eos_token_id, TINY.pad_token_id)
    prompts = random_prompts(TINY, count=3, length=5)
    assert tokenizer(tokenizer.batch_decode(prompts))["input_ids"] == prompts.tolist()
    assert sequence_classifier(TINY, layers=1, seed=0)(prompts).logits.shape == (3, 1)


def test_both_sides_of_the_rollout_count_the_same_useful_tokens() -> None:
    work = rollout.Workload(shape=TINY, rows=4, episodes=8, max_new_tokens=6, prompt_tokens=4)
    figures = rollout.against_generate(work, repeats=1)
    assert figures["ratio"] == figures["tokens_s"]["textenv"] / figures["tokens_s"]["generate"]
    seconds = iter([0.0, 2.0])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rollout.time, "perf_counter", lambda: next(seconds))
        prompts = random_prompts(TINY, count=8, length=4)
        rate = rollout.generate_rate(language_model(TINY), work, prompts)
    assert rate == 8 * 6 / 2.0


@pytest.mark.usefixtures("forked")
def test_env_share_and_scaling_have_their_keys() -> None:
    work = rollout.Workload(
        shape=replace(TINY, eos_probability=0.2), rows=2, episodes=4, max_new_tokens=8, prompt_tokens=4
    )
    share = rollout.env_share(work, repeats=1)
    assert 0.0 < share["share"] < 1.0
    assert share["share"] + share["policy_share"] <= 1.0
    scaling = rollout.scaling(work, num_envs=(1, 2), lengths=(4,), repeats=1)
    assert [case["num_envs"] for case in scaling["num_envs"]] == [1, 2]
    assert [(case["new_tokens"], case["tokens"]) for case in scaling["length"]] == [(4, 8 * 4)]


def test_worker_passes_answers_and_errors(tmp_path: Path) -> None:
    worker = Worker(sys.executable, "tests.helpers.echo_worker", {"times": 3})
    try:
        assert worker.ready["ready"] is True
        assert [worker.run()["value"] for _ in range(2)] == [3, 6]
        assert worker.run()["peak_mb"] > 0
    finally:
        worker.close()
    with pytest.raises(RuntimeError, match="stopped with code 1"):
        Worker(sys.executable, "tests.helpers.echo_worker", {"wrong": 3})
    assert memory_mb("VmRSS") <= memory_mb("VmHWM")


def test_cases_are_json_and_choose_their_contenders() -> None:
    assert json.loads(json.dumps(CASES[0])) == CASES[0]
    assert contenders_of(CASES[0]) == ["shared", "separate", "trl_nogc", "trl"]
    assert contenders_of(CASES[2])[-1] == "trl_full"
    assert contenders_of(CASES[2], ours_only=True) == ["shared", "separate", "shared_packed"]
    with pytest.raises(
        ValueError, match="contender must be one of shared, separate, shared_packed, trl_nogc"
    ):
        contender("trlx", CASES[0])


@pytest.mark.usefixtures("forked")
def test_our_ppo_cycle_runs_in_a_worker() -> None:
    tiny = {**CASES[0], "model": asdict(TINY), "batch": 4, "prompts": 4, "prompt_tokens": 4, "new_tokens": 6}
    figures = run_case(tiny, ["shared"], repeats=1, warmup=0)
    parts = figures["parts"]["shared"]
    assert parts["samples"] == 4 and parts["tokens"] == 4 * 6
    assert parts["rollout"] + parts["score"] + parts["update"] <= parts["seconds"]
    assert figures["samples_s"]["shared"] == pytest.approx(parts["samples"] / parts["seconds"])
    assert figures["peak_mb"]["shared"] > 0


def test_json_carries_figures_and_environment(tmp_path: Path) -> None:
    write_json(tmp_path / "out.json", {"env_share": 0.5})
    written = json.loads((tmp_path / "out.json").read_text())
    assert written["env_share"] == 0.5
    assert written["environment"]["torch"] == version("torch")
    assert matmul_flops(size=32, repeats=1) > 0


def test_expected_tokens_are_those_of_capped_geometric_lengths() -> None:
    case = {**CASES[2], "new_tokens": 2, "batch": 2}
    case["model"] = {**case["model"], "eos_probability": 0.5}
    assert expected_tokens("shared", case) == 1.5  # 1 or 2 tokens, as likely
    assert expected_tokens("trl_nogc", case) == 1.75  # the longer of two
    assert expected_tokens("trl_full", case) == 2.0
    assert expected_tokens("trl", CASES[0]) == 32.0


def test_ratios_name_whom_they_are_against() -> None:
    fixed = ratios("ratio", {"shared": 6.0, "separate": 4.0, "trl_nogc": 2.0, "trl": 1.0})
    assert fixed["ratio_shared"] == 3.0 and fixed["ratio_separate_with_gc"] == 4.0
    ended = ratios("ratio", {"shared": 6.0, "trl_nogc": 2.0, "trl": 1.5, "trl_full": 1.0})
    assert ended == {"ratio_shared": 6.0, "ratio_shared_trimmed": 3.0, "ratio_shared_with_gc": 4.0}
    assert ratios("ratio", {"shared": 6.0}) == {}


def test_the_table_of_walks_has_a_row_for_each_agent(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def run(name: str, graph_seed: int, seed: int, **_: object) -> dict[str, object]:
        costs = dict.fromkeys(random_walks.COSTS, 100 * (seed + 1))
        return {"seed": seed, "optimality": 0.9 + seed / 100, "by_beta": {}, "seconds": 2.0, **costs}

    monkeypatch.setattr(random_walks, "run", run)
    file = tmp_path / "walks.json"
    monkeypatch.setattr(sys, "argv", ["random_walks", "--all", "--seeds", "5", "--json", str(file)])
    random_walks.main()
    out = capsys.readouterr().out
    rows = [line for line in out.splitlines() if "0.920 [0.9" in line]
    assert len(rows) == len(random_walks.AGENTS) and all("0.900" in row and " 300 " in row for row in rows)
    found = json.loads(file.read_text())["agents"]
    assert [one["agent"] for one in found] == random_walks.AGENTS
    assert found[0]["optimality"]["per_seed"] == pytest.approx([0.9, 0.91, 0.92, 0.93, 0.94])


def test_mutations_are_single_faults_that_python_can_read() -> None:
    source = b"""
def loss(a, mask, weight: float = 1.0):
    if weight <= 0:
        raise ValueError(f"weight must be > 0, got {weight - 1}")
    kept = torch.where(mask, a[:, 1:] - a.detach(), 0.0)
    return weight * kept.sum(dim=index) if a.min() < 0 else -kept
"""
    found = [
        (m.operator, m.apply(source).decode().splitlines()[m.line - 1].strip())
        for m in mutations_of("f", source)
    ]
    assert ("mask", "kept = (a[:, 1:] - a.detach())") in found
    assert ("off-by-one", "kept = torch.where(mask, a[:, 2:] - a.detach(), 0.0)") in found
    assert ("sign", "kept = torch.where(mask, a[:, 1:] + a.detach(), 0.0)") in found
    assert ("detach", "kept = torch.where(mask, a[:, 1:] - a, 0.0)") in found
    assert ("factor", "return kept.sum(dim=index) if a.min() < 0 else -kept") in found
    assert ("keyword", "return weight * kept.sum() if a.min() < 0 else -kept") in found
    assert ("comparison", "return weight * kept.sum(dim=index) if a.min() <= 0 else -kept") in found
    assert ("extremum", "return weight * kept.sum(dim=index) if a.max() < 0 else -kept") in found
    assert ("sign", "return weight * kept.sum(dim=index) if a.min() < 0 else kept") in found
    assert not any("raise" in line or "def" in line for _, line in found)


def test_a_draw_of_mutations_depends_on_the_seed_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mutation, "FILES", ("agents/losses/importance.py", "textenv/modeling/kl.py"))
    drawn = mutation.draw(mutation.ROOT, 20, seed=1)
    assert drawn == mutation.draw(mutation.ROOT, 20, seed=1) != mutation.draw(mutation.ROOT, 20, seed=2)
    assert len(set(drawn)) == 20
    for found in drawn:
        found.apply((mutation.ROOT / found.file).read_bytes())
    with pytest.raises(ValueError, match="count must be at most"):
        mutation.draw(mutation.ROOT, 10**6, seed=1)


def test_hashes_of_tensors_see_names_dtypes_shapes_and_bits() -> None:
    tensors = {"b": torch.arange(6.0).reshape(2, 3), "a": torch.ones(2)}
    changed = {
        "order": ({"a": tensors["a"], "b": tensors["b"]}, True, True),
        "name": ({"a": tensors["a"], "c": tensors["b"]}, False, True),
        "shape": ({**tensors, "b": tensors["b"].reshape(3, 2)}, False, False),
        "dtype": ({**tensors, "a": tensors["a"].double()}, False, False),
        "bit": ({**tensors, "a": tensors["a"] + 2**-23}, False, False),
        "layout": ({**tensors, "b": tensors["b"].t().contiguous().t()}, True, True),
    }
    named, values = tensors_digest(tensors), tensors_digest(tensors, names=False)
    for what, (other, same, same_values) in changed.items():
        assert (tensors_digest(other) == named) is same, what
        assert (tensors_digest(other, names=False) == values) is same_values, what
    assert tensor_digest(torch.zeros(1, dtype=torch.bfloat16)) != tensor_digest(torch.zeros(1))
    assert tensor_digest(torch.tensor(1.0)) != tensor_digest(torch.ones(1))


def test_hashes_of_metrics_leave_out_the_clock() -> None:
    rows = [{"step": 1, "loss": 0.1, "time": 2.0, "time/rollout": 1.0}, {"step": 2, "loss": 0.3}]
    rows[1] |= {"throughput/train_tokens_s": 5.0, "eval/train_seconds": 3.0}
    found = rows_hashes(rows)
    assert sorted(found["columns"]) == ["loss", "step"]
    assert found == rows_hashes([{"step": 1, "loss": 0.1}, {"loss": 0.3, "step": 2, "time": 9.0}])
    other = rows_hashes([{"step": 1, "loss": 0.1}, {"step": 2, "loss": 0.1 + 0.2}])
    assert found["columns"]["step"] == other["columns"]["step"]
    assert found["columns"]["loss"] != other["columns"]["loss"] and found["metrics"] != other["metrics"]
    assert rows_hashes(rows[:1])["metrics"] != rows_hashes([*rows[:1], {}])["metrics"]
    assert rows_hashes([{"loss": math.nan}]) == rows_hashes([{"loss": math.nan}])


def test_two_recordings_are_compared_run_by_run() -> None:
    run = {"weights": "w", "values": "v", "saved": "s", "metrics": "m", "columns": {"loss": "l", "lr": "r"}}
    assert differences({"ppo": run}, {"ppo": dict(run)}) == []
    before = dict.fromkeys(("ppo", "a2c", "sft", "dpo"), run)
    after = {
        "ppo": {**run, "metrics": "n", "columns": {"loss": "k", "lr": "r"}},
        "a2c": {**run, "weights": "x"},
        "sft": {"error": "ValueError: no"},
        "kto": run,
    }
    assert differences(before, after) == [
        "a2c: names of weights (their values are equal)",
        "dpo: only in the earlier recording",
        "kto: only in the later recording",
        "ppo: metrics (loss)",
        "sft: error, weights, saved, metrics (loss, lr)",
    ]
    with pytest.raises(FileNotFoundError, match="root must be a checkout with src/textenv"):
        record(Path("no-such-checkout"))


def test_a_run_has_the_same_hashes_again_and_when_it_is_resumed() -> None:
    from benchmarks import fingerprint_worker as worker

    assert set(worker.DOUBLE) | set(worker.RESUMED) <= set(worker.RUNS)
    given = worker.RUNS["ppo-ema"]
    found = worker.hashes(worker.train(given))
    assert found == worker.resumed(given)
    assert found["weights"] != worker.hashes(worker.train(given, seed=1))["weights"]


def test_slow_tools_give_the_same_tokens_with_and_without_a_barrier(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "SHAPE", replace(TINY, positions=256))
    monkeypatch.setattr(turns, "LONGEST", 9)
    figures = turns.slow_tools(2, False, 3, 6, 0.0005, repeats=1)
    assert all(rate > 0 for rate in figures["tokens_s"].values()) and figures["ratio"] > 0
    # Two turns of mean length 8.5 and latency 2; the longest has 9, the slowest of three waits 2 * 11 / 6.
    assert figures["bound"] == pytest.approx((9 + 2 * 11 / 6) / (8.5 + 2))
    batches = []
    for partner in (turns.Tool, turns.BarrierTool):
        turns.BarrierTool.rows, turns.BarrierTool.waiting = 3, []
        envs = turns.make_envs(turns.SHAPE, 3, 6, partner(0.001))
        policy = turns.TurnEnds(DecodingPolicy(language_model(turns.SHAPE)), TINY.eos_token_id)
        batches.append(collect(envs, policy, 6, seed=0))
        envs.close()
    assert batches[0].input_ids.tolist() == batches[1].input_ids.tolist()
    assert batches[0].extras["stop_reason"] == ["done"] * 6


def test_the_cost_of_a_reply_is_measured_in_three_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "SHAPE", TINY)
    figures = turns.reply_cost(20, 2, repeats=1)
    assert set(figures["seconds"]) == {"extend", "prefill", "forced"} and figures["of_prefill"] > 0
