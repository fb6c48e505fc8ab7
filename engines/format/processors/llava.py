"""LLaVA-1.5: one square an image, each of its patches a visual token."""

from __future__ import annotations

from typing import ClassVar

from foveate.engines.format.manifest import TokenId
from foveate.engines.format.processors.pixels import Side, SquareConstants, mean_colour


class LlavaConstants(SquareConstants, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`manifest.processor` of a LLaVA-1.5 bundle.

    Attributes:
        size: of the resized image: its shorter side, or its height and width; empty for a shorter side of `image_size`.
        do_center_crop: whether the middle square is cut out of it, on black where it is smaller.
        do_pad: whether the image is first put into the middle of a square of the mean colour.
        image_token_id: the placeholder of images.
    """

    title: ClassVar[str] = "LLaVA-1.5"

    image_token_id: TokenId
    size: tuple[Side, ...] = ()
    do_center_crop: bool = True
    do_pad: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.size) > 2:
            raise ValueError("size has more than two sides")
        if self.do_pad:
            mean_colour(self.image_mean)
