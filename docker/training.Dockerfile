# The offline pipeline with CUDA, and the image of the worker: all parts of Kizu, every command.
#
#   docker build -f docker/training.Dockerfile -t kizu-training .
#
# torch's wheels bring CUDA along, so the base is the service's; only the driver comes from the host, through the NVIDIA
# Container Toolkit. Without a GPU it trains on the CPU. How to fix the base image by digest: see service.Dockerfile.
ARG PYTHON_IMAGE=python:3.11-slim-bookworm


FROM ${PYTHON_IMAGE} AS build
ENV UV_NO_CACHE=1 UV_LINK_MODE=copy UV_COMPILE_BYTECODE=1 UV_PYTHON_DOWNLOADS=never
WORKDIR /src
COPY bootstrap.lock ./
RUN python -m venv /opt/uv \
 && /opt/uv/bin/python -m pip install --no-cache-dir --disable-pip-version-check --require-hashes -r bootstrap.lock
COPY docker/training.lock ./
RUN /opt/uv/bin/uv venv --relocatable /opt/kizu \
 && /opt/uv/bin/uv pip install --python /opt/kizu/bin/python --require-hashes -r training.lock
COPY pyproject.toml README.md LICENSE docker/build.lock ./
COPY models/ models/
COPY training/ training/
COPY service/ service/
COPY cli/ cli/
RUN /opt/uv/bin/uv build --wheel --build-constraints build.lock --require-build-hashes --out-dir dist . \
 && /opt/uv/bin/uv pip install --python /opt/kizu/bin/python --no-deps dist/*.whl


FROM ${PYTHON_IMAGE} AS training
ARG UID=1000
RUN groupadd --gid "${UID}" kizu \
 && useradd --uid "${UID}" --gid kizu --no-create-home --home-dir /workspace --shell /usr/sbin/nologin kizu \
 && mkdir -p /var/lib/kizu /workspace \
 && chown kizu:kizu /var/lib/kizu /workspace
COPY --from=build /opt/kizu /opt/kizu
ENV PATH=/opt/kizu/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    KIZU_DATA_DIR=/var/lib/kizu \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
# Data sets, recipes and runs are mounted here; /var/lib/kizu is the service's volume, for `kizu models add`.
WORKDIR /workspace
USER ${UID}
ENTRYPOINT ["kizu"]
CMD ["--help"]
