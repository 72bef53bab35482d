# A worker of Dataflow; docs/dataflow.md builds it, in the root of the checkout:
#   docker build -f docker/worker.Dockerfile -t worker:cpu .
#   docker build -f docker/worker.Dockerfile --build-arg 'EXTRA=[dicom,gpu]' -t worker:gpu .
# Python and Beam must be those of the machine that submits.
FROM apache/beam_python3.11_sdk:2.77.0 AS beam

FROM python:3.11-slim
# Extras of setup.py. Without `dicom` a worker rejects every DICOM file.
ARG EXTRA="[dicom]"
# Two steps, so that a change of code does not send gigabytes of wheels again. The first
# installs the packages as empty ones.
WORKDIR /opt/prescreen
COPY setup.py constraints.txt docker/gpu-constraints.txt ./
RUN mkdir schemas model pipeline jobs \
    && pip install --no-cache-dir -c constraints.txt -c gpu-constraints.txt ".${EXTRA}"
COPY schemas schemas
COPY model model
COPY pipeline pipeline
COPY jobs jobs
RUN pip install --no-cache-dir --no-deps --force-reinstall . && pip check

# Where Dataflow lays the driver of a GPU.
ENV LD_LIBRARY_PATH=/usr/local/nvidia/lib64
# A process a vCPU: a thread each, and the memory of a batch is kept for the next.
ENV TF_NUM_INTRAOP_THREADS=1 TF_CPU_ALLOCATOR_USE_BFC=true TF_CPP_MIN_LOG_LEVEL=2

# Beam's launcher: it asks the runner what to do and starts Beam's worker, which finds
# prescreen installed.
COPY --from=beam /opt/apache/beam /opt/apache/beam
ENTRYPOINT ["/opt/apache/beam/boot"]
