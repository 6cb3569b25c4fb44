# Every target that runs something installs what it needs first, into .venv.
PYTHON ?= python3
PORT ?= 8000
GRPC_PORT ?= 8001
HOST ?= 127.0.0.1
# CUDA=1 installs the CUDA libraries that onnxruntime-gpu was built for; the host needs only the driver.
CUDA ?=
BIN := .venv/bin
comma := ,
TORCH ?= torch==2.13.0
KSERVE ?= kserve==0.21.0

.PHONY: serve test openapi fuzz bench chaos overload soak reproduce check format lock proto kernels clean

serve: .venv/serve.stamp
	$(BIN)/kronserve serve --repository model_repository --host $(HOST) --port $(PORT) --grpc-port '$(GRPC_PORT)'

# KServe's clients ask for older pandas and protobuf than the service, so they have an environment of their own.
test: .venv/dev.stamp .venv-kserve/stamp
	KRONSERVE_KSERVE_PYTHON=$(CURDIR)/.venv-kserve/bin/python $(BIN)/python -m pytest

# 10,000 requests made from the served OpenAPI document; the test suite makes some hundred.
openapi: .venv/dev.stamp
	KRONSERVE_EXAMPLES=10000 $(BIN)/python -m pytest tests/service/test_openapi.py

check: .venv/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv/dev.stamp
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Every reader, coverage-guided, ten minutes each, two at once; FUZZ=csv for one of them, FUZZ_SECONDS=4 for a short look,
# FUZZ_SEED=1 for the same inputs in the same order each time.
FUZZ ?= all
FUZZ_SECONDS ?= 600
FUZZ_SEED ?= 0
fuzz: .venv/dev.stamp
	$(BIN)/python -m fuzz $(FUZZ) --seconds $(FUZZ_SECONDS) --seed $(FUZZ_SEED) --jobs 2

# Bundles, peers' environments and results are made as needed; BENCH="--rounds 1 --seconds 1" for a short look.
bench: .venv/dev.stamp
	$(BIN)/python -m bench.run $(BENCH)

# A hundred thousand requests, some malformed, some leaving, some late: nothing lost, and the counters add up.
chaos: .venv/dev.stamp
	$(BIN)/python -m bench.chaos

# Ten times what the machine can do, for a minute. Three minutes on a machine that does nothing else.
overload: .venv/dev.stamp
	$(BIN)/python -m bench.overload

# Eighty per cent of what it can do, with reloads, leaving clients and bad requests.
SOAK_MINUTES ?= 30
soak: .venv/dev.stamp
	$(BIN)/python -m bench.soak --minutes $(SOAK_MINUTES)

# The tables of docs/results.md, printed: the operators' cost measured anew, every shipped bundle on its test split. Writes
# bench/results/operators.json and .png, and what follows from them and the bundles into docs/results.md, so that they agree;
# git diff shows what came out otherwise. Needs the data sets' folder in KRONSERVE_DATA and a machine that does nothing else;
# about seven minutes on two cores.
reproduce: .venv/dev.stamp
	$(BIN)/python -m bench.operators
	$(BIN)/python -m bench.reproduce --write
	$(BIN)/python -m train.tables $(patsubst %,model_repository/%/1,hot-etth1 hot-weather kao-etth1)

# What the image is installed from, pinned with hashes for every platform; LOCK=--upgrade takes newer releases.
# Without it a pin moves only where pyproject.toml asks for more than it gives.
LOCK ?=
COMPILE = $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --custom-compile-command 'make lock' $(LOCK)
lock: .venv/dev.stamp
	$(COMPILE) pyproject.toml --extra grpc --extra otel --extra sign --output-file requirements/serve.txt
	$(COMPILE) pyproject.toml --extra grpc --extra otel --extra sign --extra cuda --constraint requirements/serve.txt --output-file requirements/cuda.txt
	$(BIN)/python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['build-system']['requires'], sep='\n')" \
	  | $(COMPILE) - --output-file requirements/build.txt

# The messages of gRPC, written anew from their definitions.
proto: .venv/dev.stamp
	$(BIN)/python -m grpc_tools.protoc -I . --python_out=. --pyi_out=. app/api/grpc/inference.proto app/api/grpc/health.proto

# The library for KRONSERVE_CUSTOM_OPS: build/kernels/libkronserve_kernels.so. Needs a C++ compiler and, for ONNX Runtime's
# headers, Debian's apt-get and dpkg-deb; or ORT_HEADERS=FOLDER with onnxruntime_cxx_api.h.
ORT_HEADERS ?= build/onnxruntime/include
kernels: build/kernels/libkronserve_kernels.so

build/kernels/libkronserve_kernels.so: kernels/hot_product2.cpp $(ORT_HEADERS)/onnxruntime_cxx_api.h
	mkdir -p $(@D)
	$(CXX) -std=c++17 -O3 -shared -fPIC -fvisibility=hidden -Wall -Wextra -Werror -isystem $(ORT_HEADERS) $< -o $@

build/onnxruntime/include/onnxruntime_cxx_api.h:
	kernels/fetch-headers $(@D)

clean:
	rm -rf .venv .venv-kserve build

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/serve.stamp: .venv/bin/python pyproject.toml
	$(BIN)/pip install --quiet --editable '.[grpc$(if $(CUDA),$(comma)cuda)]'
	touch $@

# torch is pinned to one release and asked for first: on Linux without a CUDA build at hand the plain requirement would
# bring gigabytes of GPU libraries that neither tests nor training on a CPU need.
.venv/dev.stamp: .venv/bin/python pyproject.toml
	$(BIN)/pip install --quiet $(TORCH)
	$(BIN)/pip install --quiet --editable '.[dev]'
	touch $@ .venv/serve.stamp

.venv-kserve/stamp:
	$(PYTHON) -m venv .venv-kserve
	.venv-kserve/bin/pip install --quiet $(KSERVE)
	touch $@
