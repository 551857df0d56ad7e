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
