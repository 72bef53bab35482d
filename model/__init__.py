"""Decode, score, explain, train: everything that needs no pipeline.

* `model.decoding`: PNG and JPEG bytes to grey, strictly.
* `model.preprocessing`: grey to the network's input, one way for all.
* `model.network`: EfficientNetB0 with the head and the scaling of this project.
* `model.gradcam`: class activation maps in closed form.
* `model.folding`: batch normalisations into convolutions.
* `model.scorer`: the frozen graph, precision, memory back-off.
* `model.tta`: the six views of test-time augmentation.
* `model.bundle`: a network on disk with everything needed to believe its scores.
* `model.thresholds`: choosing and applying thresholds.
* `model.overlays`: drawing activation maps over images.
* `model.training`, `model.finishing`: a network from labelled images, then a bundle.
* `model.phantoms` with `phantom_canvas` and `phantom_findings`, `model.sample_archive`:
  synthetic radiographs.

Imports NumPy, Pillow and Keras, never Beam.
"""
