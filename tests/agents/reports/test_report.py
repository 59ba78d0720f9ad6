"""Reports: what a run keeps, the page and its safety, plots, token views, the command."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from io import StringIO
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import jinja2
import pytest
import torch
from rich.console import Console

import textenv
from tests.helpers.models import letters, tiny
from tests.helpers.partners import Guess
from textenv.agents.cli.main import main
from textenv.agents.data.batch import TrainingBatch
from textenv.agents.loggers.jsonl import read_metrics
from textenv.agents.reports import frontier, headline, recorder, tokens
from textenv.agents.reports.page import CONTENT_SECURITY_POLICY, environment, render, visible
from textenv.agents.reports.report import write_report
from textenv.agents.reports.run_data import RunData, read_run
from textenv.agents.reports.run_plots import run_plots
from textenv.episodes.batch import EpisodeBatch
from textenv.partners import Reply
from textenv.partners.registry import PARTNERS, register_partner
from textenv.tasks.letters import letter_tokenizer

NASTY = (
    "</script><script>alert(1)</script> [/b] [red]x[/red] <img src=x onerror=alert(2)> \x1b[31mred\x1b[0m "
    "nul\x00 \u202egnp.exe\u202c {{ 7 * 7 }} $a_b$ <a href='javascript:alert(3)'>l</a> \U0001f642 é"
)
VOID = {"meta", "img", "input", "br", "link", "hr"}


class Page(HTMLParser):
    """A page's elements, with a check that they nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.elements if name == tag]


def check_page(path: Path) -> Page:
    """Nothing in the page runs or loads, and everything that it points to is there."""
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert page.open == []
    policies = [m for m in page.of("meta") if m.get("http-equiv") == "Content-Security-Policy"]
    assert [m["content"] for m in policies] == [CONTENT_SECURITY_POLICY]
    assert "default-src 'none'" in CONTENT_SECURITY_POLICY
    assert "script-src" not in CONTENT_SECURITY_POLICY
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "iframe", "object", "embed", "link", "form", "base", "svg"}
    assert not [name for _, attrs in page.elements for name in attrs if name.startswith("on")]
    for image in page.of("img"):
        assert image["alt"], image
        assert (image["src"] or "").startswith("data:image/png;base64,iVBORw0KGgo")
    ids = {attrs["id"] for _, attrs in page.elements if "id" in attrs}
    for anchor in page.of("a"):
        target = anchor["href"] or ""
        assert not re.match(r"[a-z]+:|//|/", target), target
        assert target[1:] in ids if target.startswith("#") else (path.parent / unquote(target)).is_file()
    assert {label["for"] for label in page.of("label")} <= ids
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", text)
    return page


@pytest.fixture(scope="module")
def reports() -> Any:
    recorder.enabled = True
    yield
    recorder.enabled = False


def nasty_reward(prompts: list[str], completions: list[str]) -> list[float]:
    return [sum(ord(c) % 7 for c in text) / 10 for text in completions]


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory, reports: Any, byte_tokenizer: Any) -> Path:
    """A tiny run of PPO whose prompts are hostile."""
    path = tmp_path_factory.mktemp("runs") / "tiny <b>run</b>"
    config = tiny(byte_tokenizer, width=16, positions=256)
    textenv.train(
        "ppo",
        config,
        prompts=[NASTY, "b"],
        eval_prompts=[NASTY, "b"],
        tokenizer=byte_tokenizer,
        reward=nasty_reward,
        env_kwargs={"max_new_tokens": 6},
        run_dir=path,
        loggers=(),
        num_envs=4,
        iterations=3,
        episodes_per_iteration=8,
        epochs=1,
        minibatches=1,
        eval_every=2,
        eval_episodes=8,
        learning_rate=1e-3,
    )
    return path


# -- the page ------------------------------------------------------------------------------------------------


