# The service: models/, service/ and cli/ alone, without torch and without training code.
#
#   docker build -f docker/service.Dockerfile --target cpu -t kizu-service:cpu .
#   docker build -f docker/service.Dockerfile --target gpu -t kizu-service:gpu .     (Linux x86-64)
#
# Everything that pip installs is checked against hashes. To fix the base image as well, look its digest up with
# `docker buildx imagetools inspect python:3.11-slim-bookworm` and build with
# `--build-arg PYTHON_IMAGE=python:3.11-slim-bookworm@sha256:<digest>`.
ARG PYTHON_IMAGE=python:3.11-slim-bookworm


FROM ${PYTHON_IMAGE} AS uv
ENV UV_NO_CACHE=1 UV_LINK_MODE=copy UV_COMPILE_BYTECODE=1 UV_PYTHON_DOWNLOADS=never
WORKDIR /src
COPY bootstrap.lock ./
RUN python -m venv /opt/uv \
 && /opt/uv/bin/python -m pip install --no-cache-dir --disable-pip-version-check --require-hashes -r bootstrap.lock


# `kizu` is a namespace package: the wheel gets the parts that are here.
FROM uv AS wheel
COPY pyproject.toml README.md LICENSE docker/build.lock ./
COPY models/ models/
COPY service/ service/
COPY cli/ cli/
RUN /opt/uv/bin/uv build --wheel --build-constraints build.lock --require-build-hashes --out-dir dist .


# Dependencies come before the wheel: a change of the code alone keeps their layer. The wheel is installed without its
# dependencies, which the lock holds; the CPU image has `onnxruntime` where pyproject.toml asks for `onnxruntime-gpu`.
FROM uv AS build-cpu
COPY docker/service-cpu.lock ./
RUN /opt/uv/bin/uv venv --relocatable /opt/kizu \
 && /opt/uv/bin/uv pip install --python /opt/kizu/bin/python --require-hashes -r service-cpu.lock
COPY --from=wheel /src/dist dist
RUN /opt/uv/bin/uv pip install --python /opt/kizu/bin/python --no-deps dist/*.whl


FROM uv AS build-gpu
COPY docker/service-gpu.lock ./
RUN /opt/uv/bin/uv venv --relocatable /opt/kizu \
 && /opt/uv/bin/uv pip install --python /opt/kizu/bin/python --require-hashes -r service-gpu.lock
COPY --from=wheel /src/dist dist
RUN /opt/uv/bin/uv pip install --python /opt/kizu/bin/python --no-deps dist/*.whl


FROM ${PYTHON_IMAGE} AS runtime
ARG UID=1000
RUN groupadd --gid "${UID}" kizu \
 && useradd --uid "${UID}" --gid kizu --no-create-home --home-dir /var/lib/kizu --shell /usr/sbin/nologin kizu \
 && mkdir -p /var/lib/kizu \
 && chown kizu:kizu /var/lib/kizu
ENV PATH=/opt/kizu/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    KIZU_DATA_DIR=/var/lib/kizu \
    KIZU_HOST=0.0.0.0 \
    KIZU_PORT=8000 \
    KIZU_DRAIN_SECONDS=5
WORKDIR /var/lib/kizu
EXPOSE 8000
USER ${UID}
# /healthz, not /readyz: orchestrators replace a container that is unhealthy. A service that drains, waits for its
# database or has no usable champion answers 503 on /readyz, and no new container would cure that. Who sends requests
# asks /readyz, as the proxy does.
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s --retries=3 \
  CMD ["python", "-c", "import http.client, os, sys; c = http.client.HTTPConnection('127.0.0.1', int(os.environ['KIZU_PORT']), timeout=4); c.request('GET', '/healthz'); sys.exit(c.getresponse().status != 200)"]
ENTRYPOINT ["kizu"]
CMD ["serve"]


FROM runtime AS gpu
COPY --from=build-gpu /opt/kizu /opt/kizu
# "cuda" instead of "auto": where CUDA cannot be used, the service says so and ends instead of scoring on the CPU.
ENV KIZU_DEVICE=cuda \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility


FROM runtime AS cpu
COPY --from=build-cpu /opt/kizu /opt/kizu
ENV KIZU_DEVICE=cpu
