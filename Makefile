# One command per chore. Each makes its own virtual environment in .venv on a fresh machine.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TORCH ?= torch==2.13.0
ROOMS := artifacts calibration engines export planner runtime

BINDINGS := 10.16.1.11 11.4.0.106

.PHONY: demo demo-segmentation demo-pose demo-text demo-vgg test test-engines test-soak test-triton test-ray test-browser test-clients check format rehearse-gpu pack-gpu clean

demo: $(VENV)/dev      ## the main job on the CPU with real data: export, calibrate, plan, serve, measure, report
	$(BIN)/python -m export resnet --segments
	$(BIN)/python -m calibration resnet
	$(BIN)/python -m planner --run runs/resnet --tolerance 0.01
	$(BIN)/python -m runtime.bench --run runs/resnet --plot runs/resnet/bench.png --json runs/resnet/bench.json
	$(BIN)/python -m planner report --run runs/resnet

demo-segmentation: $(VENV)/dev  ## segmentation of composed scenes, from nothing to a measured bundle
	$(BIN)/python examples/composed_scenes.py runs/scenes-data --count 700
	$(BIN)/python -m export segmentation --segments --name scenes --classes 6 --input-shape 3,96,128 --weights random
	$(BIN)/python -m calibration scenes --data runs/scenes-data --train joint --epochs 6
	$(BIN)/python -m planner --run runs/scenes --tolerance 0.02 --certify none --batch-size 8
	$(BIN)/python -m runtime.bench --run runs/scenes --json runs/scenes/bench.json
	$(BIN)/python -m planner report --run runs/scenes

demo-pose: $(VENV)/dev  ## poses of composed figures, from nothing to a measured bundle
	$(BIN)/python examples/composed_figures.py runs/figures-data --count 3000
	$(BIN)/python -m export posenet --segments --name figures --input-shape 3,64,64 --weights random --answers keypoints
	$(BIN)/python -m calibration figures --data runs/figures-data --train joint --epochs 8 --train-batch-size 32
	$(BIN)/python -m planner --run runs/figures --tolerance 0.02 --certify none --batch-size 32
	$(BIN)/python -m runtime.bench --run runs/figures --json runs/figures/bench.json
	$(BIN)/python -m planner report --run runs/figures

demo-vgg: $(VENV)/dev  ## the same with a narrow VGG-16
	$(BIN)/python -m export vgg16 --segments
	$(BIN)/python -m planner --run runs/vgg16 --tolerance 0.01
	$(BIN)/python -m runtime.bench --run runs/vgg16 --plot runs/vgg16/bench.png --json runs/vgg16/bench.json
	$(BIN)/python -m planner report --run runs/vgg16

demo-text: $(VENV)/dev ## the same with texts: MiniLM is fetched, fine-tuned with its exits on film reviews, planned and measured
	$(BIN)/python -m export bert --segments --weights minilm --run runs/film-reviews
	$(BIN)/python -m calibration --run runs/film-reviews --data film-reviews --train joint --epochs 2 --samples 3000
	$(BIN)/python -m planner --run runs/film-reviews --tolerance 0.02
	$(BIN)/python -m runtime.bench --run runs/film-reviews --json runs/film-reviews/bench.json
	$(BIN)/python -m planner report --run runs/film-reviews

test: $(VENV)/engines  ## all tests but those that have a target of their own below
	$(BIN)/python -m pytest -n 2 --dist worksteal

test-engines: $(VENV)/engines  ## TensorRT-RTX builds of all stages of the demo network and of a BERT, with every layout
	$(BIN)/python -m pytest -m engines

test-soak: $(VENV)/dev ## long ones: 100,000 random sequences of events for the scheduler; rough use of servers; poses from a network to a bundle
	$(BIN)/python -m pytest -n 0 -m soak

test-triton: $(VENV)/triton ## a bundle inside of a real Triton server, which NVIDIA's pytriton carries: 55 MB; needs the system's libpython3.11
	PAME_TRITON=$(VENV)/triton $(BIN)/python -m pytest -n 0 -m triton tests/runtime/triton

test-ray: $(VENV)/ray  ## an application of Ray Serve on a local cluster: 70 MB
	$(BIN)/python -m pytest -n 0 -W default -m ray tests/runtime/ray_app

