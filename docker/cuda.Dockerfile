# The project for NVIDIA GPUs (driver for CUDA 13, NVIDIA's container toolkit), from the root of a checkout:
#
#   docker build -f docker/cuda.Dockerfile -t earl-cuda .
#   docker run --rm --gpus all --ipc host -v "$PWD:/work" earl-cuda edit --model MODEL photo.jpg "..." -o out.png
#   docker run --rm --gpus all --ipc host -v "$PWD:/work" --entrypoint bash earl-cuda scripts/check_node.sh
#
# The second runs the scripts of the checkout that is mounted. The compiler is for DeepSpeed, which builds its optimizer
# for main memory when it is asked for (compute.offload_optimizer, scripts/ie_sft_offload.sh).
FROM nvidia/cuda:13.0.1-devel-ubuntu24.04

# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --no-install-recommends --yes g++ git python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*
ENV VIRTUAL_ENV=/opt/venv
ENV PATH=/opt/venv/bin:$PATH
WORKDIR /opt/earl
COPY requirements.txt ./
RUN python3 -m venv /opt/venv && pip install --no-cache-dir --requirement requirements.txt
COPY pyproject.toml README.md LICENSE ./
COPY emu3 emu3
COPY rl rl
COPY baselines baselines
COPY shapes shapes
COPY scripts scripts
COPY docs/templates docs/templates
RUN pip install --no-cache-dir --constraint requirements.txt ".[zero,lora,vllm,eval,demo,quantized]" \
    && useradd --create-home --uid 10001 earl \
    && install --directory --owner earl /work
USER 10001
WORKDIR /work
ENTRYPOINT ["earl"]
CMD ["--help"]
