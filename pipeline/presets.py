"""What a run on rented machines asks for, under a name: data, and nothing that runs.

Whatever the user gives beside a preset takes the place of what the preset says.
"""

import dataclasses
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class Preset:
    """What one kind of worker needs.

    Attributes:
      runner: The runner that it is for.
      needs: Beam options that only the user can give.
      beam_args: Beam options, each as `--name=value`.
      resource_hints: Of the one stage that decodes and infers; the other stages run on the
        machine type of `beam_args`.
      batch_size: Images a batch; the submitting machine cannot tell what suits a worker.
      precision: What `auto` is on the workers, for the same reason.
      decode_threads: Images that a harness thread of a worker decodes at once.
    """

    runner: str
    needs: tuple[str, ...]
    beam_args: tuple[str, ...]
    resource_hints: Mapping[str, str]
    batch_size: int
    precision: str
    decode_threads: int


_DATAFLOW_NEEDS = ("project", "region", "temp_location", "sdk_container_image")

PRESETS = {
    # Dataflow starts a process a vCPU here, each with its own network: 1.7 GB at its highest.
    "dataflow-cpu": Preset(
        runner="DataflowRunner",
        needs=_DATAFLOW_NEEDS,
        beam_args=(
            "--machine_type=n2-standard-4",
            "--disk_size_gb=50",
            "--max_num_workers=16",
            "--autoscaling_algorithm=THROUGHPUT_BASED",
            # One reads and decodes while the network of the other is busy.
            "--number_of_worker_harness_threads=2",
            # Else the workers install what the image already holds.
            "--sdk_location=container",
        ),
        resource_hints={},
        batch_size=32,
        precision="float32",
        decode_threads=1,
    ),
    "dataflow-gpu": Preset(
        runner="DataflowRunner",
        needs=_DATAFLOW_NEEDS,
        beam_args=(
            # Of the workers that only read and shuffle the manifest's rows.
            "--machine_type=n2-standard-2",
            # The driver and the image with CUDA take some 15 GB of it.
            "--disk_size_gb=100",
            "--max_num_workers=4",
            "--autoscaling_algorithm=THROUGHPUT_BASED",
            # The GPU's memory holds one network, so one process; threads keep it fed.
            "--experiments=no_use_multiple_sdk_containers",
            "--number_of_worker_harness_threads=4",
            "--sdk_location=container",
        ),
        resource_hints={
            # An L4 comes with machines of type G2 only.
            "accelerator": "type:nvidia-l4;count:1;machine_type:g2-standard-8;"
            "install-nvidia-driver",
            "min_ram": "24GB",
        },
        batch_size=512,
        precision="mixed_float16",
        decode_threads=2,
    ),
}
