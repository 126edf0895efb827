#!/usr/bin/env bash
# Builds gsplat's CUDA kernels ahead of time, on a machine without a GPU, so that nothing compiles where the GPU is.
#
#   benchmarks/build_gsplat.sh DEST
#
# writes the package DEST/gsplat with its library inside (14 MB): put DEST on PYTHONPATH. gsplat takes a library beside
# its __init__.py before it thinks of compiling. Needs nvcc of the CUDA version that torch was built for, g++, and the
# headers of the Python in question; takes about 8 minutes on two cores. Environment, with what it is by default:
#
#   PYTHON=python3.12   interpreter of the version that will import it (only its headers are used)
#   TORCH=2.11.0        version of torch that will load it; its wheel from PyPI is unpacked, not installed
#   ARCH=9.0            compute capability of the card: 9.0 is H100 and H200, 8.0 A100, 8.9 RTX 40 and L40
#   GSPLAT=1.5.3        version of gsplat
#   JOBS=$(nproc)       compilers at a time
#   WORK=DEST.work      downloads and objects; a build that was broken off goes on where it was
#   CUDA_HOME=/usr/local/cuda
#
# gsplat is Apache-2.0. The result is not part of this repository.
set -euo pipefail
[ $# = 1 ] || { sed -n '2,/^set/{/^set/!s/^# \{0,1\}//p}' "$0" >&2; exit 2; }
mkdir -p "$1"
DEST=$(cd "$1" && pwd)
PYTHON=${PYTHON:-python3.12} TORCH=${TORCH:-2.11.0} ARCH=${ARCH:-9.0} GSPLAT=${GSPLAT:-1.5.3}
JOBS=${JOBS:-$(nproc)} WORK=${WORK:-$DEST.work} CUDA_HOME=${CUDA_HOME:-/usr/local/cuda}
started=$(date +%s)
say() { echo "[$(($(date +%s) - started)) s] $*"; }
fail() { echo "build_gsplat.sh: $*" >&2; exit 1; }

for program in "$PYTHON" "$CUDA_HOME/bin/nvcc" g++ unzip; do
  command -v "$program" >/dev/null || fail "$program is not there (PYTHON and CUDA_HOME say where to look)"
done
version=$("$PYTHON" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
headers=$("$PYTHON" -c 'import sysconfig; print(sysconfig.get_paths()["include"])')
[ -f "$headers/Python.h" ] || fail "$PYTHON has no headers in $headers (a python3-dev package has them)"
mkdir -p "$WORK/wheels" "$WORK/objects"

# ---------------------------------------------------------------- sources and headers
fetch() {  # NAME==VERSION
  "$PYTHON" -m pip download --quiet --no-deps --only-binary=:all: --python-version "$version" --implementation cp \
    --platform any --platform manylinux_2_28_x86_64 --dest "$WORK/wheels" "$1"
}
[ -d "$WORK/gs" ] || { fetch "gsplat==$GSPLAT"; unzip -q -o "$WORK"/wheels/gsplat*.whl -d "$WORK/gs.new"; mv "$WORK/gs.new" "$WORK/gs"; }
[ -d "$WORK/th" ] || {
  fetch "torch==$TORCH"
  unzip -q -o "$WORK"/wheels/torch*.whl 'torch/include/*' 'torch/lib/*' torch/version.py torch/utils/cpp_extension.py -d "$WORK/th.new"
  mv "$WORK/th.new" "$WORK/th"
}
wanted=$(sed -n "s/^cuda.*= *'\([0-9.]*\)'.*/\1/p" "$WORK/th/torch/version.py")
found=$("$CUDA_HOME/bin/nvcc" --version | sed -n 's/.*release \([0-9.]*\),.*/\1/p')
[ "${wanted%%.*}" = "${found%%.*}" ] || fail "torch $TORCH is built for CUDA $wanted, and this nvcc is of CUDA $found"
standard=$(sed -n "s/.*cflags = .*'-\(std=c++[0-9]*\)'.*/\1/p" "$WORK/th/torch/utils/cpp_extension.py" | tail -n 1)  # what torch compiles with
say "gsplat $GSPLAT for Python $version, torch $TORCH (CUDA $wanted, $standard), compute capability $ARCH, $JOBS jobs"

# ---------------------------------------------------------------- objects
SOURCES=$WORK/gs/gsplat/cuda
INCLUDES="-I$SOURCES/include -I$SOURCES/csrc/third_party/glm -isystem $WORK/th/torch/include"
INCLUDES+=" -isystem $WORK/th/torch/include/torch/csrc/api/include -isystem $CUDA_HOME/include -isystem $headers"
DEFINES="-DTORCH_EXTENSION_NAME=csrc -DTORCH_API_INCLUDE_EXTENSION_H"
HALF="-D__CUDA_NO_HALF_OPERATORS__ -D__CUDA_NO_HALF_CONVERSIONS__ -D__CUDA_NO_BFLOAT16_CONVERSIONS__ -D__CUDA_NO_HALF2_OPERATORS__"
CARD=${ARCH/./}
NVCC="$CUDA_HOME/bin/nvcc $DEFINES $INCLUDES $HALF --expt-relaxed-constexpr -gencode=arch=compute_$CARD,code=sm_$CARD"
NVCC+=" --compiler-options -fPIC -O3 -use_fast_math -$standard -c"
GXX="g++ $DEFINES $INCLUDES -fPIC -$standard -O3 -Wno-attributes -c"
export NVCC GXX WORK

compile() {  # SOURCE; the object appears whole or not at all
  local name object begun
  name=$(basename "$1")
  object=$WORK/objects/$name.o
  [ -f "$object" ] && return
  begun=$(date +%s)
  case $1 in *.cu) command=$NVCC ;; *) command=$GXX ;; esac
  $command "$1" -o "$object.part" >"$WORK/objects/$name.log" 2>&1 || { tail -n 30 "$WORK/objects/$name.log" >&2; return 255; }
  mv "$object.part" "$object"
  echo "  $name: $(($(date +%s) - begun)) s"
}
export -f compile
# The longest first, so that no job is left alone with one at the end.
find "$SOURCES" -maxdepth 2 \( -path '*/csrc/*.cu' -o -path '*/csrc/*.cpp' -o -name ext.cpp \) -printf '%s %p\n' |
  sort -rn | cut -d' ' -f2- | xargs -P "$JOBS" -I{} bash -c 'compile "{}"' || fail "a file does not compile"
