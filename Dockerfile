# The service in a container: `docker build --target cpu .`, or `--target gpu` for NVIDIA's GPUs.
# Another bundle: --build-arg BUNDLE=models/NAME/VERSION and SENTIMENT_MODEL__PATH, or mount one.
ARG PYTHON=3.11

FROM python:${PYTHON}-slim-bookworm AS install
WORKDIR /build
# Without pip in it: nothing is installed where it serves.
RUN python -m venv --without-pip /opt/venv
COPY pyproject.toml constraints.txt README.md LICENSE ./
# Libraries go before the program, so that they stay in the build cache when it changes.
RUN mkdir app && touch app/__init__.py

# What pyproject.toml says is installed, and then this program: hadolint cannot know their versions.
FROM install AS install-cpu
# OpenVINO's parts for GPUs and NPUs of other makers are 60 MB that no setting of ours uses.
# hadolint ignore=DL3013
RUN pip --python /opt/venv/bin/python install --no-cache-dir --constraint constraints.txt '.[cpu,tracing]' \
    && rm -f /opt/venv/lib/python*/site-packages/onnxruntime_ep_openvino/cache.json \
             /opt/venv/lib/python*/site-packages/onnxruntime_ep_openvino/libopenvino_intel_[gn]pu_plugin.so
COPY app app
# hadolint ignore=DL3013
RUN pip --python /opt/venv/bin/python install --no-cache-dir --no-deps --force-reinstall .

FROM install AS install-gpu
# hadolint ignore=DL3013
RUN pip --python /opt/venv/bin/python install --no-cache-dir --constraint constraints.txt '.[gpu,tracing]'
COPY app app
# hadolint ignore=DL3013
RUN pip --python /opt/venv/bin/python install --no-cache-dir --no-deps --force-reinstall .

FROM python:${PYTHON}-slim-bookworm AS serve
ARG BUNDLE=models/e5-zh-sentiment/2.1.0
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="chinese-sentiment" \
      org.opencontainers.image.description="Real-time Chinese sentiment: a BERT behind a REST API" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    SENTIMENT_LOG__FORMAT=json \
    SENTIMENT_SERVER__HOST=0.0.0.0
WORKDIR /srv
COPY ${BUNDLE} ${BUNDLE}
# A number, by which Kubernetes can tell that it is not root.
USER 10001:10001
EXPOSE 8000
HEALTHCHECK --interval=15s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as u; u.urlopen(f\"http://127.0.0.1:{os.environ.get('SENTIMENT_SERVER__PORT', 8000)}/health/ready\", timeout=4)"]
ENTRYPOINT ["chinese-sentiment"]
CMD ["serve"]

FROM serve AS gpu
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=install-gpu /opt/venv /opt/venv

# The last one is built where no target is named.
FROM serve AS cpu
COPY --from=install-cpu /opt/venv /opt/venv
