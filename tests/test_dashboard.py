"""The dashboard trains as the trainer does, does what its controls say, and leaves a picture behind."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import patience
import pytest
import torch

pytest.importorskip("ipywidgets", reason="package: ipywidgets is not installed")
import matplotlib

matplotlib.use("Agg")

from nanogrpo import grpo  # noqa: E402
from nanogrpo.errors import (  # noqa: E402
    LogError,
    LoopError,
    NanoGRPOError,
    NonFiniteError,
    OptionError,
    RewardError,
)
from nanogrpo.model import GPT, GPTConfig  # noqa: E402
from nanogrpo.show.dashboard import VIEW, Dashboard  # noqa: E402
from nanogrpo.tasks import Addition  # noqa: E402

TASK = Addition(digits=1, held_out=10)
CONFIG = grpo.GRPOConfig(TASK.max_new_tokens, group_size=4, prompts_per_step=4, max_steps=6, seed=3)


def policy():
    torch.manual_seed(0)
    return GPT(GPTConfig(TASK.tokenizer.vocab_size, TASK.block_size, n_layer=1, n_head=2, n_embd=16))


def any_digit(prompts, completions, **columns):
    """A reward that an untrained policy earns now and then."""
    return [float(completion[:1] > "4") for completion in completions]


def board(model=None, config=CONFIG, reward_fn=any_digit):
    return Dashboard(model or policy(), TASK.tokenizer, TASK.split()[0], reward_fn, config)


def in_a_loop_of_its_own(drive):
    """What `drive()` returns, from a thread of its own: the browser tests leave a loop running in this."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, asyncio.wait_for(drive(), patience.SECONDS)).result()


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.slow
@pytest.mark.parametrize("beta", [0.0, 0.3])
def test_untouched_it_is_the_run_of_the_trainer_bit_for_bit(beta):
    config = replace(CONFIG, beta=beta)
    one, two = policy(), policy()
    expected = list(grpo.train(one, TASK.tokenizer, TASK.split()[0], any_digit, config))
    dashboard = board(two, config)
    dashboard.run(2)
    dashboard.run(100)
    assert torch.equal(weights(one), weights(two)) and dashboard.finished
    assert dashboard.columns["reward"] == [row["reward"] for row in expected]
    with pytest.raises(StopIteration):
        dashboard.step()


@pytest.mark.slow
def test_options_that_are_turned_hold_from_the_next_step_on():
    """Against the trainer itself, stopped and gone on with by hand."""
    one, two = policy(), policy()
    dashboard = board(one)
    dashboard.run(2)
    dashboard.beta.value = 0.5
    dashboard.run(2)
    dashboard.learning_rate.value = 0.01
    dashboard.beta.value = 0.0
    dashboard.run(2)
    assert dashboard.columns["beta"] == [0, 0, 0.5, 0.5, 0, 0]
    assert dashboard.columns["learning_rate"] == [CONFIG.learning_rate] * 4 + [0.01] * 2

    state = grpo.TrainState.start(two.parameters(), CONFIG.learning_rate, CONFIG.seed)
    for last, beta, rate in ((2, 0.0, 3e-4), (4, 0.5, 3e-4), (6, 0.0, 0.01)):
        state.optimizer.lr = rate
        config = replace(CONFIG, beta=beta, max_steps=last)
        rows = grpo.train(two, TASK.tokenizer, TASK.split()[0], any_digit, config, policy(), state)
        assert [row["step"] for row in rows] == [last - 1, last]
    assert torch.equal(weights(one), weights(two))


