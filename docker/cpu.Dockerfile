# SplatGAN for CPUs, with a compiler for the native renderer:
#   docker build -t splatgan -f docker/cpu.Dockerfile .
#   docker run --rm -v "$PWD/out:/app/out" splatgan make demo
FROM python:3.11-slim-bookworm
# Versions are not pinned: the mirrors keep only the newest of each package.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ make \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /app
COPY requirements.txt Makefile ./
RUN make setup TORCH_INDEX=https://download.pytorch.org/whl/cpu
COPY . .
ENV PATH=/app/.venv/bin:$PATH
CMD ["python", "train.py", "--help"]
