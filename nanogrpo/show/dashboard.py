"""A training run under your hands: start, stop, learning rate and beta while it runs, curves as they come.

It needs a kernel. What a notebook stores of it is a picture of its last state, which says so.
"""

from __future__ import annotations

import asyncio
import base64
import copy
import html
import io
import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from time import perf_counter

import ipywidgets
import matplotlib.pyplot as plt
import traitlets

from nanogrpo import grpo
from nanogrpo.errors import LoopError, NanoGRPOError, OptionError, check_whole
from nanogrpo.model import GPT
from nanogrpo.show.live import add_row
from nanogrpo.show.plotting import LABELS, check_metrics, plot_runs
from nanogrpo.state import TrainState
from nanogrpo.tasks import Problem, RewardFunction
from nanogrpo.together import check_config
from nanogrpo.tokenizer import CharTokenizer

VIEW = "application/vnd.jupyter.widget-view+json"
PAUSE = 0.02  # seconds between two steps in which the kernel hears the buttons
REDRAW = 1.0  # seconds between two drawings


class _Number(traitlets.CFloat):
    """A number; where it is none, the slider's name is said."""

    def validate(self, obj, value):
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise OptionError(f"{obj.description}={value!r} is no number that the slider can take")
        return float(value)


class _Slider(ipywidgets.FloatSlider):
    """A slider that refuses a value outside its range; ipywidgets would silently take the nearest end."""

    value = _Number(0.0).tag(sync=True)

    @traitlets.validate("value")
    def _validate_value(self, proposal):
        return _within(self.description, proposal["value"], self.min, self.max)


class _LogSlider(ipywidgets.FloatLogSlider):
    """Likewise, for a slider of exponents."""

    value = _Number(1.0).tag(sync=True)

    @traitlets.validate("value")
    def _validate_value(self, proposal):
        return _within(self.description, proposal["value"], self.base**self.min, self.base**self.max)


def _within(what: str, value: float, low: float, high: float) -> float:
    # A power of ten is one only up to rounding.
    if not low * (1 - 1e-9) <= value <= high * (1 + 1e-9):
        raise OptionError(f"{what}={value} is outside the slider, from {low:g} to {high:g}")
    return value


