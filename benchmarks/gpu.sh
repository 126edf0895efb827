#!/usr/bin/env bash
# Everything that waits for a GPU, in one call that ends within 9 minutes.
#
#   RESULTS=DIR benchmarks/gpu.sh        PYTHON=python3 picks the interpreter
#
# Records the machine and its versions, lets gsplat compile, then runs the back-end tests, the rasterisers' benchmark
# and the training step. The limits of the parts add up to less than 9 minutes.
# A part that fails is reported and does not keep the others from running; the exit status counts the failures.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
RESULTS=${RESULTS:-benchmarks/results}
PYTHON=${PYTHON:-python3}
mkdir -p "$RESULTS"
failures=0

part() {  # NAME SECONDS COMMAND...
  local name=$1 limit=$2
  shift 2
  echo "== $name: $*"
  if ! timeout "$limit" "$@" 2>&1 | tee "$RESULTS/$name.log"; then
    echo "== $name failed"
    failures=$((failures + 1))
  fi
}

part versions 30 "$PYTHON" - <<'PY'
import importlib.metadata as metadata
import platform

import torch

assert torch.cuda.is_available(), "this script is for machines with a CUDA device"
print("GPU", torch.cuda.get_device_name(), "| CUDA", torch.version.cuda, "| Python", platform.python_version())
for name in ("torch", "gsplat", "diff_gaussian_rasterization", "numpy"):
    try:
        print(name, metadata.version(name))
    except metadata.PackageNotFoundError:
        print(name, "not installed")
PY
# One architecture instead of all of them: gsplat then compiles in a fraction of the time.
TORCH_CUDA_ARCH_LIST=$("$PYTHON" -c 'import torch; print("%d.%d" % torch.cuda.get_device_capability())')
export TORCH_CUDA_ARCH_LIST
part gsplat 240 "$PYTHON" -c 'import time; start = time.time(); from gaussian import backend_gsplat
print(backend_gsplat.reason() or f"gsplat is ready after {time.time() - start:.0f} s"); exit(not backend_gsplat.available())'
part tests 90 "$PYTHON" -m pytest -q -s tests/gaussian/test_cuda.py tests/gaussian/test_rendering.py tests/gaussian/test_cameras.py
part rasterizer 75 "$PYTHON" -m benchmarks.rasterizer --device=cuda --seconds=0.8 --out "$RESULTS/rasterizer-gpu.json"
for preset in tiny cgs256 cgs512; do
  part "step-$preset" 40 "$PYTHON" -m benchmarks.training_step --preset=$preset --device=cuda --json "$RESULTS/step-$preset-gpu.json"
done
echo "== $failures part(s) failed; results in $RESULTS"
exit "$failures"
