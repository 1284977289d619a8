# The project for machines without a GPU, from the root of a checkout:
#
#   docker build -f docker/cpu.Dockerfile -t earl-cpu .
#   docker run --rm -v "$PWD:/work" earl-cpu edit --model MODEL photo.jpg "make the sky purple" -o out.png
#   docker run --rm -v "$PWD:/work" earl-cpu quickstart --preset smoke --output runs/smoke
#
# TORCH_INDEX is where torch is taken from: the build without CUDA, half a gigabyte instead of five.
FROM python:3.11.9-slim-bookworm

ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
WORKDIR /opt/earl
COPY requirements.txt ./
RUN pip install --no-cache-dir --index-url "$TORCH_INDEX" "$(grep '^torch==' requirements.txt)"
COPY pyproject.toml README.md LICENSE ./
COPY emu3 emu3
COPY rl rl
COPY baselines baselines
COPY shapes shapes
COPY scripts scripts
COPY docs/templates docs/templates
RUN pip install --no-cache-dir --constraint requirements.txt ".[demo,lora]" \
    && useradd --create-home --uid 10001 earl \
    && install --directory --owner earl /work
USER 10001
WORKDIR /work
ENTRYPOINT ["earl"]
CMD ["--help"]
