"""The command line, run as a reader runs it."""

import json
import subprocess
import sys

import pytest

from nanogrpo.__main__ import main
from nanogrpo.checkpoint import load_model
from nanogrpo.metrics import read_csv


@pytest.mark.slow
def test_demo_writes_log_plot_weights_and_table(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(
        "nanogrpo.__main__.sft_until", lambda model, task, seed: iter([{"step": 1, "accuracy": 0.0}])
    )
    main(["demo", "--out", str(tmp_path / "run"), "--steps", "2", "--device", "cpu"])
    assert read_csv(tmp_path / "run" / "metrics.csv")["step"] == [1, 2]
    assert json.loads((tmp_path / "run" / "config.json").read_text())["max_steps"] == 2
    assert (tmp_path / "run" / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert load_model(tmp_path / "run" / "model.safetensors")[0].num_parameters > 4e5
    printed = capsys.readouterr().out
    assert "after SFT" in printed and "pass@16" in printed and "60+44=" not in printed
    assert printed.strip().startswith((tmp_path / "run" / "samples.txt").read_text().strip())


def test_plot_draws_any_metric_of_several_logs(tmp_path):
    for name in ("grpo", "ppo"):
        (tmp_path / f"{name}.csv").write_text("step,kl\n1,0.5\n2,0.25\n")
    main(
        [
            "plot",
            "--metric",
            "kl",
            str(tmp_path / "grpo.csv"),
            str(tmp_path / "ppo.csv"),
            "--out",
            str(tmp_path / "p.png"),
        ]
    )
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["plot", "none.csv"], "error: cannot read the log none.csv"),
        (["demo", "--out", "/dev/null/run"], "error: cannot write the log /dev/null/run/metrics.csv"),
    ],
)
def test_a_known_error_is_one_line_and_a_failing_exit(argv, message):
    result = subprocess.run([sys.executable, "-m", "nanogrpo", *argv], capture_output=True, text=True)
    assert result.returncode == 1 and result.stderr.startswith(message) and "Traceback" not in result.stderr


def test_a_metric_that_is_not_there_is_named_with_those_that_are(tmp_path):
    (tmp_path / "a.csv").write_text("step,kl\n1,0.5\n")
    with pytest.raises(SystemExit, match="a has no metric 'reward'; it has step, kl"):
        main(["plot", str(tmp_path / "a.csv")])
