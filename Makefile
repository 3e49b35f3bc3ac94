# make demo    hear it work: server, master, two workers, a report
# make test    lint, types, import contracts, tests
# make bench   what the harness costs and how right it is (minutes; results in benchmarks/results/)
# make bench-gpu   the Chatterbox engine's figures on this machine's GPU (9 minutes; WEIGHTS=DIR for trained weights)
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin

.PHONY: install demo check test bench bench-gpu clean

# One stamp a set of extras: a new user of `make demo` need not wait for the linters, nor for PyTorch.
$(VENV)/.user: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v < (3, 14) else f"cicada needs Python 3.11, 3.12 or 3.13; {sys.executable} is {v[0]}.{v[1]}. Name another: make PYTHON=python3.12 demo")'
	@echo "Making $(VENV) and installing pinned dependencies (about a minute, once) ..."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[load,server,espeak,analysis]'
	@touch $@

$(VENV)/.dev: $(VENV)/.user
	@echo "Installing what the tests need ..."
	@$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[load,server,espeak,analysis,dev]'
	@touch $@

$(VENV)/.chatterbox: $(VENV)/.dev requirements-chatterbox.txt
	@echo "Installing PyTorch and what the Chatterbox engine needs (a gigabyte or more, once) ..."
	@$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[chatterbox,onnx]'
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-deps -r requirements-chatterbox.txt
	@touch $@

install: $(VENV)/.user

demo: $(VENV)/.user
	@$(BIN)/python -m workers demo

check: $(VENV)/.chatterbox
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Many tests run real processes in real time, and mostly wait: four at a time keep two cores busy. On a busy machine one
# may be late: it is run again, and the summary says so. Those that fill the machine by themselves come after the others.
test: check
	$(BIN)/pytest -n 4 --dist worksteal --reruns 2 --reruns-delay 2 -m 'not alone'
	$(BIN)/pytest --reruns 2 --reruns-delay 2 -m alone

bench: $(VENV)/.chatterbox
	$(BIN)/python -m benchmarks

bench-gpu: $(VENV)/.chatterbox
	$(BIN)/python -m gpu_server.bench_gpu $(if $(WEIGHTS),--weights '$(WEIGHTS)')

clean:
	rm -rf $(VENV) runs spool
