# The web app in a container. docs/guides/deploy.md says how to build and run it.
# It was never built by us (no Docker engine on our machines): tests/test_deploy.py reads it instead.
#
#   docker build --build-arg TORCH_ARGS="--index-url URL_OF_THE_CPU_BUILDS" -t inferplan .
#   docker run --rm --init -p 127.0.0.1:8501:8501 -v inferplan:/data --cpuset-cpus 0,1 --memory 2g inferplan

# The Python that constraints.txt is tested with.
FROM python:3.11-slim-bookworm

# Further pip arguments for the torch install alone, as in the Makefile: without the index of PyTorch's CPU builds
# the Linux build brings CUDA libraries, several GB of them.
ARG TORCH_ARGS=""

ENV PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PYTHONUNBUFFERED=1 \
    HOME=/data \
    INFERPLAN_STORE=/data/inferplan.db \
    INFERPLAN_CACHE=/data/cache \
    HF_HOME=/data/huggingface

WORKDIR /app

# Before the code, so that a change of the code does not install torch again.
COPY constraints.txt ./
RUN python -m pip install ${TORCH_ARGS} -c constraints.txt torch

COPY pyproject.toml README.md LICENSE ./
COPY src ./src
RUN python -m pip install -c constraints.txt .

COPY app.py ./
COPY .streamlit/config.toml ./.streamlit/config.toml

# A number, so that a platform that asks for a non-root user can see that it is one. /data and /tmp are all it writes.
RUN groupadd --gid 10001 inferplan \
    && useradd --uid 10001 --gid 10001 --home-dir /data --no-create-home --shell /usr/sbin/nologin inferplan \
    && install --directory --owner=10001 --group=10001 /data
USER 10001:10001
VOLUME ["/data"]

EXPOSE 8501

# Rare, because each look is a process that takes CPU time from what is being timed. Proxies are left out of it.
HEALTHCHECK --interval=2m --timeout=10s --start-period=1m --retries=3 \
    CMD ["python", "-c", "from urllib.request import ProxyHandler, build_opener; build_opener(ProxyHandler({})).open('http://127.0.0.1:8501/_stcore/health', timeout=5)"]

# All of the container's addresses: which of them the outside can reach is decided by `docker run -p`.
CMD ["streamlit", "run", "app.py", "--server.address", "0.0.0.0", "--server.port", "8501"]