def test_a_run_ends_with_a_report_that_shows_what_the_folder_holds(run_dir: Path) -> None:
    page = check_page(run_dir / "report.html")
    text = " ".join(page.texts)
    names = {file.stem for file in (run_dir / "plots").glob("*.png")}
    wanted = {"reward", "terms", "kl", "length", "entropy", "clip_fraction", "throughput", "reward_kl"}
    assert names >= wanted | {"explained_variance", "loss", "scores"}
    assert len(page.of("img")) == len(names)
    for said in (
        "No held-out judge",
        "before",
        "after",
        "ppo",
        "learning_rate",
        "seed",
        "wall time",
        "versions",
        "torch",
    ):
        assert said in text
    kept = json.loads((run_dir / "evaluations" / "before.json").read_text())
    figure = next(row for row in headline.figures(read_run(run_dir))[0] if row.name.startswith("length"))
    assert figure.before == kept["metrics"]["episode/length"]


def test_hostile_texts_are_shown_and_do_nothing(run_dir: Path) -> None:
    html = (run_dir / "report.html").read_text(encoding="utf-8")
    assert "&lt;/script&gt;&lt;script&gt;alert(1)" in html
    assert "&lt;img src=x onerror=alert(2)&gt;" in html
    assert r"\x1b[31mred" in html
    assert r"nul\x00" in html
    assert r"\u202egnp.exe" in html
    assert "{{ 7 * 7 }}" in html
    assert "49" not in html.partition("{{ 7 * 7 }}")[2][:20]


def test_the_folder_can_be_moved_and_the_report_written_again(run_dir: Path, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(run_dir, tmp_path / "moved"))
    (moved / "report.html").unlink()
    assert main(["report", str(moved)]) == 0
    check_page(moved / "report.html")


def test_names_that_a_template_does_not_know_are_errors(tmp_path: Path) -> None:
    with pytest.raises(jinja2.UndefinedError):
        render("report.html", tmp_path / "page.html")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(jinja2.TemplateNotFound):
        render("nothing.html", tmp_path / "page.html")


def test_every_expression_is_escaped() -> None:
    shown = environment().from_string("<p title='{{ x }}'>{{ x }}</p>").render(x="'\"<b>&\x07\ud800")
    assert shown == "<p title='&#39;&#34;&lt;b&gt;&amp;\\x07\\ud800'>&#39;&#34;&lt;b&gt;&amp;\\x07\\ud800</p>"
    assert visible("a\r\nb\u2028") == "a\\r\nb\\u2028"


