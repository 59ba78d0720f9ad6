"""Rated texts, pairs made of them and the reviews task: on tiny data of the same shape, and on the real."""

import hashlib
import json
import subprocess
import tarfile
import zipfile
from collections import Counter
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch

from textenv.tasks import RatedSnippets, fetch, load_snippets, make_task, preference_pairs, snippets
from textenv.tasks.audit import audit
from textenv.tasks.bpe import bpe_tokenizer
from textenv.tasks.preferences import (
    PAIR_SPLITS,
    PreferencePairs,
    count_unequal_pairs,
    prompt_groups,
    split_prompt,
    win_probability,
)
from textenv.tasks.storage import cache_folder

WORDS = ["fine", "dull", "odd", "rare", "bold", "weak", "warm", "cold"]
TEXTS = [
    f"{first} {second} film is {a} and {b} to see."
    for first, second in (("A", "new"), ("a", "New"), ("This", "old"), ("My", "first"), ("His", "last"))
    for a in WORDS
    for b in WORDS[:4]
]


def tiny_files(films=TEXTS):
    """Name -> content of the eight files, five sentences per source, and ``films``."""
    random = np.random.default_rng(0)
    files = {"_README_.txt": "read me"}
    for stem in fetch.STEMS:
        texts = films if stem.startswith("movie") else TEXTS[:5]
        truth, ratings = [], []
        for i, text in enumerate(texts, start=1):
            given = random.integers(-4, 5, size=6).tolist()
            truth.append(f"{i}\t{np.mean(given)}\t{text}\r\n")
            ratings.append(f"{i}\t{np.mean(given)}\t{np.std(given)}\t{given}\r\n")
        files[f"{stem}_GroundTruth.txt"] = "".join(truth)
        files[f"{stem}_anonDataRatings.txt"] = "\ufeff" + "".join(ratings[::-1])
    return files


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TEXTENV_CACHE", str(tmp_path / "cache"))
    snippets._load_fetched.cache_clear()
    yield tmp_path / "cache"
    snippets._load_fetched.cache_clear()


