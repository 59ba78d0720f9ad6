"""Every way in which peft is used: live = saved = loaded = resumed, or a refusal that names the option."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, MixtralConfig, PretrainedConfig

import textenv
from textenv.agents.policies.adapter_files import tokenizer_source
from textenv.agents.policies.files import restore_policy
from textenv.agents.policies.language_policy import LanguagePolicy
from textenv.agents.policies.saved_model import SavedModelDiffers, probe_ids
from textenv.episodes.batch import EpisodeBatch
from textenv.tasks.letters import letter_tokenizer

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

SMALL = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 32,
}
LLAMA = LlamaConfig(**SMALL)
TIED = LlamaConfig(**SMALL, tie_word_embeddings=True)
GPT2 = GPT2Config(vocab_size=32, n_embd=16, n_layer=2, n_head=2, n_positions=32)
MIXTRAL = MixtralConfig(
    **SMALL | {"num_hidden_layers": 1}, num_key_value_heads=2, num_local_experts=2, tie_word_embeddings=False
)
EPISODES = EpisodeBatch.from_ids([[1, 2, 3], [3, 5, 6]], [[4, 5, 6, 7], [8, 9, 31, 0]])
NAMES = ["q_proj", "v_proj"]


def on(*names: str, **options: Any) -> dict[str, Any]:
    """Arguments of ``LoraConfig``."""
    return {"r": 4, "target_modules": list(names or NAMES), **options}


def method(name: str, **options: Any) -> Callable[[], Any]:
    """Another method of peft."""
    return lambda: getattr(peft, name)(task_type="CAUSAL_LM", **options)


# name: (config, lora, mode of the reference)
OPTIONS: dict[str, tuple[PretrainedConfig, Any, str]] = {
    "defaults": (LLAMA, True, "adapters-off"),
    "gpt2": (GPT2, on("c_attn", fan_in_fan_out=True), "adapters-off"),
    "all-linear": (LLAMA, {"r": 2, "target_modules": "all-linear"}, "adapters-off"),
    "gaussian": (LLAMA, on(init_lora_weights="gaussian"), "adapters-off"),
    "init False": (LLAMA, on(init_lora_weights=False), "copy"),
    "orthogonal": (LLAMA, on(init_lora_weights="orthogonal"), "copy"),
    "pissa": (LLAMA, on(init_lora_weights="pissa"), "copy"),
    "pissa gpt2": (GPT2, on("c_attn", init_lora_weights="pissa"), "copy"),
    "pissa_niter_4": (LLAMA, on(init_lora_weights="pissa_niter_4"), "copy"),
    "olora": (LLAMA, on(init_lora_weights="olora"), "copy"),
    "dora": (LLAMA, on(use_dora=True), "copy"),
    "dora gpt2": (GPT2, on("c_attn", use_dora=True), "copy"),
    "dora tied embedding": (TIED, on("q_proj", "embed_tokens", use_dora=True), "copy"),
    "rslora": (LLAMA, on(use_rslora=True), "adapters-off"),
    "patterns": (LLAMA, on(rank_pattern={"q_proj": 2}, alpha_pattern={"v_proj": 3}), "adapters-off"),
    "bias all": (GPT2, on("c_attn", bias="all"), "copy"),
    "bias lora_only": (GPT2, on("c_attn", bias="lora_only"), "copy"),
    "lora_bias": (GPT2, on("c_attn", lora_bias=True), "adapters-off"),
    "layers_to_transform": (LLAMA, on(layers_to_transform=[1]), "adapters-off"),
    "exclude_modules": (
        LLAMA,
        {"target_modules": "all-linear", "exclude_modules": ["q_proj"]},
        "adapters-off",
    ),
    "target_parameters": (
        MIXTRAL,
        {"r": 2, "target_modules": [], "target_parameters": ["experts.gate_up_proj", "experts.down_proj"]},
        "adapters-off",
    ),
    "lora_dropout": (LLAMA, on(lora_dropout=0.5), "adapters-off"),
    "gpt2 wte": (GPT2, on("c_attn", "wte"), "adapters-off"),
    "gpt2 lm_head": (GPT2, on("c_attn", "lm_head"), "adapters-off"),
    "gpt2 modules_to_save wte": (GPT2, on("c_attn", modules_to_save=["wte"]), "copy"),
    "gpt2 tokens": (GPT2, on("c_attn", trainable_token_indices={"wte": [3]}), "copy"),
    "ia3": (LLAMA, method("IA3Config", target_modules=NAMES, feedforward_modules=[]), "copy"),
    "loha": (LLAMA, method("LoHaConfig", target_modules=NAMES, module_dropout=0.5, rank_dropout=0.5), "copy"),
    "lokr": (LLAMA, method("LoKrConfig", target_modules=NAMES), "copy"),
    "oft": (LLAMA, method("OFTConfig", target_modules=NAMES, oft_block_size=4, module_dropout=0.5), "copy"),
    "boft": (LLAMA, method("BOFTConfig", target_modules=NAMES, boft_block_size=4, boft_dropout=0.5), "copy"),
    "hra": (LLAMA, method("HRAConfig", target_modules=NAMES), "copy"),
    "vera": (LLAMA, method("VeraConfig", r=4, target_modules=NAMES, save_projection=False), "copy"),
    "fourierft": (LLAMA, method("FourierFTConfig", n_frequency=9, target_modules=NAMES), "copy"),
    "ln_tuning": (LLAMA, method("LNTuningConfig"), "copy"),
    "trainable_tokens": (
        TIED,
        method("TrainableTokensConfig", token_indices=[3, 5], target_modules=["embed_tokens"]),
        "copy",
    ),
    "miss": (LLAMA, method("MissConfig", r=4, target_modules=NAMES), "copy"),
    "shira": (LLAMA, method("ShiraConfig", r=2, target_modules=NAMES), "copy"),
    "c3a": (LLAMA, method("C3AConfig", block_size=4, target_modules=NAMES), "copy"),
    "randlora": (LLAMA, method("RandLoraConfig", r=4, target_modules=NAMES), "copy"),
    "waveft": (LLAMA, method("WaveFTConfig", n_frequency=9, target_modules=NAMES), "copy"),
    "delora": (LLAMA, method("DeloraConfig", r=4, target_modules=NAMES), "copy"),
    "road": (LLAMA, method("RoadConfig", group_size=8, target_modules=NAMES), "copy"),
}
for _kind, _config in (("tied", TIED), ("untied", LLAMA)):
    OPTIONS |= {
        f"{_kind} embed_tokens": (_config, on("q_proj", "embed_tokens"), "adapters-off"),
        f"{_kind} lm_head": (_config, on("q_proj", "lm_head"), "adapters-off"),
        f"{_kind} both": (_config, on("lm_head", "embed_tokens"), "adapters-off"),
        f"{_kind} modules_to_save lm_head": (_config, on(modules_to_save=["lm_head"]), "copy"),
        f"{_kind} modules_to_save embed_tokens": (_config, on(modules_to_save=["embed_tokens"]), "copy"),
        f"{_kind} modules_to_save both": (_config, on(modules_to_save=["lm_head", "embed_tokens"]), "copy"),
        f"{_kind} tokens": (_config, on(trainable_token_indices=[3, 5]), "copy"),
        f"{_kind} tokens of lm_head": (_config, on(trainable_token_indices={"lm_head": [3, 5]}), "copy"),
        f"{_kind} tokens of both": (
            _config,
            on(trainable_token_indices={"embed_tokens": [3, 5], "lm_head": [4]}),
            "copy",
        ),
    }
OPTIONS |= {
    "ensure_weight_tying embed_tokens": (
        TIED,
        on("q_proj", "embed_tokens", ensure_weight_tying=True),
        "adapters-off",
    ),
    "ensure_weight_tying modules_to_save": (
        TIED,
        on(modules_to_save=["embed_tokens"], ensure_weight_tying=True),
        "copy",
    ),
    "ensure_weight_tying tokens": (
        TIED,
        on(trainable_token_indices=[3, 5], ensure_weight_tying=True),
        "copy",
    ),
}

REFUSED: dict[str, tuple[Any, str]] = {
    "eva": (on(init_lora_weights="eva"), "init_lora_weights 'eva' needs data"),
    "corda": (on(init_lora_weights="corda"), "init_lora_weights 'corda' needs data"),
    "mica": (on(init_lora_weights="mica"), "init_lora_weights must be one of true, .*got 'mica'"),
    "alora": (on(alora_invocation_tokens=[3]), "alora_invocation_tokens must be left out"),
    "replicated": (on(layer_replication=[[0, 1], [0, 2]]), "layer_replication must be left out"),
    "lora_bias": (on(lora_bias=True), "lora_bias must be off where the layer has no bias"),
    "prompt": (
        method("PromptTuningConfig", num_virtual_tokens=3),
        "prompt-learning config PromptTuningConfig",
    ),
    "prefix": (
        method("PrefixTuningConfig", num_virtual_tokens=3),
        "prompt-learning config PrefixTuningConfig",
    ),
    "adalora": (
        method("AdaLoraConfig", total_step=9, target_modules=NAMES),
        "method must be one of .*ADALORA",
    ),
}


def made(lora: Any) -> Any:
    return lora() if callable(lora) else lora


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        found: Tensor = model.eval()(input_ids=EPISODES.input_ids).logits
    return found


def train(policy: LanguagePolicy, steps: int = 2) -> None:
    trained = [p for p in policy.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.5)
    policy.train()
    for _ in range(steps):
        optimizer.zero_grad()
        (-policy(EPISODES).log_probs.sum()).backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()


@pytest.mark.parametrize("name", OPTIONS)
def test_an_adapter_survives_saving_loading_and_resuming(name: str, tmp_path: Path) -> None:
    config, lora, mode = OPTIONS[name]
    policy = LanguagePolicy(config, lora=made(lora))
    before = policy.log_prob(EPISODES).clone()
    reference = policy.reference()
    assert reference.mode == mode
    assert torch.equal(reference.log_prob(EPISODES), before), "KL at step 0"
    policy.train()
    assert torch.equal(policy(EPISODES).log_probs.detach(), before), "train mode differs"
    train(policy)
    assert float((policy.log_prob(EPISODES) - before).abs().max()) > 1e-4, "nothing was trained"
    assert torch.equal(reference.log_prob(EPISODES), before), "the reference moved"
    live = logits(policy.model)
    policy.save(tmp_path, reference=True)

    plain = AutoModelForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(logits(plain), live, rtol=0, atol=1e-5)
    loaded = LanguagePolicy.load(tmp_path)
    resumed = LanguagePolicy(config, lora=made(lora))
    resumed.reference()
    restore_policy(resumed, tmp_path)
    train(policy, 1)
    for other in (loaded, resumed):
        assert torch.equal(logits(other.model), live)
        assert torch.equal(other.reference().log_prob(EPISODES), before)
        train(other, 1)
        assert torch.equal(other.log_prob(EPISODES), policy.log_prob(EPISODES)), "training on differs"


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_survive_is_refused(name: str) -> None:
    lora, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        LanguagePolicy(LLAMA, lora=made(lora))


def two_adapters(active: Any) -> Any:
    """A model with the adapters "one" and "two", both away from the identity."""
    model: Any = peft.get_peft_model(
        AutoModelForCausalLM.from_config(LLAMA), peft.LoraConfig(**on(), task_type="CAUSAL_LM"), "one"
    )
    model.add_adapter(
        "two", peft.LoraConfig(**on("k_proj", init_lora_weights="pissa"), task_type="CAUSAL_LM")
    )
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.3, generator=generator)
    model.base_model.set_adapter(active)
    return model


@pytest.mark.parametrize("active", ["one", "two", ["one", "two"]])
def test_several_adapters_act_and_are_kept_as_they_are_active(active: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = two_adapters(active)
    policy = LanguagePolicy(model)
    torch.manual_seed(0)
    same = two_adapters(active)
    before = policy.log_prob(EPISODES).clone()
    assert torch.equal(policy.reference().log_prob(EPISODES), before)
    train(policy)
    policy.save(tmp_path)
    live = logits(policy.model)
    torch.testing.assert_close(
        logits(AutoModelForCausalLM.from_pretrained(tmp_path)), live, rtol=0, atol=1e-5
    )
    loaded, resumed = LanguagePolicy.load(tmp_path), LanguagePolicy(same)
    restore_policy(resumed, tmp_path)
    assert loaded.peft is not None and list(loaded.peft.peft_config) == ["one", "two"]
    assert loaded.peft.peft_config["two"].init_lora_weights == "pissa"
    for other in (loaded, resumed):
        assert torch.equal(logits(other.model), live)
    trained = [{n for n, p in each.named_parameters() if p.requires_grad} for each in (policy, loaded)]
    assert trained[0] == trained[1]
    # The other adapter is kept, too.
    policy.peft.base_model.set_adapter("one" if active == "two" else "two")  # type: ignore
    loaded.peft.base_model.set_adapter("one" if active == "two" else "two")  # type: ignore
    assert torch.equal(logits(policy.model), logits(loaded.model))
    torch.manual_seed(0)
    other_model = two_adapters("one" if active == "two" else "two")
    with pytest.raises(ValueError, match="active adapters differ"):
        restore_policy(LanguagePolicy(other_model), tmp_path)


def test_adapters_that_cannot_be_trained_or_saved_are_refused() -> None:
    base = AutoModelForCausalLM.from_config(LLAMA)
    config = peft.LoraConfig(**on(), task_type="CAUSAL_LM")
    model = peft.get_peft_model(base, config)
    with pytest.raises(ValueError, match="lora must be False for a model that has adapters already"):
        LanguagePolicy(model, lora=True)
    with pytest.raises(ValueError, match=r"has adapter layers .* but is no PeftModel"):
        LanguagePolicy(model.get_base_model())
    model.merge_adapter()
    with pytest.raises(ValueError, match="must not be merged"):
        LanguagePolicy(model)
    model.unmerge_adapter()
    model.disable_adapter_layers()
    with pytest.raises(ValueError, match="switched off"):
        LanguagePolicy(model)
    quantized = AutoModelForCausalLM.from_config(LLAMA)
    quantized.hf_quantizer = object()
    with pytest.raises(ValueError, match="must have plain weights"):
        LanguagePolicy(quantized, lora=True)


def test_adapters_off_is_no_reference_where_the_start_changed_the_base() -> None:
    policy = LanguagePolicy(LLAMA, lora=on(init_lora_weights="pissa"))
    with pytest.raises(ValueError, match="start left the base weights alone"):
        policy.reference("adapters-off")


# -- an adapter's folder as the model ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return letter_tokenizer("abcdef")


@pytest.fixture
def adapter(tmp_path: Path, tokenizer: Any) -> Path:
    """An adapter's folder, as peft writes it, that names its base model's folder."""
    base = AutoModelForCausalLM.from_config(LLAMA)
    base.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    model = peft.get_peft_model(
        AutoModelForCausalLM.from_pretrained(tmp_path / "base"),
        peft.LoraConfig(**on(init_lora_weights=False), task_type="CAUSAL_LM"),
    )
    model.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def reward(completions: list[str], **columns: Any) -> list[float]:
    return [float(text.count("a")) for text in completions]


def learn(agent: str, model: Any, **options: Any) -> Any:
    return textenv.train(
        agent,
        model,
        prompts=["a", "bc"],
        reward=reward,
        env_kwargs={"max_new_tokens": 4},
        iterations=1,
        loggers=(),
        report=False,
        episodes_per_iteration=4,
        **options,
    )


def test_an_adapters_folder_is_trained_on(adapter: Path) -> None:
    expected = peft.PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(adapter.parent / "base"), adapter
    )
    policy = LanguagePolicy(adapter)
    assert torch.equal(logits(policy.model), logits(expected))
    trained = [name for name, p in policy.named_parameters() if p.requires_grad]
    assert trained and all("lora_" in name for name in trained)
    assert tokenizer_source(str(adapter)) == str(adapter.parent / "base")
    result = learn("reinforce", str(adapter), learning_rate=0.1)
    assert not torch.equal(logits(result.agent.policy.model), logits(expected))


def test_an_adapters_folder_whose_base_is_not_known_is_refused(adapter: Path) -> None:
    path = adapter / "adapter_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"base_model_name_or_path": "base"}))
    assert LanguagePolicy(adapter).peft is not None, "a folder beside the adapter's"
    path.write_text(json.dumps(config | {"base_model_name_or_path": "/no/such/base"}))
    with pytest.raises(ValueError, match=r"folder '/no/such/base', which is not there; load the base model"):
        LanguagePolicy(adapter)
    path.write_text(json.dumps(config | {"base_model_name_or_path": None}))
    with pytest.raises(ValueError, match="does not name its base model"):
        LanguagePolicy(adapter)
    path.write_text(json.dumps(config | {"init_lora_weights": "pissa_niter_4"}))
    with pytest.raises(ValueError, match="can't be repeated"):
        LanguagePolicy(adapter)
    path.write_text(json.dumps(config))
    (adapter / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"holds a whole model .* and an adapter"):
        LanguagePolicy(adapter)


@pytest.mark.parametrize("agent", ["ppo", "a2c", "grpo"])
def test_a_run_in_which_only_a_critic_would_train_is_refused(
    agent: str, adapter: Path, tokenizer: Any
) -> None:
    base = AutoModelForCausalLM.from_pretrained(adapter.parent / "base")
    frozen = peft.PeftModel.from_pretrained(base, adapter)
    with pytest.raises(ValueError, match=r"all \d+ parameters of the policy are frozen.*is_trainable=True"):
        learn(agent, frozen, tokenizer=tokenizer)
    plain = AutoModelForCausalLM.from_config(LLAMA).requires_grad_(False)
    with pytest.raises(ValueError, match=r"all \d+ parameters of the policy are frozen"):
        learn(agent, plain, tokenizer=tokenizer)


# -- the older form ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["all-linear", "pissa", "tied modules_to_save lm_head", "tied lm_head"])
def test_adapters_saved_in_the_older_form_load_and_resume(name: str, tmp_path: Path) -> None:
    config, lora, _ = OPTIONS[name]
    policy = LanguagePolicy(config, lora=made(lora))
    train(policy)
    policy.save(tmp_path)
    layers = load_file(tmp_path / "adapted_layers.safetensors")
    base = {key.replace("base_layer.", ""): t for key, t in layers.items() if "base_layer." in key}
    save_file(base, tmp_path / "base_layers.safetensors")
    (tmp_path / "adapted_layers.safetensors").unlink()
    saved = json.loads((tmp_path / "policy.json").read_text())
    del saved["adapter_state"]
    (tmp_path / "policy.json").write_text(json.dumps({**saved, "format": 1}))
    resumed = LanguagePolicy(config, lora=made(lora))
    restore_policy(resumed, tmp_path)
    for other in (LanguagePolicy.load(tmp_path), resumed):
        assert torch.equal(logits(other.model), logits(policy.model))


# -- the check at every save ---------------------------------------------------------------------------------


class Doubled(nn.Linear):
    """An LM head that plain transformers does not know."""

    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


class WiderHead(nn.Module):
    """An LM head with a parameter more."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(32, 16))
        self.bias = nn.Parameter(torch.randn(32))

    def forward(self, input: Tensor) -> Tensor:
        return nn.functional.linear(input, self.weight, self.bias)