@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed")
def test_a_browser_shows_the_page_without_errors(run_dir: Path, tmp_path: Path) -> None:
    from PIL import Image

    shot = tmp_path / "shot.png"
    done = subprocess.run(
        [
            "chromium",
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--enable-logging=stderr",
            f"--user-data-dir={tmp_path / 'profile'}",
            "--window-size=1200,3000",
            f"--screenshot={shot}",
            (run_dir / "report.html").as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert shot.is_file(), done.stderr
    assert "CONSOLE" not in done.stderr
    image = Image.open(shot).convert("RGB")
    colours = {colour for _, colour in image.getcolors(maxcolors=2**24) or []}
    # The plots' blue, so pictures are there; and text on a light ground.
    assert (0, 114, 178) in colours
    assert len(colours) > 100


# -- what a run keeps ----------------------------------------------------------------------------------------


def test_a_run_without_report_leaves_none_and_makes_no_further_evaluation(
    tmp_path: Path, reports: Any, byte_tokenizer: Any
) -> None:
    config = tiny(byte_tokenizer, width=16, positions=64)
    data = EpisodeBatch.from_texts(["a", "b"], ["x", "y"], byte_tokenizer)
    common: dict[str, Any] = {"dataset": data, "tokenizer": byte_tokenizer, "loggers": (), "steps": 3}
    textenv.train("sft", config, run_dir=tmp_path / "off", report=False, **common)
    assert not (tmp_path / "off" / "report.html").exists()
    assert not (tmp_path / "off" / "evaluations").exists()
    result = textenv.train("sft", config, run_dir=tmp_path / "on", **common)
    check_page(tmp_path / "on" / "report.html")
    assert (tmp_path / "on" / "plots" / "nll.png").is_file()
    figure = headline.figures(read_run(tmp_path / "on"))[0][0]
    assert (figure.before, figure.after) == (result.history[0]["sft/nll"], result.history[-1]["sft/nll"])


def test_a_report_that_fails_costs_no_training(tmp_path: Path, reports: Any) -> None:
    with pytest.warns(UserWarning, match="could not be written"):
        recorder.report_at_end(tmp_path)
    with pytest.raises(ValueError, match="it is no run's"):
        write_report(tmp_path)
    with pytest.raises(FileNotFoundError):
        write_report(tmp_path / "nothing")


def test_a_finished_run_of_reward_modelling_shows_its_calibration(tmp_path: Path) -> None:
    metrics = {"accuracy": 0.75, "ece": 0.1, "log_loss": None}
    bins = [{"low": 0.5, "count": 3, "confidence": 0.6, "accuracy": 0.7}, {"low": 0.9, "count": 0}]
    (tmp_path / "run.json").write_text(json.dumps({"agent": "reward-model", "config": {"seed": 3}}))
    recorder.write_json(
        tmp_path / "evaluations" / "after.json",
        {"iteration": 2, "metrics": metrics, "reliability": bins, "samples": [{"text": "a", "score": 1.0}]},
    )
    rows = ['{"step": 1, "pairs/accuracy": 0.5}\n', '{"step": 2, "pairs/accuracy": "NaN"}\n']
    (tmp_path / "metrics.jsonl").write_text("".join(rows))
    page = check_page(write_report(tmp_path))
    assert "No held-out judge" not in " ".join(page.texts)
    assert {file.stem for file in (tmp_path / "plots").iterdir()} == {"accuracy", "reliability"}


def test_metrics_that_no_plot_names_are_plotted_by_group(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"step": i, "mine/$x$": i, "mine/_y": math.nan, "eval/metric/m": i} for i in (1, 2)
    ]
    names = [plot.name for plot in run_plots(RunData(path=tmp_path, rows=rows), tmp_path)]
    assert names == ["more_mine", "own_metrics"]


# -- figures and warnings ------------------------------------------------------------------------------------


def test_warnings_tell_of_hacking_limits_failures_and_interruption(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"step": 1, "eval/watch/parted": 0.0, "loss": 1.0},
        {"step": 2, "eval/watch/parted": 1.0, "eval/watch/over_limit": 1.0, "loss": math.inf},
    ]
    run = RunData(path=tmp_path, rows=rows, info={"config": {"iterations": 5}})
    run.failures = [{"iteration": 2, "term": "loss"}]
    said = headline.warnings_of(run)
    assert len(said) == 5
    assert "diverge at step 2" in said[1]
    assert "2 of 5" in said[-1]
    assert headline.warnings_of(RunData(path=tmp_path, rows=rows[:1])) == []


def test_score_is_the_return_without_kl_penalties() -> None:
    batch = EpisodeBatch.from_ids([[1], [1]], [[2, 3], [4]])
    terms = {"good": torch.tensor([[0.0, 0, 2], [0, 1, 0]]), "kl": torch.tensor([[0.0, -1, -1], [0, -3, 0]])}
    batch.reward_terms, batch.rewards = terms, terms["good"] + terms["kl"]
    assert recorder.scores(batch).tolist() == [2.0, 1.0]
    figure = headline.Figure("x", 1.0, 0.25, better=1)
    assert (figure.change, figure.tone) == (-0.75, "bad")