@pytest.fixture
def archive(tmp_path, monkeypatch):
    """An archive of the same shape as the real one, and its hash the expected one."""
    inner = BytesIO()
    with tarfile.open(fileobj=inner, mode="w:gz") as tar:
        for name, content in tiny_files().items():
            entry = tarfile.TarInfo(f"hutto_ICWSM_2014/{name}")
            entry.size = len(content.encode())
            tar.addfile(entry, BytesIO(content.encode()))
    path = tmp_path / "package.zip"
    with zipfile.ZipFile(path, "w") as outer:
        outer.writestr("vaderSentiment-0.5/LICENSE.txt", "MIT")
        outer.writestr("vaderSentiment-0.5/additional_resources/hutto_ICWSM_2014.tar.gz", inner.getvalue())
        outer.writestr("../outside.txt", "never unpacked")
    monkeypatch.setattr(fetch, "SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    return path


@pytest.fixture
def fetched(cache, archive):
    fetch.fetch_snippets(archive=archive)
    return fetch.snippets_folder()


# -- fetching ------------------------------------------------------------------------------------------------


def test_cache_folder_follows_the_variable(cache, monkeypatch):
    assert cache_folder() == cache
    monkeypatch.delenv("TEXTENV_CACHE")
    assert cache_folder().name == "textenv"


def test_fetch_unpacks_what_is_wanted(fetched, archive):
    wanted = {f"{stem}_{kind}.txt" for stem in fetch.STEMS for kind in ("GroundTruth", "anonDataRatings")}
    assert {p.name for p in fetched.iterdir()} == wanted | {"LICENSE.txt", "_README_.txt", "SOURCE.json"}
    assert json.loads((fetched / "SOURCE.json").read_text())["sha256"] == fetch.SHA256
    assert fetch.is_fetched()
    assert [p.name for p in fetched.parent.iterdir()] == [fetched.name]  # nothing half-done is left


def test_fetch_does_nothing_twice(fetched, archive, monkeypatch):
    archive.unlink()
    assert fetch.fetch_snippets(archive=archive) == fetched
    with pytest.raises(FileNotFoundError):
        fetch.fetch_snippets(archive=archive, force=True)
    assert fetch.is_fetched()


def test_fetch_refuses_another_archive(cache, archive):
    archive.write_bytes(archive.read_bytes() + b"x")
    with pytest.raises(ValueError, match=r"the archive of vadersentiment 0.5 must have sha256 .* got "):
        fetch.fetch_snippets(archive=archive)
    assert not fetch.is_fetched() and not fetch.snippets_folder().exists()


def test_fetch_command(cache, archive, capsys):
    assert fetch.main(["--archive", str(archive)]) == 0
    assert fetch.main(["--archive", str(archive)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"texts and ratings are now in {fetch.snippets_folder()}",
        f"texts and ratings are already in {fetch.snippets_folder()}",
    ]
    assert fetch.main(["--archive", str(archive) + "x", "--force"]) == 1
    assert "error: " in capsys.readouterr().err


def test_pip_is_asked_by_hash(cache, archive, monkeypatch):
    """What pip is told, and what its failure looks like; the network stays out of it."""
    asked = []

    def run(command, **kwargs):
        asked.append(command)
        target = command[command.index("--dest") + 1]
        (Path(target) / "package.zip").write_bytes(archive.read_bytes())
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)
    fetch.fetch_snippets()
    assert fetch.is_fetched()
    (command,) = asked
    assert {"--require-hashes", "--no-deps", "--no-binary"} <= set(command)
    requirements = Path(command[command.index("--requirement") + 1]).read_text()
    assert "vadersentiment==0.5 --hash=sha256:5d97c37f3ef6" in requirements

    failed = subprocess.CompletedProcess([], 1, "", "no such package")
    monkeypatch.setattr(subprocess, "run", lambda command, **kwargs: failed)
    with pytest.raises(
        RuntimeError, match=r"(?s)could not download vadersentiment==0.5:\nno such package.*--archive"
    ):
        fetch.fetch_snippets(force=True)


def test_requirement_and_constant_are_one_hash():
    requirement = fetch._REQUIREMENTS.read_text().splitlines()[-1]
    assert requirement == f"{fetch.PACKAGE}=={fetch.VERSION} --hash=sha256:{fetch.SHA256}"


# -- rated texts ---------------------------------------------------------------------------------------------


def test_parser(fetched):
    films = load_snippets()
    assert films.texts == tuple(TEXTS)
    assert {len(given) for given in films.ratings} == {6}
    first = tiny_files()["movieReviewSnippets_GroundTruth.txt"].split("\t")[1]
    assert films.means[0] == pytest.approx(float(first))
    assert len(load_snippets("news", folder=fetched)) == 5


def test_splits(fetched):
    films = load_snippets()
    parts = [films.select(split) for split in snippets.SPLITS]
    assert sum(len(part) for part in parts) == len(films)
    assert not set(parts[2].texts) & set(parts[3].texts)
    assert films.select("reward-model", "judge").texts == tuple(
        text for text in films.texts if snippets.split_of(text) in ("reward-model", "judge")
    )
    many = Counter(snippets.split_of(f"text {i}") for i in range(20_000))
    shares = [many[split] / 20_000 for split in snippets.SPLITS]
    assert shares == pytest.approx([0.55, 0.05, 0.2, 0.2], abs=0.012)
    with pytest.raises(ValueError, match=r"split must be one of 'language-model', .* got 'train'"):
        films.select("train")


def test_missing_data_says_what_to_do(cache):
    for act in (load_snippets, make_task("reviews").build):
        with pytest.raises(FileNotFoundError, match="make data"):
            act()
    with pytest.raises(ValueError, match=r"name must be one of 'movie', .* got 'films'"):
        load_snippets("films")


@pytest.mark.parametrize(
    ("kind", "line", "message"),
    [
        ("GroundTruth", "9\t1.0", r"GroundTruth.txt:2 must have 3 fields separated by tabs, got 2"),
        ("GroundTruth", "nobody\t1.0\ttext", r"GroundTruth.txt:2: .* has no ratings of id 'nobody'"),
        ("anonDataRatings", "1\t1.0\t1.0\t[5]", r"anonDataRatings.txt:2 must end in a list of whole ratings"),
        (
            "anonDataRatings",
            "1\t1.0\t1.0\t[1, ",
            r"anonDataRatings.txt:2 must end in a list of whole ratings",
        ),
        ("anonDataRatings", "1\t1.0\t1.0\t[]", r"anonDataRatings.txt:2 must end in a list of whole ratings"),
    ],
)
def test_malformed_lines(fetched, kind, line, message):
    path = fetched / f"movieReviewSnippets_{kind}.txt"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], line, *lines[2:]]))
    with pytest.raises(ValueError, match=message):
        load_snippets(folder=fetched)