def untied() -> nn.Module:
    """A model whose config says that it is tied, while it is not."""
    model = AutoModelForCausalLM.from_config(TIED)
    model.lm_head.weight = nn.Parameter(torch.randn(32, 16))
    model.model.embed_tokens.weight = nn.Parameter(torch.randn(32, 16))
    return model


def doubled() -> nn.Module:
    model = AutoModelForCausalLM.from_config(LLAMA)
    model.lm_head = Doubled(16, 32, bias=False)
    return model


def wider() -> nn.Module:
    model = AutoModelForCausalLM.from_config(LLAMA)
    model.lm_head = WiderHead()
    return model


@pytest.mark.parametrize(
    ("model", "message"),
    [(doubled, "logits of the saved model differ"), (wider, "can't load the LlamaForCausalLM again")],
)
def test_a_model_that_loads_as_another_is_not_saved(model: Any, message: str, tmp_path: Path) -> None:
    good = LanguagePolicy(LLAMA)
    good.save(tmp_path / "policy")
    before = {path.name: path.read_bytes() for path in (tmp_path / "policy").iterdir()}
    policy = LanguagePolicy(model())
    for folder in ("policy", "new"):
        with pytest.raises(SavedModelDiffers, match=message):
            policy.save(tmp_path / folder)
    assert {path.name: path.read_bytes() for path in (tmp_path / "policy").iterdir()} == before
    assert not (tmp_path / "new").exists()


