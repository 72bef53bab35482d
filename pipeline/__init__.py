"""The Beam pipeline from a manifest to published Parquet.

* `pipeline.run`: one run, from options (`score_options`) by way of what they mean (`setting_up`) to
  a published record.
* `pipeline.manifest`, `pipeline.manifest_formats`, `pipeline.uris`: checking a manifest.
* `pipeline.listing`: making one from folders and globs (`source_paths`), and from headers of DICOM
  files (`dicom_listing`), with ids hashed (`hash_key`).
* `pipeline.starting`, `pipeline.lock`, `pipeline.settings`, `pipeline.run_state`: which run a
  start works on, alone, and under which settings.
* `pipeline.planning`: which images no earlier attempt and no published run holds.
* `pipeline.images`: `LoadImages`, reading and decoding ahead of the network, by way of
  `read_ahead`, `watch`, `budget` and `source`.
* `pipeline.scoring`: `ScoreImages`, batches through the frozen graph.
* `pipeline.rows`: `ApplyThresholds`, a row of the scores table an image.
* `pipeline.staging`: `StageRows`, durable parts that the commit reads back.
* `pipeline.archive`: the pipeline of these, local in waves or whole on a cluster; the waves
  may go to several processes (`pipeline.workers`).
* `pipeline.runner`, `pipeline.presets`: which Beam runner, and what rented workers need.
* `pipeline.commit`: from staged parts to a published run, by way of `ledger`,
  `drawing`, `compaction`, `worklist`, `record` and `publishing`.
* `pipeline.dicom_writing`: what was drawn as DICOM objects, into the folder of a reading room
  (`reading_room`).
* `pipeline.report`: the HTML of a run, by way of `report_tables`, `contact_sheet`, `comparison`
  with an earlier run, and `measured` against labels; `pipeline.reporting`: of a published one.
* `pipeline.run_listing`, `pipeline.verification`: what is in OUTPUT, and whether it still is
  what was published.
* `pipeline.preparation`, `pipeline.train`: labelled images for training.
* `pipeline.benchmark`, by way of `workbench` and `peers`: rates of this machine, beside other
  programs; `pipeline.cost_model`: what an archive takes at them.
* `pipeline.forecast`: what a run would do and take, by way of `shadow`, `sampling`, `reckoning`
  and `prices`.

Imports `model` and `schemas`; knows nothing of the command line.
"""
