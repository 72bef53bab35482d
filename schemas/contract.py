"""What the network is fed: the preprocessing contract, and the views of augmentation."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class InputContract:
    """What the network expects, stored in a bundle and compared at load.

    Attributes:
      name: Names the whole procedure; changes whenever a pixel would. v2 decodes large
        JPEGs at a reduced scale.
      size: Height and width of the square input, in pixels.
      channels: 1, grey; the graph itself makes three of it.
      value_range: Lowest and highest input value; the graph itself rescales.
      fit: How an image that is not square is made so. `stretch` ignores the
        aspect ratio, as the NIH did to 1024x1024.
      interpolation: The resampling filter.
    """

    name: str = "grey-stretch-224-v2"
    size: int = 224
    channels: int = 1
    value_range: tuple[int, int] = (0, 255)
    fit: str = "stretch"
    interpolation: str = "bilinear-antialias"

    def to_json(self) -> dict:
        """Returns the contract as JSON values."""
        return {**dataclasses.asdict(self), "value_range": list(self.value_range)}


STANDARD_CONTRACT = InputContract()
"""The one contract that `model.preprocessing` implements."""

VIEWS = ("original", "flip", "brighter", "darker", "more_contrast", "less_contrast")
"""The six views that test-time augmentation averages."""

VIEW_BRIGHTNESS = 0.05
"""What a view adds to each grey level or takes away, as a share of the full range."""

VIEW_CONTRAST = 0.05
"""Share by which a view's distances from its mean grow or shrink."""
