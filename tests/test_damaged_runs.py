"""What is wrong in a folder though each of its files can be read: an error with a reason, or it is said."""

import json
import shutil

import pytest
import torch
from safetensors.torch import save_file

from nanogrpo import weights
from nanogrpo.__main__ import main
from nanogrpo.checkpoint import from_json, load_tensors, save_tensors
from nanogrpo.commands import RM
from nanogrpo.errors import CheckpointError, LogError, RunError
from nanogrpo.grpo import GRPOConfig
from nanogrpo.metrics import CSVLog, read_csv
from nanogrpo.optim import AdamW
from nanogrpo.options import add_options
from nanogrpo.runs import Folder
from nanogrpo.state import TrainState

RUN = ["grpo", "--model", "addition", "--prompts-per-step", "2", "--group-size", "2", "--max-new-tokens", "3"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A finished run of one step."""
    monkeypatch.setattr("nanogrpo.job.summary", lambda *a: "done")
    main([*RUN, "--max-steps", "1", "--out", str(tmp_path / "run")])
    return tmp_path / "run"


def resumed(folder, capsys):
    """What a run says that is to go on for another step, on standard error."""
    capsys.readouterr()
    main(["grpo", "--resume", "--out", str(folder), "--max-steps", "2"])
    return capsys.readouterr().err


def rewritten(folder, change):
    """The checkpoint with other contents, as another program would write it: without our checksum."""
    path = folder / "checkpoint.safetensors"
    tensors, header = load_tensors(path)
    change(tensors, header)
    save_file(tensors, path, metadata=header)


@pytest.mark.parametrize("settings", ["[]", "{", "3", '{"seed": NaN}', '{"a": 1, "a": 2}', "[" * 100000])
def test_settings_in_a_header_that_are_none_are_an_error_of_this_package(folder, capsys, settings):
    rewritten(folder, lambda tensors, header: header.update(settings=settings))
    with pytest.raises(SystemExit, match="settings in its header"):
        resumed(folder, capsys)


@pytest.mark.parametrize("value", [torch.tensor(-3), torch.tensor(1.0), torch.tensor([1])])
@pytest.mark.parametrize("name", ["step", "num_tokens", "optimizer.steps"])
def test_no_run_goes_on_from_a_count_that_none_reaches(folder, capsys, name, value):
    rewritten(folder, lambda tensors, header: tensors.update({f"state.{name}": value}))
    with pytest.raises(SystemExit, match=r"which no run reaches|another shape|by then has"):
        resumed(folder, capsys)


def edited(folder, change):
    """The checkpoint with other tensors and a checksum that fits them: made by hand, not by an accident."""
    path = folder / "checkpoint.safetensors"
    tensors, header = load_tensors(path)
    change(tensors)
    save_tensors(path, tensors, header)


def of(name, change):
    """A change of the tensors of some name, by what is made of each; nothing, and it goes."""

    def to(tensors):
        names = [key for key in tensors if key.startswith(name)]
        assert names
        for key in names:
            made = change and change(tensors[key])
            if made is None:
                del tensors[key]
            else:
                tensors[key] = made

    return to


def more(name):
    return lambda tensors: tensors.update({name: torch.tensor(1.0)})


MOMENT, COUNT, PRICE = "state.optimizer.mean.0", "state.optimizer.steps", "state.entropy_coef"
EDITED = {
    "a moment that is yes or no": (of(MOMENT, lambda t: t > 0), rf"{MOMENT} has .* torch.bool"),
    "a moment of whole numbers": (of(MOMENT, lambda t: t.long()), MOMENT),
    "a moment in half precision": (of("state.optimizer.square", lambda t: t.half()), "torch.float16"),
    "a moment of another shape": (of(MOMENT, lambda t: t[:1].clone()), MOMENT),
    "a moment transposed": (of(MOMENT, lambda t: t.T.contiguous()), MOMENT),
    "no moment": (of(MOMENT, None), f"lacks .*{MOMENT}"),
    "a moment more": (more("state.optimizer.mean.999"), "holds .*mean.999"),
    "no update": (of(COUNT, lambda t: t * 0), f"{COUNT}=0, .* by then has 2"),
    "too many updates": (of(COUNT, lambda t: t + 99), f"{COUNT}=101"),
    "half an update": (of(COUNT, lambda t: t + 0.5), COUNT),
    "a step less": (of("state.step", lambda t: t - 1), "state.optimizer.steps=2"),
    "the largest step": (of("state.step", lambda t: t * 0 + 2**63 - 1), "state"),
    "more tokens than the log knows": (of("state.num_tokens", lambda t: t + 1), "num_tokens="),
    "the largest number of tokens": (of("state.num_tokens", lambda t: t * 0 + 2**63 - 1), "num_tokens="),
    "few bits of tokens": (of("state.num_tokens", lambda t: t.to(torch.uint8)), "torch.uint8"),
    "no random numbers": (of("state.generator", None), r"lacks \['state.generator'\]"),
    "few random numbers": (of("state.generator", lambda t: t[:10].clone()), "state.generator"),
    "broken random numbers": (of("state.generator", lambda t: torch.full_like(t, 255)), "state"),
    "a part of the state more": (more("state.hello"), "holds .*state.hello"),
    "a model more": (more("extra.weight"), "holds .*extra.weight"),
    "a weight more": (more("policy.extra"), "holds .*policy.extra"),
    "a weight less": (of("policy.norm.bias", None), "lacks .*policy.norm.bias"),
    "a policy in half precision": (of("policy.", lambda t: t.half()), "torch.float16"),
    "a weight of whole numbers": (of("policy.norm.bias", lambda t: t.long()), "policy.norm.bias"),
}
EDITED_WITH_A_PAST = {
    "no price": (of(PRICE, None), f"lacks .*{PRICE}"),
    "a price out of reach": (of(PRICE, lambda t: t * 0 + 1e300), rf"{PRICE}=1e\+300, .* from 0.0 to 1.0"),
    "a price below all": (of(PRICE, lambda t: t * 0 - 5), f"{PRICE}=-5.0"),
    "a whole price": (of(PRICE, lambda t: t.long()), PRICE),
    "two prices": (of(PRICE, lambda t: t.repeat(2)), PRICE),
    "no past": (of("state.past.", None), "lacks .*state.past.0"),
    "no oldest weights": (of("state.past.0.", None), "lacks .*state.past.0"),
    "an old weight less": (of("state.past.0.token.weight", None), "lacks .*past.0.token.weight"),
    "old weights of another shape": (of("state.past.0.", lambda t: t[:1].clone()), "another shape"),
    "old weights of whole numbers": (of("state.past.1.", lambda t: t.long()), "torch.int64"),
    "an older past": (more("state.past.2.token.weight"), "holds .*past.2"),
    "old weights without a name": (more("state.past.0."), "holds .*state.past.0."),
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Finished runs of two steps: a plain one, and one with a price of entropy and a stale sampler."""
    place = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nanogrpo.job.summary", lambda *a: "done")
        old = ["--sampler-lag", "2", "--use-adaptive-entropy"]
        for name, own in (("plain", []), ("stale", old)):
            main([*RUN, *own, "--max-steps", "2", "--out", str(place / name)])
        yield place


@pytest.mark.parametrize(
    ("which", "what"), [("plain", what) for what in EDITED] + [("stale", what) for what in EDITED_WITH_A_PAST]
)
def test_what_no_run_writes_is_no_checkpoint_to_go_on_from(finished, tmp_path, which, what):
    """Whatever is in it, the checksum fits: so what is in it must be what this run has after its steps."""
    change, said = {**EDITED, **EDITED_WITH_A_PAST}[what]
    shutil.copytree(finished / which, tmp_path / "run")
    edited(tmp_path / "run", change)
    with pytest.raises(SystemExit, match=said) as error:
        main(["grpo", "--resume", "--out", str(tmp_path / "run"), "--max-steps", "3"])
    assert "checkpoint.safetensors" in str(error.value) and "restore a copy" in str(error.value)


@pytest.mark.parametrize(
    "given",
    [
        "grpo --num-iterations 3 --num-mini-batches 2 --max-resamples 2",
        "grpo --use-adaptive-entropy --entropy-coef -2 --sampler-lag 1",
        "ppo --num-ppo-epochs 2 --num-mini-batches 2 --value-warmup-steps 2 --sampler-lag 3 --beta 0.1",
        "ppo --critic head --value-warmup-steps 1",
    ],
)
def test_however_often_a_step_moves_the_weights_the_run_goes_on(tmp_path, monkeypatch, given):
    monkeypatch.setattr("nanogrpo.job.summary", lambda *a: "done")
    command, *own = given.split()
    out = ["--out", str(tmp_path / "run"), "--device", "cpu", "--save-every", "1"]
    main([command, *RUN[1:], *own, *out, "--max-steps", "1"])
    for steps in "23":
        main([command, "--resume", *out, "--max-steps", steps])
    assert read_csv(tmp_path / "run" / "metrics.csv")["step"] == [1, 2, 3]


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("entropy_coef", None, "entropy_coef=None"),
        ("entropy_coef", "gone", "lacks entropy_coef"),
        ("entropy_coef", 1e300, "must be a finite number, at most 3.4e38"),
        ("entropy_coef", -5.0, "entropy_coef=-5.0, and its checkpoint.safetensors was made with .*=0.0"),
        ("entropy_coef_delta", -0.1, "must be at least 0"),
        ("sampler_lag", -1, "must be at least 0"),
        ("sampler_lag", 1, "was made with sampler_lag=2"),
        ("group_size", 1, "must be at least 2"),
        ("use_adaptive_entropy", False, "was made with use_adaptive_entropy=True"),
    ],
)
def test_an_edited_setting_is_held_to_its_range_and_to_the_checkpoint(finished, tmp_path, name, value, said):
    """A price of entropy may be below 0, by its declaration; it is another run's all the same."""
    shutil.copytree(finished / "stale", tmp_path / "run")
    config = tmp_path / "run" / "config.json"
    settings = json.loads(config.read_text())
    settings[name] = value
    if value == "gone":
        del settings[name]
    config.write_text(json.dumps(settings))
    with pytest.raises(SystemExit, match=said):
        main(["grpo", "--resume", "--out", str(tmp_path / "run"), "--max-steps", "3"])