@pytest.mark.parametrize("paid", [False, True])
def test_a_run_without_rewards_shows_no_returns(paid: bool, tmp_path: Path) -> None:
    metrics = {f"return/{name}": 0.0 for name in ("mean", "std", "min", "max")} | {"episode/length": 3.0}
    metrics |= {"terms/length": 0.0} if paid else {}
    row = {"step": 1, **{f"eval/{name}": value for name, value in metrics.items()}}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    (tmp_path / "evaluations").mkdir()
    for name in ("before", "after"):
        content = {"iteration": 1, "metrics": metrics, "samples": [], "scores": {"score": [0.0]}}
        (tmp_path / "evaluations" / f"{name}.json").write_text(json.dumps(content))
    run = read_run(tmp_path)
    shown = {figure.name for figure in headline.figures(run)[0]}
    assert shown == {"length, tokens"} | ({"reward (without KL penalty)"} if paid else set())
    assert (run.series("eval/score")[1] == [0.0, 0.0]) == paid
    assert ("scores" in (run.after or {})) == paid


def test_the_anchor_is_best_of_n_by_hand() -> None:
    run = RunData(path=Path())
    run.before = {"scores": {"prompt_index": [0, 1], "score": [0.0, 1.0]}}
    assert frontier.best_of_n_anchor(run)[0] == []
    assert "several texts" in frontier.best_of_n_anchor(run)[1]
    # Of the pairs of {0, 1, 4} the best are 1, 4, 4; of {2, 2, 5, ...} cut to three: 2, 5, 5.
    run.rollout = {"scores": {"prompt_index": [0, 0, 0, 1, 1, 1, 1], "score": [4.0, 0, 1, 2, 2, 5, 9]}}
    anchor, note = frontier.best_of_n_anchor(run)
    assert [n for n, _, _ in anchor] == [1, 2, 3]
    assert anchor[0][1:] == pytest.approx((0.0, (5 / 3 + 3) / 2))
    assert anchor[1][1:] == pytest.approx((math.log(2) - 0.5, (3 + 4) / 2))
    assert anchor[2][2] == pytest.approx((4 + 5) / 2)
    assert "3 texts of each of 2 prompts (first iteration)" in note


# -- token views ---------------------------------------------------------------------------------------------


def test_tokens_read_as_the_text_and_parts_of_characters_wait_for_the_last(byte_tokenizer: Any) -> None:
    ids = byte_tokenizer("a€ 🙂").input_ids
    assert tokens.token_texts(ids, byte_tokenizer) == ["a", "", "", "€", " ", "", "", "", "🙂"]
    assert tokens.token_texts([*ids[:2], ids[0]], byte_tokenizer) == ["a", "\ufffd", "a"]
    assert tokens.token_texts(ids[1:3], byte_tokenizer)[-1] in ("\ufffd", "")
    assert tokens.token_texts([], byte_tokenizer) == []
    text = "".join(tokens.token_texts(byte_tokenizer(NASTY).input_ids, byte_tokenizer))
    assert text == NASTY


def test_views_hold_rewards_values_kl_and_advantages_of_own_tokens(byte_tokenizer: Any) -> None:
    ids = byte_tokenizer("abc").input_ids
    batch = EpisodeBatch.from_ids([ids[:1]], [ids[1:]], rewards=[2.0])
    shape = batch.input_ids.shape
    tensors = {
        "old_log_probs": torch.full(shape, -1.0),
        "ref_log_probs": torch.full(shape, -1.5),
        "old_values": torch.full(shape, 0.25),
        "advantages": torch.tensor([[0.0, -3.0, math.nan]]),
        "by_episode": torch.zeros(1),
    }
    (view,) = tokens.training_views(TrainingBatch(batch, tensors), byte_tokenizer)
    assert view.tokens == ["a", "b", "c"]
    assert view.own == [False, True, True]
    assert view.quantities == {
        "reward": [None, 0.0, 2.0],
        "KL": [None, 0.5, 0.5],
        "value": [None, 0.25, 0.25],
        "advantage": [None, -3.0, None],
        "log-prob": [None, -1.0, -1.0],
    }
    with pytest.raises(ValueError, match=r"quantity 'x' must have shape \(1, 3\), got \(1,\)"):
        tokens.token_views(batch, byte_tokenizer, quantities={"x": torch.zeros(1)})


