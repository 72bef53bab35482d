"""The Beam pipeline from a manifest to published Parquet.

* `pipeline.manifest`, `pipeline.listing`: reading a manifest, and making one.
* `pipeline.images`: `LoadImages`, reading and decoding ahead of the network.
* `pipeline.scoring`: `ScoreImages`, batches through the frozen graph.
* `pipeline.rows`: `ApplyThresholds`, a row of the scores table an image.
* `pipeline.staging`: `StageRows`, durable parts that the commit reads back.
* `pipeline.archive`: the pipeline of these, local in waves or whole on a cluster.
* `pipeline.commit`: reconciling, ranking, drawing, compacting and publishing.

Imports `model` and `schemas`; knows nothing of the command line.
"""
