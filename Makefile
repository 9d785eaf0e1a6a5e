# Each verb makes the virtual environment it needs with pip, and makes it anew when pyproject.toml
# or constraints.txt changes.
PYTHON ?= python3
# Nor do other programs that load ONNX Runtime here report to its maker.
export ORT_DISABLE_TELEMETRY ?= 1
# Only from the command line: an environment may have a HOST of its own. Without them the settings decide.
HOST =
PORT =

RECIPE ?= models/e5-zh-sentiment/recipe.toml
RUN ?= runs/e5-zh-sentiment
TESTS ?= $(wildcard $(DATA)/*.test.jsonl $(DATA)/*.test.jsonl.gz)

.PHONY: run test test-fast lint train bench bench-bulk bench-gpu soak load chaos pins audit clean

run: .venv/serve/ready
	.venv/serve/bin/python -m app serve $(if $(HOST),--host $(HOST)) $(if $(PORT),--port $(PORT))

test: .venv/dev/ready
	.venv/dev/bin/pytest

test-fast: .venv/fast/ready
	.venv/fast/bin/pytest --ignore tests/training -m "not network"

lint: .venv/dev/ready
	.venv/dev/bin/ruff check .
	.venv/dev/bin/ruff format --check .
	.venv/dev/bin/mypy
	.venv/dev/bin/lint-imports

# DATA names the directory with the files of the recipe, TESTS the files to evaluate on.
# glibc gives large tensors back to the system after each use; keeping them trains 1.1 times as fast on processors.
train: export MALLOC_MMAP_THRESHOLD_ = 4294967296
train: export MALLOC_TRIM_THRESHOLD_ = 8589934592
train: export MALLOC_TOP_PAD_ = 268435456
train: .venv/dev/ready
	@test -n "$(DATA)" || { echo "say where the data is: make train DATA=directory" >&2; exit 2; }
	.venv/dev/bin/python -m app train $(RECIPE) --data $(DATA) --output $(RUN)
	bundle=$$(.venv/dev/bin/python -m app export $(RECIPE) $(RUN)) && \
	.venv/dev/bin/python -m app evaluate $$bundle $(TESTS) --output $$bundle

# BENCH="--rounds 1 --peers naive" measures less; the peers' virtual environments take 3 GB.
bench: .venv/load/ready
	.venv/load/bin/python -m loadtest.bench $(BENCH)

# On a machine with an NVIDIA GPU: BENCH="--provider cuda" measures less.
bench-gpu: .venv/gpu/ready
	.venv/gpu/bin/python -m loadtest.bench_gpu $(BENCH)

# 200,000 texts by stream, as a batch job, by score and on Ray, against the engine alone: rates, memory, single texts meanwhile.
# Half an hour.
bench-bulk: .venv/load/ready
	.venv/load/bin/python -m loadtest.bulk $(BULK)

# Memory over 200,000 requests, about ten minutes.
soak: .venv/load/ready
	.venv/load/bin/python -m loadtest.soak

# Starts a service of its own unless HOST names one: make load HOST=http://127.0.0.1:8000
load: .venv/load/ready
	.venv/load/bin/python -m loadtest.locustfile $(if $(HOST),--host $(HOST))

# Faults under load, about six minutes; needs wrk and redis-server.
chaos: .venv/load/ready
	.venv/load/bin/python -m loadtest.chaos $(CHAOS)

# Pins the newest versions that pyproject.toml allows; run the tests before you keep them.
pins:
	$(PYTHON) -m venv --clear .venv/pins
	.venv/pins/bin/pip install --quiet --disable-pip-version-check '.[cpu,half,test,lint,train,load]'
	.venv/pins/bin/pip list --disable-pip-version-check --format=freeze --exclude pip --exclude chinese-sentiment | \
	sed 's/+.*//' >constraints.txt

# Asks the Python Packaging Advisory Database about every pin; a pin that it cannot tell about fails, too.
audit:
	$(PYTHON) -m venv --clear .venv/audit
	.venv/audit/bin/pip install --quiet --disable-pip-version-check pip-audit
	.venv/audit/bin/pip-audit --strict --requirement constraints.txt --no-deps --disable-pip

clean:
	rm -rf .venv build runs .mypy_cache .pytest_cache .ruff_cache .hypothesis *.egg-info

.venv/serve/ready: EXTRAS = cpu
.venv/fast/ready: EXTRAS = cpu,test
.venv/load/ready: EXTRAS = cpu,load,ray
.venv/gpu/ready: EXTRAS = gpu,half,load,test
.venv/dev/ready: EXTRAS = cpu,test,lint,train
.venv/%/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv --clear .venv/$*
	.venv/$*/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[$(EXTRAS)]'
	touch $@