def test_shades_grow_with_the_value_and_tell_the_sign() -> None:
    steps = [tokens.level(value, 2.0) for value in (-9.0, -2.0, -0.1, 0.0, 0.1, 1.0, 2.0)]
    assert steps == [-9, -9, -1, 0, 1, 5, 9]
    assert tokens.shade(9) != tokens.shade(-9)


def test_the_terminal_is_not_commanded_by_tokens(byte_tokenizer: Any) -> None:
    ids = byte_tokenizer(NASTY).input_ids
    batch = EpisodeBatch.from_ids([ids[:3]], [ids[3:]], rewards=[1.0])
    out = StringIO()
    console = Console(file=out, width=2000, force_terminal=False, color_system=None)
    tokens.show(tokens.token_views(batch, byte_tokenizer), console=console)
    text = out.getvalue().replace(tokens.PARTIAL, "")
    assert "[/b] [red]x[/red]" in text
    assert r"\x1b[31mred\x1b[0m nul\x00 \u202egnp.exe\u202c" in text
    assert not re.search("[\x00-\x09\x0b-\x1f\u202a-\u202e]", text)
    with pytest.raises(ValueError, match="quantities must be among reward, got 'KL'"):
        tokens.show(tokens.token_views(batch, byte_tokenizer), ["KL"], console=console)


def test_the_command_prints_kept_episodes(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(run_dir), "--episodes", "1", "--quantities", "[advantage]"]) == 0
    shown = capsys.readouterr().out
    assert "advantage" in shown
    assert "report.html" in shown
    assert "\x1b[31mred" not in shown


def test_the_command_tells_a_wrong_folder_in_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(tmp_path)]) == 1
    assert "it is no run's" in capsys.readouterr().err
    assert main(["report"]) == 2