@pytest.mark.slow
def test_start_and_stop_by_their_buttons_while_the_loop_runs():
    dashboard = board(config=replace(CONFIG, max_steps=500))

    async def drive():
        assert (dashboard.start_button.disabled, dashboard.stop_button.disabled) == (False, True)
        dashboard.start_button.click()
        dashboard.start_button.click()  # a second click starts no second run
        assert (dashboard.start_button.disabled, dashboard.stop_button.disabled) == (True, False)
        while dashboard.state.step < 3:
            await asyncio.sleep(0.01)
        dashboard.beta.value = 0.25
        while 0.25 not in dashboard.columns["beta"]:
            await asyncio.sleep(0.01)
        dashboard.stop_button.click()
        while dashboard.running:
            await asyncio.sleep(0.01)
        stopped = dashboard.state.step
        await asyncio.sleep(0.1)
        assert dashboard.state.step == stopped == len(dashboard.columns["step"])
        assert (dashboard.start_button.disabled, dashboard.stop_button.disabled) == (False, True)
        assert dashboard.message == f"Stopped, step {stopped} of 500."
        dashboard.start_button.click()
        while dashboard.state.step == stopped:
            await asyncio.sleep(0.01)
        dashboard.stop()
        while dashboard.running:
            await asyncio.sleep(0.01)
        return dashboard.columns["step"]

    steps = in_a_loop_of_its_own(drive)
    assert steps == list(range(1, len(steps) + 1)), "a step was lost or made twice"


def test_a_run_that_is_done_says_so_and_cannot_be_started():
    dashboard = board(config=replace(CONFIG, max_steps=2))

    async def drive():
        dashboard.start()
        await dashboard._task

    in_a_loop_of_its_own(drive)
    assert dashboard.message == "Finished, step 2 of 2." and dashboard.start_button.disabled
    assert 'alt="2 steps of training: mean reward from ' in dashboard.curves.value


def test_an_error_in_the_background_is_shown_and_the_run_can_go_on():
    broken = {"now": True}

    def reward(prompts, completions, **columns):
        return [float("nan")] * len(completions) if broken["now"] else any_digit(prompts, completions)

    dashboard = board(reward_fn=reward)

    async def drive():
        dashboard.start()
        await dashboard._task
        assert "RewardError" in dashboard.message and "nan" in dashboard.message
        assert not dashboard.start_button.disabled and dashboard.state.step == 0
        broken["now"] = False
        dashboard.start()
        await dashboard._task

    in_a_loop_of_its_own(drive)
    assert dashboard.columns["step"] == [1, 2, 3, 4, 5, 6]


def test_without_an_event_loop_it_refuses_to_start():
    with ThreadPoolExecutor(1) as thread, pytest.raises(RuntimeError, match="event loop"):
        thread.submit(board().start).result()


def test_it_is_shown_as_controls_and_stored_as_a_picture_that_says_what_it_is(monkeypatch):
    import sys

    import nbformat

    sys.path.insert(0, str(grpo.__file__.rsplit("nanogrpo", 1)[0] + "book/_ext"))
    from clean import clean

    dashboard = board()
    assert "Not started" in dashboard.still()
    dashboard.run(2)
    bundle = dashboard._repr_mimebundle_()
    assert bundle[VIEW]["model_id"] == dashboard.box.model_id
    assert "needs a kernel" in bundle["text/html"] and "step 2 of 6" in bundle["text/html"]
    assert "<script" not in bundle["text/html"] and 'src="data:image/png' in bundle["text/html"]

    output = nbformat.v4.new_output("execute_result", bundle, execution_count=1)
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("board", outputs=[output])])
    model = {
        "model_name": "VBoxModel",
        "model_module": "@jupyter-widgets/controls",
        "state": {"children": []},
    }
    kind = "application/vnd.jupyter.widget-state+json"
    notebook.metadata["widgets"] = {kind: {"state": {dashboard.box.model_id: model}}}
    stored = clean(notebook, {})
    assert set(stored.cells[0].outputs[0].data) == {"text/plain", "text/html"}
    assert "widgets" not in stored.metadata, "the page would load the widget manager"

    monkeypatch.setitem(sys.modules, "google.colab", object())
    assert set(dashboard._repr_mimebundle_()) == {"text/plain", VIEW}


# --- options that a slider cannot take, and errors after which a run goes on


@pytest.mark.slow
@pytest.mark.parametrize("rate", [1e-9, 1e-6, 3.7e-6, 1e-5, 3e-4, 0.01, 0.05, 1.0, 7.0])
def test_every_learning_rate_is_the_one_that_was_given(rate):
    """1e-6 became 1e-5 and 0.05 became 0.01, the ends of the slider."""
    one, two = policy(), policy()
    config = replace(CONFIG, learning_rate=rate, max_steps=2)
    list(grpo.train(one, TASK.tokenizer, TASK.split()[0], any_digit, config))
    dashboard = board(two, config)
    assert dashboard.learning_rate.value == rate
    dashboard.run(2)
    assert dashboard.columns["learning_rate"] == [rate] * 2
    assert torch.equal(weights(one), weights(two))
    assert f"{rate:.1e}" in dashboard.still()