test-browser: $(VENV)/dev  ## the status page in a browser: apt-get install chromium
	$(BIN)/python -m pytest -n 0 -m browser tests/runtime/serve

test-clients: $(VENV)/clients  ## kserve's clients and NVIDIA's perf_analyzer ask the server: 200 MB; needs the system's libb64-0d
	PAME_CLIENTS=$(VENV)/clients $(BIN)/python -m pytest -n 0 -m clients tests/runtime/serve

check: $(VENV)/dev     ## linters, types, architecture
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/dev    ## lint and format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

rehearse-gpu: $(VENV)/engines  ## the measurement on a GPU (docs/gpu.md) rehearsed on a fake CUDA driver
	benchmarks/gpu/measure_all.sh --rehearse --python $(BIN)/python --out gpu-results/rehearsal

pack-gpu: $(VENV)/engines  ## everything that this measurement needs on a machine without a network, in gpu-results/parts
	$(BIN)/python -m benchmarks.gpu.prepare gpu-results/prebuilt $(if $(wildcard runs/resnet/bundle),--run runs/resnet)
	PYTHON=$(BIN)/python benchmarks/gpu/pack.sh gpu-results/parts --prebuilt gpu-results/prebuilt

clean:                 ## remove everything that was made here
	rm -rf $(VENV) runs gpu-results build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache

$(VENV)/dev: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check $(TORCH)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

# OpenVINO, TensorRT-RTX, which builds without a GPU, CUDA's compiler for the kernels, and the bindings of TensorRT, against which
# tests check names: 430 MB
$(VENV)/engines: $(VENV)/dev
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev,cuda,openvino,tables,tensorrt-rtx]'
	for version in $(BINDINGS); do \
		$(BIN)/pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: \
			--dest $(VENV)/bindings tensorrt_cu13_bindings==$$version || exit 1; \
	done
	touch $@

$(VENV)/ray: $(VENV)/dev
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev,ray]'
	touch $@

# kserve's clients in an environment of their own, which they share with no other set of the protocol's messages; perf_analyzer is in
# no wheel of tritonclient after 2.54, and loads CUDA's runtime library even without a GPU
$(VENV)/clients: $(VENV)/dev
	rm -rf $@.new && $(PYTHON) -m venv $@.new
	$@.new/bin/pip install --quiet --disable-pip-version-check 'kserve>=0.21'
	$(BIN)/pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: --dest $@.new/wheels \
		tritonclient==2.50.0 nvidia-cuda-runtime-cu12
	cd $@.new/wheels && for wheel in *.whl; do $(abspath $(BIN)/python) -m zipfile -e $$wheel . || exit 1; done
	cp $@.new/wheels/tritonclient-2.50.0.data/data/bin/perf_analyzer $@.new/ && chmod +x $@.new/perf_analyzer
	mv $@.new/wheels/nvidia/cuda_runtime/lib/libcudart.so.12 $@.new/lib/
	rm -rf $@.new/wheels $@ && mv $@.new $@ && touch $@

# Triton's server and Python backend from a wheel, and what the backend's own interpreter needs: its stub of 2024 knows numpy 1 alone
$(VENV)/triton: $(VENV)/dev
	$(BIN)/pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: --dest $(VENV)/triton.new nvidia-pytriton==0.7.0
	$(BIN)/python -m zipfile -e $(VENV)/triton.new/nvidia_pytriton-*.whl $(VENV)/triton.new
	mkdir -p $(VENV)/triton.new/backends
	cp -r $(VENV)/triton.new/pytriton/tritonserver/backends/python $(VENV)/triton.new/backends/
	cp $(VENV)/triton.new/pytriton/tritonserver/python_backend_stubs/3.11/triton_python_backend_stub $(VENV)/triton.new/backends/python/
	chmod +x $(VENV)/triton.new/backends/python/triton_python_backend_stub $(VENV)/triton.new/pytriton/tritonserver/bin/tritonserver
	$(BIN)/pip install --quiet --disable-pip-version-check --target $(VENV)/triton.new/packages numpy==1.26.4 \
		onnxruntime==$$($(BIN)/python -c 'import onnxruntime; print(onnxruntime.__version__)')
	rm -rf $@ && mv $(VENV)/triton.new $@ && touch $@