def test_a_pipeline_has_one_report_on_all_its_stages(run_dir: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pipeline"
    shutil.copytree(run_dir, folder / "rl")
    sides = {
        "before": {"reward": 0.1, "judge": 0.2, "kl": 0.0, "length": 5.0},
        "after": {"reward": 0.4, "judge": 0.1, "kl": 3.0, "length": None},
        "people": {"reward": 0.3, "judge": 0.25, "length": 7.0},
    }
    gain = {"judge_gain": -0.1, "judge_gain_error": 0.05, "stages": {"rl": {"seconds": 61.0}}}
    recorder.write_json(folder / "results.json", sides | gain)
    recorder.write_json(folder / "pipeline.json", {"task": "tiny", "rl": {"kl_coef": 0.1}})
    row = {"prompt": NASTY, "before": "x", "after": NASTY, "reward_before": 0.1, "judge_after": None}
    (folder / "tables").mkdir()
    (folder / "tables" / "samples.jsonl").write_text(json.dumps(row) + "\n")
    page = check_page(write_report(folder))
    text = " ".join(page.texts)
    for said in (
        "human",
        "2.0 standard errors",
        "Reinforcement learning",
        "rl.kl_coef",
        "1 min 1 s",
        "tiny",
    ):
        assert said in text
    assert [a["href"] for a in page.of("a")] == ["rl/report.html"]
    assert (folder / "plots" / "rl" / "reward.png").is_file()
    rows, _ = headline.figures(read_run(folder))
    assert [(row.before, row.after, row.human) for row in rows[:2]] == [(0.1, 0.4, 0.3), (0.2, 0.1, 0.25)]
    assert [row.tone for row in rows] == ["good", "bad", ""]


def test_keeping_what_the_report_shows_changes_nothing_and_outlives_a_resume(
    tmp_path: Path, reports: Any, byte_tokenizer: Any
) -> None:
    config = tiny(byte_tokenizer, width=16, positions=32)

    def rows(name: str, **settings: Any) -> list[dict[str, Any]]:
        textenv.train(
            "ppo",
            config,
            prompts=["a", "b"],
            eval_prompts=["a", "b"],
            tokenizer=byte_tokenizer,
            reward=nasty_reward,
            env_kwargs={"max_new_tokens": 4},
            run_dir=tmp_path / name,
            loggers=(),
            num_envs=2,
            episodes_per_iteration=4,
            epochs=1,
            minibatches=1,
            eval_every=1,
            eval_episodes=4,
            checkpoint_every=1,
            learning_rate=1e-2,
            **settings,
        )
        found = read_metrics(tmp_path / name)
        return [
            {key: value for key, value in row.items() if not key.startswith(("time", "throughput"))}
            for row in found
        ]

    plain = rows("off", iterations=2, report=False)
    assert rows("on", iterations=1) == plain[:1]
    before = (tmp_path / "on" / "evaluations" / "before.json").read_text()
    assert rows("on", iterations=2, resume=True) == plain
    assert (tmp_path / "on" / "evaluations" / "before.json").read_text() == before
    run = read_run(tmp_path / "on")
    assert run.after is not None
    assert run.after["iteration"] == 2
    assert len(run.views["last"]) == 4
    assert [row["step"] for row in run.rows] == [0, 1, 2]


@pytest.mark.parametrize("attached", [False, True])
def test_an_agent_built_by_hand_reports_only_with_the_callback(
    tmp_path: Path, reports: Any, attached: bool
) -> None:
    from textenv.agents import SFT, RunReport, SFTConfig

    tokenizer = letters("ab")
    rows = [{"prompt": "a", "completion": "b"}] * 2
    config = tiny(tokenizer, positions=8)
    callbacks = [RunReport()] if attached else []
    SFT(
        config,
        dataset=rows,
        tokenizer=tokenizer,
        config=SFTConfig(steps=1),
        run_dir=tmp_path,
        callbacks=callbacks,
    ).learn()
    assert (tmp_path / "report.html").is_file() == attached
    assert (tmp_path / "metrics.jsonl").is_file() and (tmp_path / "checkpoints").is_dir()


# -- episodes of several turns -----


@pytest.fixture(scope="module")
def talk_dir(tmp_path_factory: pytest.TempPathFactory, reports: Any) -> Any:
    """A tiny run with a hostile partner, whose calls fail sometimes."""
    alphabet = "".join(chr(c) for c in range(32, 127) if chr(c) not in "<>") + "\x1b"
    tokenizer = letter_tokenizer(alphabet)

    class Hostile(Guess):
        on_error = "reply"

        def begin(self, rng: Any, top: int = 3) -> str:
            super().begin(rng, top)
            return "[b]\x1b{{ 7 * 7 }}"

        def reply(self, text: str) -> Reply:
            if text in "abcdefgh":
                raise ValueError("\x1b[31m")
            return replace(super().reply(text), role="user [/b]")

    path = tmp_path_factory.mktemp("runs") / "talk"
    register_partner("hostile")(Hostile)
    try:
        result = textenv.train(
            "ppo",
            tiny(tokenizer, width=16, positions=128),
            tokenizer=tokenizer,
            reward=[],
            env_kwargs={"partner": "hostile", "max_turns": 3, "max_turn_tokens": 1, "max_length": 90},
            run_dir=path,
            loggers=(),
            num_envs=4,
            iterations=2,
            episodes_per_iteration=32,
            eval_episodes=32,
        )
    finally:
        del PARTNERS["hostile"]
    return path, result


def test_samples_of_several_turns_show_who_said_what(talk_dir: Any) -> None:
    path, result = talk_dir
    kept = json.loads((path / "evaluations" / "after.json").read_text())
    sample, episodes = kept["samples"][0], result.evaluation.episodes
    turns, replies = (episodes.extras[name][0] for name in ("turns", "replies"))
    said = sample["conversation"]
    roles = ["opening", "policy", "user [/b]", "policy", "user [/b]", "policy", "user [/b]"]
    assert {message["role"] for message in said} <= {*roles, "user"}  # "user" replies the errors
    assert said[0] == {"role": "opening", "text": "[b]\x1b{{ 7 * 7 }}", "reward": None}
    assert [message["text"] for message in said[1::2]] == turns
    assert [message["reward"] for message in said[1::2]] == pytest.approx([r["reward"] for r in replies])
    assert sum(message["reward"] for message in said[1::2]) == pytest.approx(sample["return"])
    assert (sample["turns"], sample["stop_reason"]) == (len(turns), episodes.extras["stop_reason"][0])
    columns, rows = result.evaluation.sample_table()
    assert columns[:6] == ["prompt", "conversation", "return", "turns", "length", "stop_reason"]
    assert re.match(rf"policy \(-?[\d.]+\): {re.escape(turns[0])} / user", rows[0][1])
    assert "partner_errors" in columns and "partner_timeouts" not in columns


def test_the_report_shows_roles_rewards_and_stop_reasons(talk_dir: Any) -> None:
    path, _ = talk_dir
    page = check_page(path / "report.html")
    text = " ".join(page.texts)
    for said in (r"[b]\x1b{{ 7 * 7 }}", "user [/b]", "3 turns · ended by max_turns", "partner errors 1"):
        assert said in text
    labels = [figure.name for figure in headline.figures(read_run(path))[0]]
    assert {"turns per episode", "share of episodes ended by max_turns", "failed calls of the partner"} <= {
        *labels
    }
    assert not {"share that ends with EOS", "time-outs of the partner"} & {*labels}
    assert {"turns", "stop_reasons", "partner_failures"} <= {file.stem for file in (path / "plots").iterdir()}
    assert re.search(r'<span class="role">policy</span> <span class="reward">-0.25</span>', path_text(path))
    assert re.search(r'<b class="speaker">policy -\d\.\d+</b>', path_text(path))


def path_text(path: Path) -> str:
    return (path / "report.html").read_text(encoding="utf-8")


def test_views_of_several_turns_name_the_speakers(talk_dir: Any) -> None:
    _, result = talk_dir
    episodes = result.evaluation.episodes
    (view,) = tokens.token_views(episodes, result.agent.tokenizer, count=1)
    starts = [start for start, role, _ in view.speakers if role == "policy"]
    assert [view.tokens[start] for start in starts] == [
        view.tokens[i] for i, own in enumerate(view.own) if own
    ]
    rewards = [reward for _, role, reward in view.speakers if role == "policy"]
    assert rewards == pytest.approx(episodes.rewards[0][episodes.action_mask[0]].tolist())
    assert view.ended == "truncated (max_turns)"
    out = StringIO()
    tokens.show([view], ["reward"], console=Console(file=out, width=60))
    shown = out.getvalue()
    assert f"\npolicy {rewards[0]:.4g}: " in shown.replace("-0.2500", "-0.25") and "\nuser" in shown
    assert "\x1b" not in shown


def test_generate_prints_conversations(
    talk_dir: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, _ = talk_dir
    command = ["generate", str(path), "--prompt", "a", "--env.partner", "guess-number"]
    command += ["--env.max_turns", "2", "--env.max_turn_tokens", "1"]
    assert main(command) == 0
    turn = r"policy \(-0\.\d\): .{0,6} / user: \S+"
    shown = capsys.readouterr().out
    assert re.search(rf"^aGuess my number: 1 to 100 >>> {turn} / {turn}$", shown, re.M)
    assert main([*command, "--out", str(tmp_path / "out.jsonl")]) == 0
    row = json.loads((tmp_path / "out.jsonl").read_text())
    roles = [said["role"] for said in row["conversation"]]
    assert roles == ["opening", "policy", "user", "policy", "user"]