# -- pairs ---------------------------------------------------------------------------------------------------


def rated(*rows):
    return RatedSnippets(
        name="test", texts=tuple(text for text, _ in rows), ratings=tuple(r for _, r in rows)
    )


def test_groups_share_their_first_words_in_any_case():
    snips = rated(
        ("A new film is a good film.", (1,)),
        ("a New one is not a good one.", (0,)),
        ("A new one is short.", (1,)),  # five words are too few
        ("An old film is another film.", (1,)),
        ("A new film is a bad film.", (1,)),
    )
    groups = prompt_groups(snips)
    assert groups == {"a new": [0, 1, 4]}
    assert count_unequal_pairs(snips, groups) == 2
    assert prompt_groups(snips, min_words=3) == {"a new": [0, 1, 2, 4]}


def test_win_probability():
    assert win_probability([1], [0]) == 1
    assert win_probability([1], [1]) == 0.5
    assert win_probability([2, 0], [1, 1]) == 0.5
    assert win_probability([2, 2, 0, 1], [1]) == (2 + 0.5) / 4


def test_pairs_by_hand():
    snips = rated(
        ("A new film is a good film.", (2, 1)),
        ("A new one is not a good one.", (0, 1)),
        ("a new film is neither here nor there.", (1, 2)),
        ("A new film is a good film.", (4, 4)),  # the same text, rated again
    )
    found = [preference_pairs(snips, split=split, per_text=None, with_judge=True) for split in PAIR_SPLITS]
    assert sorted(len(pairs) for pairs in found) == [0, 0, 4]
    pairs = max(found, key=len)
    assert set(pairs.prompts) == {"A new"}
    assert dict(zip(zip(pairs.chosen, pairs.rejected, strict=True), pairs.labels, strict=True)) == {
        (" film is a good film.", " one is not a good one."): 1.0,  # the second rating of that text
        (" film is neither here nor there.", " one is not a good one."): 0.875,
        (" film is a good film.", " film is neither here nor there."): 1.0,
    }
    assert sorted(pairs.labels) == [0.875, 0.875, 1.0, 1.0]


def test_pairs_are_split_by_prompt_capped_and_without_the_judge(fetched):
    films = load_snippets()
    by_split = {split: preference_pairs(films, split=split, per_text=3) for split in PAIR_SPLITS}
    seen = [{prompt.lower() for prompt in pairs.prompts} for pairs in by_split.values()]
    assert sum(len(prompts) for prompts in seen) == len(set.union(*seen)) == 4
    judge = set(films.select("judge").texts)
    means = dict(zip(films.texts, films.means, strict=True))
    lower = {text.lower(): text for text in films.texts if text.lower().startswith("a new")}
    used = Counter()
    for pairs in by_split.values():
        for prompt, chosen, rejected in zip(pairs.prompts, pairs.chosen, pairs.rejected, strict=True):
            used.update([prompt.lower() + chosen, prompt.lower() + rejected])
            if prompt + chosen in means and prompt + rejected in means and not lower:
                assert means[prompt + chosen] > means[prompt + rejected]
    assert max(used.values()) <= 3 * 2  # two texts may differ in the case of the prompt alone
    assert not {text.lower() for text in judge if text.startswith("This")} & set(used)
    again = preference_pairs(films, split="train", per_text=3)
    assert again == by_split["train"]


