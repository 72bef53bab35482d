"""Spark's way: `predict_batch_udf` over a DataFrame, then Parquet.

`make_predict_fn` loads the network once in each Python worker, of which local mode has
one a core, and Spark makes the batches. What it loads is the frozen graph of this
project on TensorFlow, folded batch normalisations and all, and not Keras' `predict`:
generous to Spark. The images are decoded in the same UDF, from their paths: a UDF of its own would
send every pixel to the JVM and back to a second Python worker.

A first job of a full batch a core, through the same UDF, runs before the clock
starts. Spark reuses the workers, and they keep the network. The clock starts with the
first image read of the second job.
"""

import os
import sys
from collections.abc import Callable, Sequence

import numpy as np
import peer
from pyspark.ml.functions import predict_batch_udf
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import FloatType, StructField, StructType

_CORES = os.cpu_count()
_TASKS_PER_CORE = 2
"""At the lower end of the two to three that Spark's tuning guide recommends."""


def main() -> None:
    """Scores the images of the manifest."""
    job = peer.parse_job(__doc__)
    spark = _start_spark()
    with peer.first_read() as clock:
        score = predict_batch_udf(
            lambda: _make_predict(job, clock),
            return_type=StructType([StructField(name, FloatType()) for name in peer.SCORE_COLUMNS]),
            batch_size=job.batch_size,
        )
        warm_up = _scored(spark, job.warm_up_rows * _CORES, _CORES, score)
        warm_up.write.format("noop").mode("overwrite").save()
        clock.forget()
        scored = _scored(spark, job.rows, _CORES * _TASKS_PER_CORE, score)
        # The folder exists, and is empty.
        scored.write.mode("append").parquet(job.output)
        peer.report(job, clock.time, ["pyspark", "tensorflow", "keras"])
    spark.stop()


def _start_spark() -> SparkSession:
    # Otherwise the workers run the first python3 on the path.
    os.environ["PYSPARK_PYTHON"] = sys.executable
    spark = (
        SparkSession.builder.master(f"local[{_CORES}]")
        .config("spark.ui.enabled", "false")
        .config("spark.python.worker.reuse", "true")
        .getOrCreate()
    )
    # The workers do not have this folder on their path.
    spark.sparkContext.addPyFile(peer.__file__)
    return spark


def _make_predict(job: peer.Job, clock: peer.FirstRead) -> Callable:
    """Returns the function that a worker calls for each batch of paths."""
    score_squares = peer.load_frozen(job.model, job.batch_size)

    def predict(uris: np.ndarray) -> dict[str, np.ndarray]:
        squares = np.stack([peer.load_square(uri, clock) for uri in uris])
        return peer.score_columns(score_squares(squares))

    return predict


def _scored(
    spark: SparkSession, rows: Sequence[peer.Row], tasks: int, score: Callable[..., Column]
) -> DataFrame:
    """Returns ids and scores, not yet computed."""
    images = spark.createDataFrame(
        [(row.image_id, row.uri) for row in rows], "image_id string, uri string"
    )
    scored = images.repartition(tasks).select("image_id", score(F.col("uri")).alias("scores"))
    return scored.select("image_id", "scores.*")


if __name__ == "__main__":
    main()
