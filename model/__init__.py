"""Decode, score, explain, train: everything that needs no pipeline.

* `model.preprocessing`: bytes to the network's input, one way for all.
* `model.network`: EfficientNetB0 with the head and the scaling of this project.
* `model.gradcam`: class activation maps in closed form.
* `model.scorer`: the frozen graph, test-time augmentation, precision, memory back-off.
* `model.bundle`: a network on disk with everything needed to believe its scores.
* `model.thresholds`: choosing and applying thresholds.
* `model.overlays`: drawing activation maps over images.
* `model.training`: a network from labelled images.
* `model.phantoms`, `model.sample_archive`: synthetic radiographs.

Imports NumPy, Pillow and Keras, never Beam.
"""
