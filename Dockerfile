# The service, without weights: mount the models that `dvc repro` or `dvc pull` left (serve/deploy/README.md).
#   docker build -t intent-classifier:encoder --target encoder .
#   make export && docker build -t intent-classifier:student --target student .
#   docker build -t intent-classifier:cpu .
#   docker build -t intent-classifier:gpu --build-arg HARDWARE=gpu .
#   docker build -t intent-classifier:cpu-ray --build-arg EXTRAS="s3 ray" .
ARG HARDWARE=cpu
ARG PYTHON=3.11

FROM python:${PYTHON}-slim-bookworm AS build
ARG HARDWARE
WORKDIR /build
COPY pyproject.toml requirements-${HARDWARE}.lock setup.sh ./
RUN PYTHON=python3 VENV=/opt/venv HARDWARE=${HARDWARE} PIP_NO_CACHE_DIR=1 sh setup.sh
ARG EXTRAS=s3
COPY requirements-s3.lock requirements-ray.lock ./
RUN set -e; for extra in ${EXTRAS}; do \
    /opt/venv/bin/python -m pip install --no-cache-dir --no-deps --require-hashes -r "requirements-${extra}.lock"; done

# libnuma1: vLLM's CPU kernels. wget: KubeRay's probes. util-linux (setpriv) is there already.
FROM python:${PYTHON}-slim-bookworm AS cpu
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends libnuma1 tini wget && rm -rf /var/lib/apt/lists/*

# gcc and the C library's headers: Triton compiles its launchers. The CUDA libraries come with the wheels, the driver from the host.
FROM cpu AS gpu
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility

# A student that runs in the process: mount its folder, such as models/export/encoder, at /app/student. Tests of packages are left out.
FROM python:${PYTHON}-slim-bookworm AS encoder
RUN useradd --uid 10001 --user-group --create-home service && install -d -o service -g service /app/.cache
WORKDIR /app
COPY requirements-serve.lock ./
RUN pip install --no-cache-dir --no-deps --require-hashes -r requirements-serve.lock \
    && find /usr/local/lib/python3*/site-packages -type d -name tests -prune -exec rm -r {} +
COPY params.yaml ./
COPY stages stages
COPY serve serve
ENV PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
USER 10001:10001
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/readyz', timeout=4)"]
STOPSIGNAL SIGTERM
CMD ["python", "-m", "serve", "--host", "0.0.0.0", "--port", "8000", "--student", "/app/student"]

# The same with the student of `make export` in it.
FROM encoder AS student
COPY models/export/encoder student

# hadolint ignore=DL3006
FROM ${HARDWARE}
RUN useradd --uid 10001 --user-group --create-home service \
    && install -d -o service -g service /app /app/.cache /app/models
COPY --from=build /opt/venv /opt/venv
WORKDIR /app
COPY params.yaml dvc.yaml dvc.lock ./
COPY .dvc/config .dvc/config
COPY stages stages
COPY serve serve
ENV PATH=/opt/venv/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
USER 10001:10001
EXPOSE 8000
VOLUME ["/app/.cache"]
# Ready when a real query has passed through the engine; a large model takes minutes to load.
HEALTHCHECK --interval=10s --timeout=5s --start-period=15m --retries=3 \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/readyz', timeout=4)"]
STOPSIGNAL SIGTERM
# tini: an engine that died leaves workers, which process 1 has to reap. Keys come at run time, in SERVE_API_KEYS.
ENTRYPOINT ["tini", "--"]
CMD ["python", "-m", "serve", "--host", "0.0.0.0", "--port", "8000"]
