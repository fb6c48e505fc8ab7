"""From a request to what the graphs are fed: images to patches, messages to token ids and positions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tokenizers import Tokenizer

from foveate.engines import PromptEntry
from foveate.runtime.images import ImageLimits, open_image
from foveate.runtime.processors import open_processor
from foveate.runtime.prompt import PromptEncoder, collect_images, find_instruction
from foveate.runtime.types import Prepared, Request


class Preparer:
    """Prepares requests for one model.

    Args:
        family: the manifest's `family`.
        prompt: the manifest's `prompt`.
        constants: the manifest's `processor`.
        tokenizer: the model's tokenizer.
        limits: which images are too large.

    Raises:
        BundleError: unknown family, processor constants or chat template.
    """

    def __init__(
        self,
        family: str,
        prompt: PromptEntry,
        constants: Mapping[str, Any],
        tokenizer: Tokenizer,
        limits: ImageLimits | None = None,
    ) -> None:
        self._encoder = PromptEncoder(prompt, tokenizer)
        self._processor = open_processor(family, constants)
        self._limits = limits or ImageLimits()

    def __call__(self, request: Request) -> Prepared:
        """The request, unpruned.

        Raises:
            RequestError: images or messages that can't be used.
        """
        encoded = self._encoder.encode(request.messages)
        sources = collect_images(request.messages, request.images)
        visuals = tuple(self._processor.image(open_image(source, self._limits)) for source in sources)
        layout = self._processor.layout(encoded.input_ids, visuals)
        instruction, note = find_instruction(encoded.user_text, layout.visual_indices, len(layout.input_ids))
        return Prepared(layout, visuals, instruction, note)
