# SplatGAN for CUDA devices, with the compiler that gsplat needs at its first call:
#   docker build -t splatgan-cuda -f docker/cuda.Dockerfile .
#   docker run --rm --gpus=all --shm-size=8g -v /data:/data -v "$PWD/runs:/app/training-runs" splatgan-cuda \
#       python train.py --data=/data/FFHQC/512 --gpus=4
# It has not been run on a machine with a GPU.
FROM nvidia/cuda:13.0.1-devel-ubuntu24.04
# Versions are not pinned: the mirrors keep only the newest of each package.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ make python3 python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /app
COPY requirements.txt Makefile ./
RUN make setup \
    && .venv/bin/python -m pip install --quiet "gsplat==1.5.3" "ninja==1.13.2"
COPY . .
ENV PATH=/app/.venv/bin:$PATH
CMD ["python", "train.py", "--help"]