@pytest.mark.parametrize("which", ["plain", "stale"])
def test_a_checkpoint_that_was_only_written_anew_is_gone_on_from(finished, tmp_path, which):
    shutil.copytree(finished / which, tmp_path / "run")
    edited(tmp_path / "run", lambda tensors: None)
    main(["grpo", "--resume", "--out", str(tmp_path / "run"), "--max-steps", "4"])
    assert read_csv(tmp_path / "run" / "metrics.csv")["step"] == [1, 2, 3, 4]


def test_a_state_with_a_negative_square_is_refused():
    param = torch.zeros(2, requires_grad=True)
    state = TrainState.start([param], 0.1, 0)
    tensors = state.tensors()
    tensors["optimizer.square.0"] = torch.tensor([-1.0, 0.0])
    with pytest.raises(CheckpointError, match="negative"):
        state.restore(tensors)
    assert AdamW([param], 0.1).steps == state.step == 0


def test_a_setting_that_stands_twice_is_refused_and_not_read_as_the_last_one(folder, capsys):
    config = folder / "config.json"
    config.write_text(config.read_text().replace("{", '{"beta": 0.5,', 1))
    with pytest.raises(SystemExit, match="'beta' stands there more than once"):
        resumed(folder, capsys)
    with pytest.raises(ValueError, match="more than once"):
        from_json('{"a": [{"b": 1, "b": 1}]}')


