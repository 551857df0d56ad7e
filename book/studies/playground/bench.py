"""How long a step of the playground's default setting takes in a browser; nothing is drawn meanwhile."""

import argparse
import statistics
import sys
from pathlib import Path

import torch
from playwright.sync_api import sync_playwright

from nanogrpo.show import playground

sys.path.insert(0, str(Path(__file__).parents[3] / "tests"))

from find_browser import find_browser  # noqa: E402

TIMES = """async ([source, config, weights, steps]) => {
  const m = await import(URL.createObjectURL(new Blob([source], { type: "text/javascript" })));
  const trainer = new m.Trainer(new m.GPT(config, Float64Array.from(weights)), {});
  return Array.from({ length: steps }, () => {
    const start = performance.now();
    trainer.step();
    return performance.now() - start;
  });
}"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=100)
    steps = parser.parse_args().steps
    model = playground.load()
    weights = torch.nn.utils.parameters_to_vector(model.parameters()).tolist()
    source = (playground.FOLDER / "nanogrpo.js").read_text(encoding="utf-8")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_browser(), args=["--no-sandbox"])
        times = browser.new_page().evaluate(TIMES, [source, vars(model.config), weights, steps])
        print(f"Chromium {browser.version}: median of {steps} steps {statistics.median(times):.1f} ms")
        low, _, high = statistics.quantiles(times, n=4)
        print(f"quartiles {low:.1f} and {high:.1f} ms")
        browser.close()


if __name__ == "__main__":
    main()