def test_pairs_as_batch_and_columns(fetched):
    pairs = max((preference_pairs(load_snippets(), split=split) for split in PAIR_SPLITS), key=len)
    some = pairs.select([3, 0])
    assert some.columns() == {
        "prompt": [pairs.prompts[3], pairs.prompts[0]],
        "chosen": [pairs.chosen[3], pairs.chosen[0]],
        "rejected": [pairs.rejected[3], pairs.rejected[0]],
        "label": [pairs.labels[3], pairs.labels[0]],
    }
    tokenizer = bpe_tokenizer(TEXTS, vocab_size=400)
    batch = some.to_batch(tokenizer)
    assert batch.label.tolist() == pytest.approx(some.labels)
    assert batch.chosen.prompt_texts(tokenizer) == some.prompts
    assert batch.rejected.completion_texts(tokenizer) == some.rejected
    assert bool(batch.chosen.terminated.all())


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (
            lambda s: preference_pairs(s, split="dev"),
            "split must be one of 'train', 'validation', 'test', got 'dev'",
        ),
        (lambda s: preference_pairs(s, per_text=0), "per_text must be >= 1, got 0"),
        (lambda s: preference_pairs(s, prompt_words=0), "prompt_words must be >= 1, got 0"),
        (lambda s: preference_pairs(s, min_words=2), "min_words must be >= 3, got 2"),
        (lambda s: split_prompt("one two", 3), "expected a text of at least 3 words, got 'one two'"),
        (
            lambda s: RatedSnippets(name="", texts=("a",), ratings=()),
            "ratings must have 1 entries like texts, got 0",
        ),
        (lambda s: RatedSnippets(name="", texts=("a",), ratings=((),)), "every text needs a rating"),
        (
            lambda s: PreferencePairs(prompts=["a"], chosen=[], rejected=[], labels=[]),
            "must have equal lengths",
        ),
        (
            lambda s: PreferencePairs(prompts=["a"], chosen=["b"], rejected=["c"], labels=[1.5]),
            r"labels must lie in \[0, 1\], got 1.5",
        ),
    ],
)
def test_bad_pairs(act, message):
    with pytest.raises(ValueError, match=message):
        act(rated(("a b c d e f", (1,))))


# -- tokenizer -----------------------------------------------------------------------------------------------


def test_bpe_is_trained_once_and_writes_everything(cache):
    tokenizer = bpe_tokenizer(TEXTS, vocab_size=300)
    (path,) = (cache / "tokenizers").iterdir()
    first = path.read_bytes()
    assert len(tokenizer) == 300
    text = " film “ünïcödé” 🙂\n\ttabs"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert tokenizer.eos_token_id == tokenizer.bos_token_id == tokenizer.pad_token_id
    assert tokenizer("film<|endoftext|>")["input_ids"][-1] == tokenizer.eos_token_id
    path.write_bytes(first)
    assert bpe_tokenizer(TEXTS, vocab_size=300).get_vocab() == tokenizer.get_vocab()
    bpe_tokenizer(TEXTS[:-1], vocab_size=300)
    assert len(list((cache / "tokenizers").iterdir())) == 2
    with pytest.raises(ValueError, match="vocab_size must be >= 257, got 100"):
        bpe_tokenizer(TEXTS, vocab_size=100)


# -- the task ------------------------------------------------------------------------------------------------


def test_reviews_pass_the_audit(fetched):
    report = audit("reviews", episodes=4, num_envs=2, rewards=["length"], max_new_tokens=6)
    assert report.ok and not report.of("warning"), str(report)


def test_reviews_on_the_tiny_data(fetched):
    data = make_task("reviews").build()
    films = load_snippets()
    lm = films.select("language-model")
    assert [p + r for p, r in zip(data.prompts, data.columns["reference"], strict=True)] == list(lm.texts)
    assert data.columns["rating"] == list(lm.means)
    assert all(len(prompt.split()) == 2 for prompt in data.prompts)
    assert len(data.texts) == 3 * len(lm) + 10
    assert set(films.select("judge").texts).isdisjoint(lm.texts)
    episodes = data.demonstrations.validate()
    assert episodes.returns.tolist() == pytest.approx(data.columns["rating"])
    assert episodes.prompt_texts(data.tokenizer) == data.prompts
    assert episodes.completion_texts(data.tokenizer) == data.columns["reference"]
    assert isinstance(data.preferences, PreferencePairs)
    longer = make_task("reviews").build("judge", prompt_words=4)
    assert all(len(prompt.split()) == 4 for prompt in longer.prompts)
    assert len(longer.prompts) == len(films.select("judge"))
    assert data.tokenizer.get_vocab() == longer.tokenizer.get_vocab()