def test_a_hash_that_has_lost_its_name_is_said_to_be_missing(folder, capsys):
    config = folder / "config.json"
    settings = json.loads(config.read_text())
    settings["inputs"] = {"another": "0" * 64}
    config.write_text(json.dumps(settings))
    assert "has no hash of task addition" in resumed(folder, capsys)


def test_a_folder_may_be_called_as_a_file_of_weights_is(tmp_path, monkeypatch):
    monkeypatch.setattr("nanogrpo.job.summary", lambda *a: "done")
    first, second = tmp_path / "a.safetensors", tmp_path / "b"
    main([*RUN, "--max-steps", "1", "--out", str(first)])
    main(["grpo", "--model", str(first), *RUN[3:], "--max-steps", "1", "--out", str(second)])
    assert (second / "model.safetensors").exists()


@pytest.mark.parametrize("text", ["1e-400", "-0.0001e-999"])
def test_a_number_that_is_too_small_is_refused_and_not_read_as_0(tmp_path, text):
    import argparse

    parser = argparse.ArgumentParser(exit_on_error=False)
    add_options(parser, GRPOConfig)
    with pytest.raises(argparse.ArgumentError, match="learning-rate"):
        parser.parse_args([f"--learning-rate={text}"])
    assert parser.parse_args(["--learning-rate=0.0e-3"]).learning_rate == 0
    (tmp_path / "log.csv").write_text(f"step,reward\n1,{text}\n")
    with pytest.raises(LogError, match="is no number"):
        read_csv(tmp_path / "log.csv")


@pytest.mark.parametrize("text", ['["abc"]', '{"abc": 1}', '"abc"', "[[1, 2, 3]]", '[["a", "b"]]'])
def test_pairs_are_lists_of_texts_and_no_text_is_read_letter_by_letter(tmp_path, text):
    (tmp_path / "pairs.json").write_text(text)
    job = object.__new__(RM)
    job.folder = Folder(tmp_path)
    with pytest.raises(RunError, match="missing or damaged"):
        job.read_pairs()


@pytest.mark.parametrize("append", [False, True])
def test_of_two_writers_of_one_log_one_stops(tmp_path, append):
    path = tmp_path / "log.csv"
    with CSVLog(path) as one:
        one.write({"step": 1})
        with (
            CSVLog(path, append=append) as other,
            pytest.raises(LogError, match="changed by another program"),
        ):
            for step in (2, 3, 4):
                other.write({"step": step})
                one.write({"step": step})
    assert "4" not in path.read_text()


def test_a_file_without_our_checksum_is_said_to_be_unproved_since_its_heads_may_have_changed(folder, capsys):
    path = folder / "checkpoint.safetensors"
    before = json.loads(load_tensors(path)[1]["config"])
    rewritten(folder, lambda _, header: header.update(config=json.dumps({**before, "n_head": 1})))
    assert before["n_head"] != 1 and "has no sha256" in resumed(folder, capsys)
    weights.load("addition")  # what ships is older than the checksum
    assert "sha256" not in capsys.readouterr().err
