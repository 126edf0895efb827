#!/usr/bin/env bash
# Everything that waits for a GPU, in one call that ends within 9 minutes.
#
#   RESULTS=DIR benchmarks/gpu.sh        PYTHON=python3 picks the interpreter
#
# Records the machine and its versions, then runs the back-end tests, the rasterisers' benchmark and the training step.
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

part versions 60 "$PYTHON" - <<'PY'
import importlib.metadata as metadata
import platform

import torch

assert torch.cuda.is_available(), "this script is for machines with a CUDA device"
print("GPU", torch.cuda.get_device_name(), "| CUDA", torch.version.cuda, "| Python", platform.python_version())
for name in ("torch", "gsplat", "numpy"):
    try:
        print(name, metadata.version(name))
    except metadata.PackageNotFoundError:
        print(name, "not installed")
PY
part tests 150 "$PYTHON" -m pytest tests/gaussian tests/torch_utils
part rasterizer 150 "$PYTHON" benchmarks/rasterizer.py --device=cuda --out "$RESULTS/rasterizer.json"
part step-tiny 60 "$PYTHON" benchmarks/training_step.py --preset=tiny --device=cuda --json "$RESULTS/step-tiny.json"
part step-cgs256 60 "$PYTHON" benchmarks/training_step.py --preset=cgs256 --device=cuda --json "$RESULTS/step-cgs256.json"
part step-cgs512 60 "$PYTHON" benchmarks/training_step.py --preset=cgs512 --device=cuda --json "$RESULTS/step-cgs512.json"
echo "== $failures part(s) failed; results in $RESULTS"
exit "$failures"