say "$(ls "$WORK"/objects/*.o | wc -l) objects"

# ---------------------------------------------------------------- the package
rm -rf "$DEST/gsplat"
(cd "$WORK/gs" && tar -cf - --exclude='gsplat/cuda/csrc' --exclude='gsplat/cuda/include' gsplat) | tar -xf - -C "$DEST"
g++ -shared -s "$WORK"/objects/*.o -L"$WORK/th/torch/lib" -L"$CUDA_HOME/lib64" -Wl,--no-as-needed \
  -lc10 -lc10_cuda -ltorch_cpu -ltorch_cuda -ltorch -ltorch_python -lcudart -o "$DEST/gsplat/csrc.so"

# Whatever the library asks of torch must be there; Python's own names come from the interpreter.
nm -D --defined-only "$WORK"/th/torch/lib/*.so "$CUDA_HOME"/lib64/libcudart.so* | awk 'NF == 3 { print $3 }' | sed 's/@.*//' | sort -u >"$WORK/defined"
nm -D --undefined-only "$DEST/gsplat/csrc.so" | awk '$1 == "U" { print $2 }' | sed 's/@.*//' | sort -u >"$WORK/undefined"
missing=$(comm -23 "$WORK/undefined" "$WORK/defined" | grep -E '^_Z.*(c10|torch|at[0-9]|2at|caffe)|^cuda' || true)
[ -z "$missing" ] || fail "torch $TORCH does not define $(echo "$missing" | wc -l) names that the library needs, such as $(echo "$missing" | head -n 1)"
if "$PYTHON" -c "import torch; assert torch.__version__.startswith('$TORCH')" 2>/dev/null; then
  PYTHONPATH=$DEST "$PYTHON" -c 'from gsplat.cuda._backend import _C; assert _C is not None, "gsplat found no library"'
  say "imported"
else
  say "all of its names are in torch $TORCH; not imported, as $PYTHON has no torch $TORCH"
fi
say "$(du -sh "$DEST/gsplat" | cut -f1) in $DEST/gsplat, library $(stat -c %s "$DEST/gsplat/csrc.so") bytes"
