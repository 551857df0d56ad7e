"""Our GPT as a model of transformers and back: equal ids, equal logits, equal bytes."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from nanogrpo import hub, weights
from nanogrpo.errors import CheckpointError, OptionError, PackageError
from nanogrpo.model import GPT, GPTConfig
from nanogrpo.rollout import token_logprobs
from nanogrpo.tokenizer import CharTokenizer

ODD = "<pade os>\n\r\t\u0301'.,!?🙂nt"  # spells both special tokens; spaces, a combining mark, four bytes


@pytest.fixture
def transformers():
    reason = "package: transformers is not installed here; `make parity` tests nanogrpo.hub with it"
    return pytest.importorskip("transformers", reason=reason)


def tiny(tokenizer, dtype=torch.float64, block_size=24):
    torch.manual_seed(0)
    return GPT(GPTConfig(tokenizer.vocab_size, block_size, n_layer=2, n_head=2, n_embd=16)).to(dtype)


def test_without_transformers_the_error_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)  # as if it were not installed
    tokenizer = CharTokenizer("ab")
    for use in (hub.to_transformers, lambda *both: hub.save_pretrained("nowhere", *both)):
        with pytest.raises(PackageError, match=r"pip install 'nanogrpo\[hub\]'"):
            use(tiny(tokenizer), tokenizer)
    with pytest.raises(PackageError, match="needs transformers"):
        hub.load_pretrained("nowhere")


@pytest.mark.slow
def test_only_what_asks_for_it_loads_transformers():
    code = "import sys, nanogrpo.hub, nanogrpo.smollm, nanogrpo.commands; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"transformers", "tokenizers", "trl"} & set(done.stdout.split())
    files = Path(hub.__file__).parent.rglob("*.py")
    asking = sorted(file.name for file in files if "nanogrpo.hub" in file.read_text("utf-8"))
    assert asking == ["causal.py", "hub.py", "smollm.py"]


def test_a_model_and_another_s_tokenizer_are_refused():
    with pytest.raises(OptionError, match="has 4 ids"):
        hub.to_transformers(tiny(CharTokenizer("abc")), CharTokenizer("ab"))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize("name", weights.names("policy"))
def test_logits_are_equal(transformers, name, dtype, tolerance):
    model, tokenizer = weights.load(name)
    theirs, _ = hub.to_transformers(model.to(dtype), tokenizer)
    g = torch.Generator().manual_seed(1)
    ids = torch.randint(tokenizer.vocab_size, (4, model.config.block_size), generator=g)
    with torch.no_grad():
        ours = model(ids)
        gap = (theirs(input_ids=ids).logits - ours).abs().max()
    print(f"{name}, {dtype}: off by {gap:.1e}, largest {ours.abs().max():.0f}")
    assert theirs.dtype == dtype and gap <= tolerance * max(1.0, ours.abs().max())


def test_a_prompt_padded_on_the_left_stands_at_the_same_positions(transformers):
    """As TRL calls the model: a mask, and no positions. GPT-2's stock model fails here."""
    tokenizer = CharTokenizer("0123456789+=")
    model = tiny(tokenizer)
    theirs, fast = hub.to_transformers(model, tokenizer)
    prompts = ["1+2=", "12+34=", "7="]
    rows = fast(prompts, padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = theirs(**rows).logits[:, -1]
        for i, prompt in enumerate(prompts):
            ours = model(torch.tensor([tokenizer.encode(prompt)]))[0, -1]
            assert (logits[i] - ours).abs().max() <= 1e-10, prompt


def test_what_their_sampling_draws_has_the_log_probs_that_ours_gives(transformers):
    tokenizer = CharTokenizer("0123456789+=")
    model = tiny(tokenizer)
    theirs, fast = hub.to_transformers(model, tokenizer)
    prompts = ["1+2=", "12+34=", "7="]
    rows = fast(prompts, padding=True, return_tensors="pt")
    torch.manual_seed(0)
    drawn = theirs.generate(
        **rows, do_sample=True, top_k=0, max_new_tokens=8, return_dict_in_generate=True, output_scores=True
    )
    ids = drawn.sequences[:, rows["input_ids"].shape[1] :]  # (B, T)
    ends = (ids == tokenizer.eos_id).long()
    mask = ends.cumsum(1) - ends == 0
    attention = torch.cat([rows["attention_mask"], mask.long()], 1)

    def logprobs_of(logits):
        return logits.log_softmax(-1).gather(2, ids[..., None]).squeeze(2)

    with torch.no_grad():
        ours = token_logprobs(model, *tokenizer.encode_prompts(prompts), ids)
        again = theirs(input_ids=drawn.sequences, attention_mask=attention).logits
    assert (logprobs_of(again[:, -1 - ids.shape[1] : -1]) - ours)[mask].abs().max() <= 1e-10
    scores = logprobs_of(torch.stack(drawn.scores, 1).double())  # which `generate` keeps in float32
    assert (scores - ours)[mask].abs().max() <= 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_folder_comes_back_bit_for_bit(transformers, tmp_path, dtype):
    tokenizer = CharTokenizer(ODD)
    model = tiny(tokenizer, dtype)
    hub.save_pretrained(tmp_path / "a", model, tokenizer)
    again, alphabet = hub.load_pretrained(tmp_path / "a")
    assert again.config == model.config and alphabet.chars == tokenizer.chars
    for name, tensor in model.state_dict().items():
        came = again.state_dict()[name]
        assert torch.equal(tensor, came) and tensor.dtype == came.dtype, name
    hub.save_pretrained(tmp_path / "b", again, alphabet)
    for file in ("model.safetensors", "tokenizer.json", "config.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes(), file


def test_the_tokenizer_in_the_folder_gives_our_ids_and_texts(transformers, tmp_path):
    tokenizer = CharTokenizer(ODD)
    hub.save_pretrained(tmp_path, tiny(tokenizer, block_size=64), tokenizer)
    fast = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert (fast.pad_token_id, fast.eos_token_id, fast.padding_side) == (0, 1, "left")
    assert len(fast) == tokenizer.vocab_size
    for text in ("<pad> , ?  n't <eos>\r\n\n\t🙂e\u0301 .  ", " ", "<eos>", tokenizer.chars):
        ids = tokenizer.encode(text)
        assert fast(text)["input_ids"] == ids
        assert fast.decode([*ids, 1, 0, 0], skip_special_tokens=True) == text == tokenizer.decode(ids)
    with pytest.raises(Exception, match="UNK"):  # never silently another character
        fast("é")


def test_the_weights_survive_what_a_trainer_does_to_the_config(transformers, tmp_path):
    """TRL writes the pad id into the model's config before it saves."""
    tokenizer = CharTokenizer("ab")
    model = tiny(tokenizer)
    theirs, fast = hub.to_transformers(model, tokenizer)
    theirs.config.pad_token_id = fast.pad_token_id
    for part in (theirs, fast):
        part.save_pretrained(tmp_path)
    again, _ = hub.load_pretrained(tmp_path)
    assert all(torch.equal(t, again.state_dict()[n]) for n, t in model.state_dict().items())


@pytest.mark.parametrize(
    ("name", "value"),
    [("activation_function", "relu"), ("do_layer_norm_before", False), ("tie_word_embeddings", True),
     ("ffn_dim", 32), ("word_embed_proj_dim", 8), ("enable_bias", False), ("model_type", "gpt2")],
)  # fmt: skip
def test_a_model_that_computes_something_else_is_refused(name, value):
    tokenizer = CharTokenizer("ab")
    config = SimpleNamespace(
        **hub.FIXED, model_type="opt", vocab_size=4, max_position_embeddings=8, hidden_size=16, ffn_dim=64,
        word_embed_proj_dim=16, num_hidden_layers=1, num_attention_heads=2,
    )  # fmt: skip
    fast = SimpleNamespace(
        get_vocab=lambda: {"<pad>": 0, "<eos>": 1, "a": 2, "b": 3}, pad_token_id=0, eos_token_id=1
    )
    assert hub.tokenizer_from_transformers(fast).chars == tokenizer.chars
    setattr(config, name, value)
    with pytest.raises(CheckpointError, match=f"{value}"):
        hub.from_transformers(SimpleNamespace(config=config), fast)


@pytest.mark.parametrize(
    "vocab", [["<s>", "<eos>", "a"], ["<pad>", "<eos>", "ab"], ["<pad>", "<eos>"], ["<eos>", "<pad>", "a"]]
)
def test_another_tokenizer_is_refused(vocab):
    fast = SimpleNamespace(
        get_vocab=lambda: {text: i for i, text in enumerate(vocab)}, pad_token_id=0, eos_token_id=1
    )
    with pytest.raises(CheckpointError):
        hub.tokenizer_from_transformers(fast)


def test_a_folder_that_is_none_is_refused(transformers, tmp_path):
    with pytest.raises(CheckpointError, match="no such folder"):
        hub.load_pretrained(tmp_path / "none")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="cannot read"):
        hub.load_pretrained(tmp_path)