def test_weights_that_the_config_wrongly_calls_tied_load_as_they_were(tmp_path: Path) -> None:
    policy = LanguagePolicy(untied())
    policy.save(tmp_path)
    assert torch.equal(logits(LanguagePolicy.load(tmp_path).model), logits(policy.model))


def test_a_wrong_merge_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = LanguagePolicy(LLAMA, lora=on())
    train(policy)
    base = AutoModelForCausalLM.from_config(LLAMA)
    monkeypatch.setattr("textenv.agents.policies.saved_model.merged_copy", lambda model: base)
    with pytest.raises(SavedModelDiffers, match="logits of the merged model differ"):
        policy.save(tmp_path / "policy")


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_number_formats_pass_the_check(dtype: torch.dtype, tmp_path: Path) -> None:
    policy = LanguagePolicy(TIED, dtype=dtype, lora=on("q_proj", "lm_head"))
    train(policy)
    policy.save(tmp_path)
    assert torch.equal(logits(LanguagePolicy.load(tmp_path).model), logits(policy.model))


def test_saving_changes_nothing(tmp_path: Path) -> None:
    policy = LanguagePolicy(
        TIED, lora=on("q_proj", "embed_tokens", lora_dropout=0.5), value_head=True
    ).train()
    policy(EPISODES).log_probs.sum().backward()
    weights = {name: (p.detach().clone(), p._version) for name, p in policy.named_parameters()}
    gradients = {name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None}
    modes = [module.training for module in policy.modules()]
    config, state = policy._hf.config.to_dict(), torch.get_rng_state()
    policy.save(tmp_path, reference=True)
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in policy.modules()] == modes
    assert policy._hf.config.tie_word_embeddings and policy._hf.config.to_dict() == config
    for name, parameter in policy.named_parameters():
        assert torch.equal(parameter, weights[name][0]) and parameter._version == weights[name][1]
    for name, gradient in gradients.items():
        assert torch.equal(dict(policy.named_parameters())[name].grad, gradient)  # type: ignore


def test_a_later_save_leaves_no_file_of_an_earlier_one(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    LanguagePolicy(LLAMA, lora=on(), value_head=True).save(tmp_path)
    LanguagePolicy(LLAMA).save(tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert not names & {"adapter", "adapted_layers.safetensors", "heads.safetensors"}
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert not [name for name in names if name.startswith(".")]


def test_the_probe_has_rows_that_train_on_their_own() -> None:
    ids = probe_ids(LanguagePolicy(TIED, lora=on(trainable_token_indices=[7, 11])).model)
    assert ids.shape == (1, 8) and {7, 11} <= set(ids[0].tolist())
