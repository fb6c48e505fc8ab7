"""Parts of pictures: a tower that sees some cells of a picture, and a text model that gets those visual tokens alone.

Half of the batches stay whole. Of the others some keep objects and texts rather than background, some what one or two questions
need and what lies around it, and some pages all cells that do not repeat a neighbour, as foveated encoding has them.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from models.scenes.batches import IGNORE, Batch

_WHOLE, _OBJECTS, _FOCUS = 0.4, 0.2, 0.3
"""Shares of batches; the rest keeps what does not repeat."""
_PATCHES = 4  # of a cell


def keep_visual_tokens(batch: Batch, kept: Tensor) -> Batch:
    """A batch with its visual tokens number `kept [batch, K]`, ascending, alone, each at its old position."""
    places = torch.arange(batch.visual.shape[1])
    visual, text = places[batch.visual[0]], places[~batch.visual[0]]
    left = torch.cat([visual[kept], text.expand(len(kept), -1)], dim=1).sort().values
    fewer = {name: getattr(batch, name).gather(1, left) for name in ("input_ids", "visual", "labels", "segments")}
    positions = batch.positions.gather(2, left.expand(len(batch.positions), -1, -1))
    return dataclasses.replace(batch, **fewer, positions=positions)


def keep_cells(batch: Batch, kept: Tensor) -> Batch:
    """A batch whose vision graph gets the cells `kept [batch, crops, K]`, ascending, alone, each with its own positions."""
    pixels = batch.feeds["pixel_values"]  # [batch, crops, patches, patch_values]
    count, crops, total = *pixels.shape[:2], pixels.shape[2] // _PATCHES
    cells = pixels.unflatten(2, (total, _PATCHES)).flatten(3)
    seen = cells.gather(2, kept[..., None].expand(-1, -1, -1, cells.shape[3])).view(count, crops, -1, pixels.shape[3])
    positions = batch.feeds["patch_positions"].unflatten(0, (-1, _PATCHES))[:total]
    feeds = {**batch.feeds, "pixel_values": seen, "patch_positions": positions[kept.flatten(0, 1)].flatten(1, 2)}
    flat = (kept + total * torch.arange(crops)[:, None]).flatten(1)
    labels = {
        name: value.gather(1, flat.reshape(*flat.shape, *[1] * (value.dim() - 2)).expand(*flat.shape, *value.shape[2:]))
        for name, value in batch.cells.items()
    }
    return dataclasses.replace(keep_visual_tokens(batch, flat), feeds=feeds, cells=labels)


def draw_part(batch: Batch) -> Batch:
    """The batch, or a part of each of its pictures."""
    mode, share = torch.rand(2).tolist()
    pixels = batch.feeds["pixel_values"]
    count, crops, total = *pixels.shape[:2], pixels.shape[2] // _PATCHES
    random = torch.rand(count, crops, total)
    if mode < _WHOLE:
        return batch
    on_item = (batch.cells["centre"] >= 0).view(count, crops, total)
    if batch.needs is None or mode < _WHOLE + _OBJECTS:
        weights, least = random + 2 * torch.rand(()) * on_item, round((0.35 + 0.65 * share) * total)
    elif mode < _WHOLE + _OBJECTS + _FOCUS or batch.kind != "page":
        asked = int(torch.randint(1, 4, ()))
        batch = _ask_first(batch, asked)
        needed = batch.needs[:, None, :asked].any(dim=2)
        weights = random + 3 * needed - 2 * torch.rand(()) * _distances(needed, batch.feeds["patch_positions"])
        least = max(round((0.12 + 0.5 * share) * total), int(needed.sum(dim=2).max()))
    else:
        fresh = ~repeats(pixels, batch.feeds["patch_positions"])
        weights, least = random + fresh, int(fresh.sum(dim=2).max())
    kept = weights.topk(max(8, least)).indices.sort().values
    part = keep_cells(batch, kept)
    return dataclasses.replace(part, kind=f"{batch.kind}-part")


def _ask_first(batch: Batch, count: int) -> Batch:
    """The first questions of each task alone."""
    labels = batch.labels.masked_fill(batch.segments > count, IGNORE)
    types = batch.types.clone()
    types[:, count:] = -1
    return dataclasses.replace(batch, labels=labels, types=types)


def _distances(needed: Tensor, positions: Tensor) -> Tensor:
    """`[batch, crops, N]`: how far each cell is from the nearest of those `needed`, as a share of the picture's longer side."""
    places = positions[: needed.shape[2] * _PATCHES : _PATCHES].float() / (positions.max() + 1)
    apart = torch.cdist(places, places)
    return torch.where(needed[..., None, :], apart, 1.0).amin(dim=-1)


def repeats(pixels: Tensor, positions: Tensor) -> Tensor:
    """bool `[batch, crops, N]`: cells that equal the one to the left or above, of pixels `[batch, crops, patches, D]`."""
    rows, columns = (int(side) // 2 + 1 for side in positions.amax(dim=0))
    cells = pixels.unflatten(2, (rows, columns, _PATCHES)).flatten(4)
    same = torch.zeros(cells.shape[:-1], dtype=torch.bool)
    same[:, :, :, 1:] |= (cells[:, :, :, 1:] == cells[:, :, :, :-1]).all(dim=-1)
    same[:, :, 1:] |= (cells[:, :, 1:] == cells[:, :, :-1]).all(dim=-1)
    return same.flatten(2)
