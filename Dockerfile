# Two images from one file:
#   docker build -t kronserve:cpu .                   CPU only (the default)
#   docker build -t kronserve:cuda --target cuda .    with CUDA's libraries; the host brings the driver and the toolkit
# BASE_IMAGE is any Debian-like root with python3 (3.11 or newer), pip and venv. A private package index goes in as the
# secret `pip_conf` (--secret id=pip_conf,src=/etc/pip.conf) and stays out of every layer.
ARG BASE_IMAGE=python:3.12-slim-bookworm

# Stages that run something; of these, only what is copied below reaches an image.
FROM ${BASE_IMAGE} AS venv
RUN python3 -m venv --without-pip /opt/kronserve \
 && groupadd --gid 10001 kronserve \
 && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin kronserve
WORKDIR /src

# The dependencies come from the lock alone, so that a change of code does not install them again. pip takes no file whose
# hash is not in it, and nothing that it does not name.
FROM venv AS dependencies
COPY requirements/serve.txt requirements/
RUN --mount=type=secret,id=pip_conf,target=/etc/pip.conf \
    --mount=type=cache,target=/root/.cache/pip \
    python3 -m pip --python /opt/kronserve/bin/python install --only-binary :all: --require-hashes -r requirements/serve.txt

# The CUDA provider alone is 284 MB, and a CPU image never loads it.
FROM dependencies AS dependencies-cpu
RUN cd /opt/kronserve/lib/python3*/site-packages/onnxruntime/capi \
 && rm -f libonnxruntime_providers_cuda.so libonnxruntime_providers_tensorrt.so

# onnxruntime-gpu's extras name the CUDA and cuDNN releases it was built for. They get a layer of their own: they are
# most of the image and change with ONNX Runtime only.
FROM dependencies AS cuda-libraries
COPY requirements/cuda.txt requirements/
RUN --mount=type=secret,id=pip_conf,target=/etc/pip.conf \
    --mount=type=cache,target=/root/.cache/pip \
    python3 -m pip --python /opt/kronserve/bin/python install --only-binary :all: --require-hashes -r requirements/cuda.txt \
 && packages=$(/opt/kronserve/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))") \
 && mkdir -p "/cuda$packages" \
 && mv "$packages"/nvidia* "/cuda$packages/"

FROM venv AS build
COPY requirements/build.txt requirements/
RUN --mount=type=secret,id=pip_conf,target=/etc/pip.conf \
    --mount=type=cache,target=/root/.cache/pip \
    python3 -m venv --without-pip /opt/build \
 && python3 -m pip --python /opt/build/bin/python install --only-binary :all: --require-hashes -r requirements/build.txt

FROM build AS application
COPY . ./
RUN /opt/build/bin/hatchling build --target wheel --directory /wheels \
 && python3 -m pip --python /opt/kronserve/bin/python install --no-index --no-deps /wheels/*.whl \
 && mv model_repository /models \
 && chmod -R a+rX /models

# What both images share. Nothing runs from here on, so no layer holds anything but what is copied.
FROM ${BASE_IMAGE} AS runtime
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="kronserve" \
      org.opencontainers.image.description="Inference microservice for Kronecker-attention models (KAO, HOT)" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
# ONNX Runtime's Linux wheels report usage to their maker unless told not to. A variable beats a line of a TOML file, so only
# what the image itself decides is one: the ports are the defaults of the service.
ENV PATH=/opt/kronserve/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    ORT_DISABLE_TELEMETRY=1 \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    KRONSERVE_HOST=0.0.0.0 \
    KRONSERVE_REPOSITORY=/models \
    KRONSERVE_CACHE_DIR=/tmp/kronserve
WORKDIR /tmp
EXPOSE 8000 8001
STOPSIGNAL SIGTERM
COPY --chmod=0644 deploy/healthcheck.py /opt/kronserve/healthcheck.py
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s --retries=3 \
  CMD ["python", "-I", "/opt/kronserve/healthcheck.py"]
ENTRYPOINT ["kronserve"]
CMD ["serve"]

FROM runtime AS cuda
# An older driver cannot run these libraries: the container toolkit then refuses to start, instead of a CPU fallback.
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    NVIDIA_REQUIRE_CUDA="cuda>=13.0"
COPY --from=venv /etc/passwd /etc/group /etc/
COPY --from=cuda-libraries /cuda/ /
COPY --from=dependencies /opt/kronserve /opt/kronserve
COPY --from=application /opt/kronserve /opt/kronserve
COPY --from=application /models /models
USER 10001:10001

FROM runtime AS cpu
ENV KRONSERVE_DEVICE=cpu
COPY --from=venv /etc/passwd /etc/group /etc/
COPY --from=dependencies-cpu /opt/kronserve /opt/kronserve
COPY --from=application /opt/kronserve /opt/kronserve
COPY --from=application /models /models
USER 10001:10001
