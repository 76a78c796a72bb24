#!/usr/bin/env bash
# Packs what measure_all.sh needs on a GPU machine without a network: x86-64 Linux with CPython 3.12, torch for CUDA,
# cupy, cuda-bindings, cuda-core and xz.
#
#   benchmarks/gpu/pack.sh DIR [--prebuilt DIR] [--wheels DIR] [--gpu 90] [--part-size BYTES] [GROUP ...]
#
# GROUP: base (onnx, pytest and their like), ort (onnxruntime-gpu), rtx (TensorRT-RTX), as wheels.txt lists them; all
# of them when none is named. --prebuilt takes along what benchmarks.gpu.prepare made; --wheels takes further wheels,
# e.g. a PyCUDA of build_pycuda.sh; --gpu leaves out the code for GPUs of another architecture. Makes DIR/part-00,
# DIR/part-01 ... of at most 50 MiB each, as few as will do. On the other machine copy the contents of all parts into
# one folder and run there, with Python's own pip:
#
#   bash unpack.sh FOLDER [SITE]     checks the digest, installs into SITE (default FOLDER/site), prints what to export
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
python=${PYTHON:-python3} dir='' prebuilt='' wheels='' gpu='' part=$((50 * 1024 * 1024 - 65536)) groups=()
fail() { echo "pack.sh: $1" >&2; exit 2; }
while (($#)); do
  case $1 in
    --prebuilt | --wheels | --part-size | --gpu)
      (($# > 1)) || fail "$1 wants a value"
      case $1 in --prebuilt) prebuilt=$2 ;; --wheels) wheels=$2 ;; --gpu) gpu=$2 ;; *) part=$2 ;; esac
      shift ;;
    base | ort | rtx) groups+=("$1") ;;
    -*) fail "no such option: $1" ;;
    *) [[ -z $dir ]] || fail "a group is base, ort or rtx, not '$1'"; dir=$1 ;;
  esac
  shift
done
[[ -n $dir ]] || fail "usage: pack.sh DIR [--prebuilt DIR] [--wheels DIR] [--part-size BYTES] [base|ort|rtx ...]"
((${#groups[@]})) || groups=(base ort rtx)
[[ ! -e $dir ]] || fail "$dir exists; remove it or name another"
[[ -z $prebuilt || -d $prebuilt ]] || fail "there is no folder $prebuilt; make it with: python -m benchmarks.gpu.prepare $prebuilt"

mkdir -p "$dir/stage/wheels"
requirements=()
while read -r group requirement; do
  [[ " ${groups[*]} " != *" $group "* ]] || requirements+=("$requirement")
done < <(grep -v '^#' "$here/wheels.txt")
platforms=()
for glibc in 2_39 2_35 2_34 2_31 2_28 2_27 2_17; do platforms+=(--platform "manylinux_${glibc}_x86_64"); done
platforms+=(--platform manylinux2014_x86_64 --platform manylinux1_x86_64)
"$python" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: --python-version 3.12 \
  --implementation cp "${platforms[@]}" --dest "$dir/stage/wheels" "${requirements[@]}"
[[ -z $wheels ]] || cp "$wheels"/*.whl "$dir/stage/wheels/"
"$python" "$here/store_wheels.py" "$dir/stage/wheels" $gpu
[[ -z $prebuilt ]] || cp -r "$prebuilt" "$dir/stage/prebuilt"

tar -C "$dir/stage" -cf - . | xz -T0 -6 > "$dir/all.tar.xz"
mkdir "$dir/part-00"
(cd "$dir" && sha256sum all.tar.xz > part-00/all.sha256 && split -b "$part" -d all.tar.xz piece-)
for piece in "$dir"/piece-*; do
  number=${piece##*-}
  mkdir -p "$dir/part-$number"
  mv "$piece" "$dir/part-$number/"
done
rm -r "$dir/all.tar.xz" "$dir/stage"
cp "$here/unpack.sh" "$dir/part-00/"
du -sh "$dir"/part-*
