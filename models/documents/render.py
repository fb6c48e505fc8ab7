"""Draws a page with Pillow."""

from __future__ import annotations

from PIL import Image, ImageDraw

from models.documents.layouts import stamp
from models.documents.page import Page


def render_page(page: Page) -> Image.Image:
    """The page as an RGB image of `page.width x page.height` pixels."""
    image = Image.new("RGB", (page.width, page.height), page.paper)
    draw = ImageDraw.Draw(image)
    for box in page.boxes:
        edges = (round(box.left), round(box.top), round(box.right), round(box.bottom))
        if box.radius:
            draw.rounded_rectangle(edges, round(box.radius), fill=box.fill, outline=box.outline)
        else:
            draw.rectangle(edges, fill=box.fill, outline=box.outline)
    for text in page.texts:
        tile = stamp(text.text, text.font, text.size, text.stretch)
        image.paste(text.ink, (round(text.left), round(text.middle - tile.height / 2)), tile)
    return image
