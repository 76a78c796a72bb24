#!/usr/bin/env bash
# Builds a wheel of PyCUDA, which has none on the package index, and fetches what it imports:
#   benchmarks/gpu/build_pycuda.sh WHEELS [PYTHON]
#
# PYTHON is that of the GPU machine's version (default python3.12). Needs a C++ compiler and the package index, but
# neither CUDA, whose headers come from the index, nor a driver, for which an empty library stands in while linking;
# cuRAND, which nothing here uses, is left out. Takes some minutes.
set -euo pipefail
version=2026.1
[[ $# -ge 1 ]] || { echo "usage: build_pycuda.sh WHEELS [PYTHON]" >&2; exit 2; }
mkdir -p "$1"
wheels=$(cd "$1" && pwd) python=${2:-python3.12} work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
pip=("$python" -m pip --quiet --disable-pip-version-check)
"$python" -c 'import pip' || { echo "build_pycuda.sh: $python has no pip; name another Python" >&2; exit 2; }

"${pip[@]}" download --no-deps --only-binary=:all: --dest "$work/headers" \
  nvidia-cuda-runtime nvidia-cuda-profiler-api nvidia-cuda-crt nvidia-cuda-cccl
for wheel in "$work"/headers/*.whl; do "$python" -m zipfile -e "$wheel" "$work/cuda"; done
include=$(dirname "$(find "$work/cuda" -name cuda.h | head -n 1)")
mkdir "$work/lib"
echo 'int cuInit(unsigned flags) { return (int)flags; }' |
  gcc -shared -fPIC -x c - -Wl,-soname,libcuda.so.1 -o "$work/lib/libcuda.so"

"${pip[@]}" download --no-deps --no-binary pycuda --dest "$work" "pycuda==$version"
tar -C "$work" -xzf "$work/pycuda-$version.tar.gz"
cat > "$work/pycuda-$version/siteconf.py" <<CONF
CUDA_ENABLE_CURAND = False
CUDA_ENABLE_GL = False
CUDA_TRACE = False
CUDA_PRETEND_VERSION = None
CUDA_INC_DIR = ["$include"]
CUDADRV_LIB_DIR = ["$work/lib"]
CUDADRV_LIBNAME = ["cuda"]
CUDART_LIB_DIR = []
CUDART_LIBNAME = []
CURAND_LIB_DIR = []
CURAND_LIBNAME = []
USE_SHIPPED_BOOST = True
CONF
CPATH=$include LIBRARY_PATH=$work/lib "${pip[@]}" wheel --no-deps --wheel-dir "$wheels" "$work/pycuda-$version"
"${pip[@]}" download --no-deps --only-binary=:all: --dest "$wheels" pytools platformdirs mako siphash24
ls -l "$wheels"
