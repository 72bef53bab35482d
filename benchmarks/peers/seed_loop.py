"""The seed's way: one image at a time through `model.predict`.

Each image is loaded as RGB, resized to the network's input and predicted as a batch
of one. The network takes grey, so it gets the red channel; the three are equal in a
grey image. The first prediction is made before the clock starts. The scores are
written once, at the end. `--batch-size` is ignored.
"""

import time

import keras
import numpy as np
import peer

from model.bundle import load_network


def main() -> None:
    """Scores the images of the manifest, one after another."""
    job = peer.parse_job(__doc__)
    network = load_network(job.model)
    network.predict(np.zeros((1, peer.SIZE, peer.SIZE), np.uint8), verbose=0)
    began = time.time()
    scores = [_predict(network, row.uri) for row in job.rows]
    peer.write_scores(job.output, job.rows, np.concatenate(scores))
    peer.report(job, began, ["keras", "tensorflow"])


def _predict(network: keras.Model, uri: str) -> np.ndarray:
    """Returns float32 `(1, 15)`."""
    image = keras.utils.load_img(uri, target_size=(peer.SIZE, peer.SIZE), interpolation="bilinear")
    pixels = keras.utils.img_to_array(image, dtype=np.uint8)
    return network.predict(pixels[np.newaxis, :, :, 0], verbose=0)


if __name__ == "__main__":
    main()
