# Runs the daemon. CUDA comes with the wheels; the host needs the NVIDIA container toolkit and nothing else.
FROM python:3.12-slim-bookworm AS build
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY cld_stream ./cld_stream
RUN python -m venv /opt/cld-stream
RUN /opt/cld-stream/bin/pip install --no-cache-dir .

FROM python:3.12-slim-bookworm
COPY --from=build /opt/cld-stream /opt/cld-stream
ENV PATH=/opt/cld-stream/bin:$PATH CLD_STREAM_STORE=/store PYTHONUNBUFFERED=1
RUN useradd --create-home --uid 10001 cld
RUN mkdir -p /store && chown cld:cld /store
USER cld
VOLUME /store
STOPSIGNAL SIGTERM
# Where train answers or, in a container of its own, ingest.
ENV CLD_STREAM_TRAIN_PORT=9464 CLD_STREAM_INGEST_PORT=9464
HEALTHCHECK --interval=60s --timeout=10s --start-period=120s \
  CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:9464/healthz', timeout=5)"]
ENTRYPOINT ["cld-stream"]
CMD ["train"]