@pytest.mark.slow
@pytest.mark.parametrize("beta", [0.0, 0.001, 0.04, 1.0, 7.5])
def test_every_beta_is_the_one_that_was_given(beta):
    dashboard = board(config=replace(CONFIG, beta=beta, max_steps=1))
    dashboard.run(1)
    assert dashboard.columns["beta"] == [beta] and dashboard.config.beta == beta
    assert f"beta {beta:g}" in dashboard.still() or f"beta {beta:.2f}" in dashboard.still()


@pytest.mark.parametrize(
    "options", [{"learning_rate": 0.0}, {"learning_rate": -1e-4}, {"beta": -0.1}, {"beta": float("nan")}]
)
def test_what_no_slider_can_hold_is_refused(options):
    with pytest.raises(OptionError, match=next(iter(options))):
        board(config=replace(CONFIG, **options))


@pytest.mark.parametrize(
    ("slider", "value"),
    [("learning_rate", 1e-6), ("learning_rate", 0.05), ("learning_rate", 0.0), ("learning_rate", -1.0),
     ("learning_rate", float("nan")), ("learning_rate", float("inf")), ("beta", -0.1), ("beta", 1.5),
     ("beta", float("nan"))],
)  # fmt: skip
def test_a_slider_that_is_set_outside_its_range_refuses_and_stays_where_it_was(slider, value):
    dashboard = board()
    before = getattr(dashboard, slider).value
    with pytest.raises(OptionError, match="outside the slider"):
        getattr(dashboard, slider).value = value
    assert getattr(dashboard, slider).value == before


@pytest.mark.parametrize("steps", [-1, 1.5, None, "2", True])
def test_steps_that_are_none(steps):
    with pytest.raises(OptionError, match="steps="):
        board().run(steps)


@pytest.mark.parametrize("metrics", ["reward", (), None, [3]])
def test_metrics_that_are_none(metrics):
    with pytest.raises(OptionError, match="metrics="):
        Dashboard(policy(), TASK.tokenizer, TASK.split()[0], any_digit, CONFIG, metrics)


def test_a_metric_that_the_run_lacks_is_named_in_either_way():
    def with_metric():
        return Dashboard(policy(), TASK.tokenizer, TASK.split()[0], any_digit, CONFIG, ("reward", "none"))

    with pytest.raises(LogError, match="no metric 'none'; it has step, "):
        with_metric().run(2)
    dashboard = with_metric()

    async def drive():
        dashboard.start()
        await dashboard._task

    in_a_loop_of_its_own(drive)
    assert "no metric 'none'" in dashboard.message and not dashboard.running


@pytest.mark.slow
@pytest.mark.parametrize(
    "error",
    [RewardError("no reward"), NonFiniteError("nan"), ZeroDivisionError("by me"), KeyboardInterrupt()],
)
def test_after_an_error_the_run_goes_on_where_it_was(error):
    """It raised StopIteration for ever."""
    broken = {"now": False}

    def reward(prompts, completions, **columns):
        if broken["now"]:
            raise error
        return any_digit(prompts, completions)

    dashboard = board(reward_fn=reward)
    dashboard.run(2)
    broken["now"] = True
    for _ in range(2):
        if isinstance(error, KeyboardInterrupt):
            dashboard.run(2)
            assert "Stopped, step 2 of 6" in dashboard.message
        else:
            with pytest.raises(NanoGRPOError):
                dashboard.run(2)
    broken["now"] = False
    dashboard.run(100)
    assert dashboard.finished and dashboard.columns["step"] == [1, 2, 3, 4, 5, 6]


def test_no_event_loop_is_an_error_of_the_package():
    with ThreadPoolExecutor(1) as thread, pytest.raises(LoopError, match="use run"):
        thread.submit(board().start).result()