def test_reviews_model_and_environment(fetched):
    import gymnasium as gym
    from transformers import AutoModelForCausalLM

    envs = gym.make_vec("TextRLHF-v0", num_envs=2, task="reviews", max_new_tokens=8)
    config = envs.unwrapped.task_data.model_config()
    assert (config.n_embd, config.n_layer, config.n_head) == (128, 3, 4)
    model = AutoModelForCausalLM.from_config(config)
    observation, _ = envs.reset(seed=0)
    logits = model(observation["input_ids"], attention_mask=observation["attention_mask"].long()).logits
    assert logits.shape[-1] == envs.single_action_space.n == len(envs.unwrapped.tokenizer)
    assert envs.term.name == "lexicon-sentiment"
    tokens = envs.unwrapped.tokenizer(" love")["input_ids"]
    rewards = [
        envs.step(torch.tensor([token] * 2))[1] for token in [*tokens, envs.unwrapped.tokenizer.eos_token_id]
    ]
    assert bool((rewards[-1] > 0.3).all())


def test_reviews_of_ones_own(tmp_path, cache):
    path = tmp_path / "mine.jsonl"
    path.write_text("\n".join(json.dumps({"text": text, "stars": i % 5}) for i, text in enumerate(TEXTS)))
    task = make_task("reviews")
    data = task.build(data=path, rating_column="stars")
    assert set(data.columns) == {"reference", "rating"} and data.preferences is None
    assert data.demonstrations.returns.max() == 4
    assert task.build(data=path).demonstrations is None
    path.write_text('{"text": "a b c d"}\n{"text": ""}\n')
    with pytest.raises(ValueError, match=r"mine.jsonl:2: text is empty"):
        task.build(data=path)
    path.write_text('{"text": "a b c d", "stars": "many"}\n')
    with pytest.raises(TypeError, match=r"mine.jsonl:1: reward must be a number, got str 'many'"):
        task.build(data=path, rating_column="stars")
    with pytest.raises(ValueError, match="split 'judge' of reviews has no text of more than 9 words"):
        task.build("judge", data={"text": TEXTS}, prompt_words=9)
    with pytest.raises(ValueError, match=r"split must be one of 'train', 'validation', .* got 'test'"):
        task.build("test", data=path)


# -- the real data -------------------------------------------------------------------------------------------

needs_data = pytest.mark.skipif(not fetch.is_fetched(), reason="the rated texts are not fetched (make data)")


@needs_data
def test_real_sources():
    sizes = {name: len(load_snippets(name)) for name in snippets.SOURCES}
    assert sizes == {"movie": 10_605, "product": 3_708, "tweets": 4_200, "news": 5_190}
    counts = [len(given) for name in snippets.SOURCES for given in load_snippets(name).ratings]
    assert (min(counts), max(counts)) == (15, 99)
    assert Counter(load_snippets().splits) == {
        "language-model": 5_799,
        "validation": 508,
        "reward-model": 2_124,
        "judge": 2_174,
    }


@needs_data
def test_real_pairs():
    films = load_snippets()
    groups = prompt_groups(films)
    assert len(groups) == 1_004
    assert sum(len(rows) for rows in groups.values()) == 4_546
    assert count_unequal_pairs(films, groups) == 51_054
    sizes = [len(preference_pairs(films, split=split)) for split in PAIR_SPLITS]
    assert sizes == [5_871, 1_036, 938]


@needs_data
def test_real_task():
    data = make_task("reviews").build()
    assert len(data.tokenizer) == 2_048
    assert len(data.prompts) == 5_761
    assert data.prompts[0] == "If you"
    lengths = data.demonstrations.response_lengths
    assert 0.6 < (lengths <= data.max_new_tokens).float().mean() < 0.8
