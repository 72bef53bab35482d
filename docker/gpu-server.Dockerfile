# One server with NVIDIA GPUs: as many scoring processes as GPUs, each of which sees one.
# Wants the NVIDIA Container Toolkit on the server. In the root of the checkout:
#   docker build -f docker/gpu-server.Dockerfile -t prescreen:gpu .
#   docker run --rm --gpus all --user "$(id -u):$(id -g)" \
#     -v /archive:/archive:ro -v /models:/models:ro -v /results:/results prescreen:gpu \
#     score --manifest /archive/all.csv --output /results --model /models/chest --workers 4
FROM python:3.11-slim
# Two steps, so that a change of code does not send gigabytes of wheels again. The first
# installs the packages as empty ones.
WORKDIR /opt/prescreen
COPY setup.py constraints.txt docker/gpu-constraints.txt ./
RUN mkdir schemas model pipeline jobs \
    && pip install --no-cache-dir -c constraints.txt -c gpu-constraints.txt ".[dicom,gpu]"
COPY schemas schemas
COPY model model
COPY pipeline pipeline
COPY jobs jobs
RUN pip install --no-cache-dir --no-deps --force-reinstall . && pip check

ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
# A user that the image does not know has no other place for its libraries' caches.
ENV HOME=/tmp
WORKDIR /tmp
ENTRYPOINT ["prescreen"]
