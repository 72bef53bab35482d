"""Beam's way: RunInference with Beam's own TensorFlow handler, then WriteToParquet.

The handler loads `model.keras` itself. Its default inference function would call the
network layer by layer, at a fraction of the speed; it is given Keras'
`predict_on_batch`, which runs a graph. Minimum and maximum batch size are the same,
or a local run would get batches of a few. The rows are reshuffled first, which spreads
them over a worker thread a core; the worker threads share the network.

Beam loads the network when it sets up the workers of a pipeline, before they read; the
handler here also calls it then. So this is start-up, as is building the pipeline, and
the clock starts with the first image read.
"""

import os
from collections.abc import Iterable, Sequence

import apache_beam as beam
import keras
import numpy as np
import peer
from apache_beam.ml.inference.base import KeyedModelHandler, PredictionResult, RunInference
from apache_beam.ml.inference.tensorflow_inference import TFModelHandlerNumpy
from apache_beam.options.pipeline_options import PipelineOptions


class WarmModelHandler(TFModelHandlerNumpy):
    """Beam's handler, which calls the network before it hands it out."""

    def __init__(self, network_file: str, batch_size: int):
        super().__init__(
            network_file,
            inference_fn=_predict,
            min_batch_size=batch_size,
            max_batch_size=batch_size,
        )
        self._batch_size = batch_size

    def load_model(self) -> keras.Model:
        """Returns the network, traced for batches of any length."""
        network = super().load_model()
        # Keras traces for one length, and at the second that it sees for all.
        for length in (1, self._batch_size):
            network.predict_on_batch(np.zeros((length, peer.SIZE, peer.SIZE), np.uint8))
        return network


def main() -> None:
    """Scores the images of the manifest."""
    job = peer.parse_job(__doc__)
    handler = WarmModelHandler(job.network_file, job.batch_size)
    with peer.first_read() as clock:
        with beam.Pipeline(options=_options()) as pipeline:
            _ = (
                pipeline
                | beam.Create([(row.image_id, row.uri) for row in job.rows])
                | beam.Reshuffle()
                | "Load" >> beam.MapTuple(lambda id_, uri: (id_, peer.load_square(uri, clock)))
                | RunInference(KeyedModelHandler(handler))
                | "MakeRecords" >> beam.MapTuple(_record)
                | beam.io.WriteToParquet(
                    os.path.join(job.output, "scores"), peer.SCHEMA, file_name_suffix=".parquet"
                )
            )
        peer.report(job, clock.time, ["apache-beam", "tensorflow", "tensorflow-hub", "keras"])


def _options() -> PipelineOptions:
    # Named, because DirectRunner would first look for Prism, and download it.
    return PipelineOptions(
        [
            "--runner=FnApiRunner",
            "--direct_running_mode=multi_threading",
            f"--direct_num_workers={os.cpu_count()}",
            "--no_save_main_session",
        ]
    )


def _predict(
    network: keras.Model,
    batch: Sequence[np.ndarray],
    inference_args: dict,
    model_id: str | None = None,
) -> Iterable[PredictionResult]:
    """Returns the scores of a batch; the signature is the handler's."""
    scores = network.predict_on_batch(np.stack(batch))
    return [
        PredictionResult(square, row, model_id) for square, row in zip(batch, scores, strict=True)
    ]


def _record(image_id: str, prediction: PredictionResult) -> dict:
    scores = prediction.inference.tolist()
    return {"image_id": image_id, **dict(zip(peer.SCORE_COLUMNS, scores, strict=True))}


if __name__ == "__main__":
    main()