class Dashboard:
    """Train a policy step by step with :func:`nanogrpo.grpo.step`, and turn its options on the way.

    The learning rate is written into the optimizer. ``beta`` is an option of the trainer, and options are
    frozen: each step is made with the options as they then stand, and all steps share one
    :class:`~nanogrpo.state.TrainState`, which is all that a run carries from step to step besides its
    weights. A run in which nothing is turned is the run without a dashboard, bit for bit.

    Training runs in the kernel's own event loop, one step at a time. A cell that you run meanwhile has the
    model for itself, between two steps.

    Args:
        model: the policy; trained in place. The reference of the KL is a copy of it as it is now.
        tokenizer: its alphabet.
        problems: rows with a ``prompt``.
        reward_fn: see :func:`nanogrpo.grpo.train`.
        config: where the run starts; ``max_steps`` is where it ends.
        metrics: what is drawn.

    Raises:
        OptionError: the learning rate is not above 0, or ``metrics`` are no names. The learning rate's slider
            goes from 1e-5 to 1e-2, or further if ``config`` does.

    Attributes:
        columns: the metrics so far by name, with ``learning_rate`` and ``beta`` of each step.
        state: of the run, to save it or to go on without the dashboard.
        message: what the run is doing, as it is shown.
    """

    def __init__(
        self,
        model: GPT,
        tokenizer: CharTokenizer,
        problems: Sequence[Problem],
        reward_fn: RewardFunction,
        config: grpo.GRPOConfig,
        metrics: Sequence[str] = ("reward", "kl"),
    ):
        check_config(config, grpo.GRPOConfig)
        check_metrics(metrics)
        if not 0 < config.learning_rate < math.inf:
            raise OptionError(
                f"learning_rate={config.learning_rate} must be above 0 to be turned by a slider"
            )
        self.model, self.config, self.metrics = model, config, metrics
        self.state = TrainState.start(model.parameters(), config.learning_rate, config.seed)
        self.columns: dict[str, list[float]] = {}
        self._arguments = (model, tokenizer, problems, reward_fn)
        self._reference = copy.deepcopy(model).requires_grad_(False)
        self._task: asyncio.Task | None = None
        self._drawn = 0.0
        self._build()

    def _build(self) -> None:
        wide = {"style": {"description_width": "7rem"}, "layout": {"width": "26rem"}}
        self.start_button = ipywidgets.Button(description="Start")
        self.stop_button = ipywidgets.Button(description="Stop", disabled=True)
        exponent = math.log10(self.config.learning_rate)
        self.learning_rate = _LogSlider(
            self.config.learning_rate,
            min=min(-5, math.floor(exponent)),
            max=max(-2, math.ceil(exponent)),
            step=0.1,
            description="learning rate",
            readout_format=".1e",
            **wide,
        )
        top = max(1.0, self.config.beta)
        self.beta = _Slider(
            self.config.beta, min=0, max=top, step=0.01, description="beta", readout_format=".3g", **wide
        )
        self.status, self.curves = ipywidgets.HTML(), ipywidgets.HTML()
        self.start_button.on_click(lambda _: self.start())
        self.stop_button.on_click(lambda _: self.stop())
        buttons = ipywidgets.HBox([self.start_button, self.stop_button])
        self.box = ipywidgets.VBox([buttons, self.learning_rate, self.beta, self.status, self.curves])
        self._say("Not started.")

    @property
    def running(self) -> bool:
        """Whether it trains in the background."""
        return self._task is not None and not self._task.done()

    @property
    def finished(self) -> bool:
        """Whether all steps are done."""
        return self.state.step >= self.config.max_steps

    def step(self) -> dict[str, float]:
        """Make one step with the options as they stand now; its metrics.

        Raises:
            StopIteration: all steps are done.
            NonFiniteError, RewardError, BlockSizeError: as in :func:`nanogrpo.grpo.train`. The run can go on.
            LogError: there is no such metric to be drawn.
        """
        if self.finished:
            raise StopIteration(f"all {self.config.max_steps} steps are done")
        self.config = replace(self.config, beta=self.beta.value)
        self.state.optimizer.lr = self.learning_rate.value
        row, _ = grpo.step(*self._arguments, self.config, self.state, self._reference)
        options = {"learning_rate": self.state.optimizer.lr, "beta": self.config.beta}
        add_row(self.columns, row | options, self.metrics)
        return row

    def run(self, steps: int) -> None:
        """Make some steps right here, as a cell that waits for them; Ctrl-C stops it cleanly.

        Raises:
            OptionError: ``steps`` is no whole number, or below 0.
            NanoGRPOError: as in :meth:`step`; the steps before it stand, and the run can go on.
        """
        check_whole("steps", steps, 0)
        try:
            for _ in range(min(steps, self.config.max_steps - self.state.step)):
                self.step()
            self._report()
        except KeyboardInterrupt:
            self._report()

    def start(self) -> None:
        """Train in the background until :meth:`stop`, or until all steps are done.

        Raises:
            LoopError: no event loop runs here, as in a plain script; use :meth:`run`.
        """
        if not self.running:
            try:
                loop = asyncio.get_running_loop()
            except RuntimeError:
                raise LoopError("no running event loop, as notebooks have one; use run(steps)") from None
            self._task = loop.create_task(self._train())
            self._buttons()

    def stop(self) -> None:
        """Stop after the step that is being made; :meth:`start` goes on from there."""
        if self._task is not None and self.running:
            self._task.cancel()

    async def _train(self) -> None:
        self._say("Running.")
        try:
            while not self.finished:
                self.step()
                if perf_counter() - self._drawn > REDRAW:
                    self.draw()
                await asyncio.sleep(PAUSE)
            self._report()
        except asyncio.CancelledError:
            self._report()
        except Exception as error:
            self._report(f"{type(error).__name__}: {error}")
        finally:
            self._task = None
            self._buttons()

    def draw(self) -> None:
        """Show the curves and the last step as they are now."""
        self._drawn = perf_counter()
        if not self.columns:
            return
        figure = plot_runs({"this run": self.columns}, self.metrics)
        file = io.BytesIO()
        figure.savefig(file, format="png", dpi=80)
        plt.close(figure)
        picture = base64.b64encode(file.getvalue()).decode()
        said = html.escape(self.description(), quote=True)
        self.curves.value = (
            f'<img alt="{said}" src="data:image/png;base64,{picture}" style="max-width: 100%">'
        )
        if self.running:
            self._say(f"Running, step {self.state.step} of {self.config.max_steps}.")

    def description(self) -> str:
        """The curves in words."""
        if not self.columns:
            return "0 steps of training."
        ends = [
            f"{LABELS.get(name, name)} from {self.columns[name][0]:.3g} to {self.columns[name][-1]:.3g}"
            for name in self.metrics
        ]
        return f"{len(self.columns['step'])} steps of training: {', '.join(ends)}."

    def _report(self, trouble: str = "") -> None:
        try:
            self.draw()
        except NanoGRPOError as error:
            trouble = trouble or f"{type(error).__name__}: {error}"
        what = trouble or ("Finished" if self.finished else "Stopped")
        self._say(f"{what}, step {self.state.step} of {self.config.max_steps}.")

    def _buttons(self) -> None:
        self.start_button.disabled = self.running or self.finished
        self.stop_button.disabled = not self.running

    def _say(self, message: str) -> None:
        self.message = message
        self.status.value = f'<span role="status">{html.escape(message)}</span>'

    def still(self) -> str:
        """The last state as HTML that needs no kernel and no script."""
        rate, beta = self.learning_rate.value, self.beta.value
        beta = f"{beta:.2f}" if round(beta, 2) == beta else f"{beta:g}"
        return (
            '<div class="needs-kernel"><p><strong>This dashboard needs a kernel.</strong> '
            "Here is its last state; run the cell, in Jupyter or on Colab, to take it in hand.</p>"
            f"<p>{html.escape(self.message)} Learning rate {rate:.1e}, beta {beta}.</p>"
            f"{self.curves.value}</div>"
        )

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict:
        """The controls for a front-end with a kernel, and the picture for one without."""
        view = {"version_major": 2, "version_minor": 0, "model_id": self.box.model_id}
        bundle = {"text/plain": f"Dashboard: {self.message}", VIEW: view}
        if "google.colab" not in sys.modules:  # Colab shows a picture rather than the controls if it has both
            bundle["text/html"] = self.still()
        return bundle
