"""From a request to what the graphs are fed: images and videos to patches, messages to token ids and positions."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import numpy as np
from tokenizers import Tokenizer

from foveate.engines import MachineError, PromptEntry
from foveate.engines.format.processors.pixels import PixelConstants
from foveate.runtime.encoding.part import Runs, plan_runs
from foveate.runtime.encoding.redundancy import find_sources
from foveate.runtime.frames import RULES_WITHOUT_RATE
from foveate.runtime.images import ImageLimits, ImageSource, open_image
from foveate.runtime.processors import Foveal, Tiled, open_processor
from foveate.runtime.prompt import EncodedPrompt, PromptEncoder, collect_visuals, find_instruction
from foveate.runtime.types import Prepared, Request, Visual
from foveate.runtime.video import VideoLimits, VideoSource, is_given_frames, open_frames

_WHOLE_PICTURES = "the vision tower of this family takes whole pictures"
_NO_GLANCE = "the pictures of this family are too small for a glance to pay"
_NO_TILES = "the visual tokens of this family are no tiles of pixels"
_MOST_GIVEN_FRAMES = 32
"""How many frames may be given one by one where the request sets no number."""


class Preparer:
    """Prepares requests for one model.

    Args:
        family: the manifest's `family`.
        prompt: the manifest's `prompt`.
        constants: the manifest's `processor`, read.
        tokenizer: the model's tokenizer.
        limits: which images are too large.
        video_limits: which videos are.

    Raises:
        BundleError: unknown chat template.
    """

    def __init__(
        self,
        family: str,
        prompt: PromptEntry,
        constants: PixelConstants,
        tokenizer: Tokenizer,
        limits: ImageLimits | None = None,
        video_limits: VideoLimits | None = None,
    ) -> None:
        self._encoder = PromptEncoder(prompt, tokenizer)
        self._processor = open_processor(family, constants)
        self._limits = limits or ImageLimits()
        self._video_limits = video_limits or VideoLimits()

    def __call__(self, request: Request) -> Prepared:
        """The request, unpruned.

        Raises:
            RequestError: images, videos or messages that can't be used.
            MissingPackageError: no package that reads videos is installed.
            MachineError: there is not enough memory for the images and videos.
        """
        try:
            return self._prepare(request)
        except MemoryError as error:
            raise MachineError(
                "there is not enough memory to prepare the request. Send smaller images, or free memory."
            ) from error

    def _prepare(self, request: Request) -> Prepared:
        prompt = self._encoder.encode_raw(request.messages) if request.raw else self._encoder.encode(request.messages)
        return self._lay_out(prompt, self._visuals(request, prompt))

    def glance(self, request: Request, prepared: Prepared) -> Prepared | str:
        """The same request with small pictures; or why there are none."""
        processor = self._processor
        if not isinstance(processor, Foveal):
            return _NO_GLANCE if isinstance(processor, Tiled) else _WHOLE_PICTURES
        glances = []
        for visual in prepared.visuals:
            glance = processor.glance(visual)
            if isinstance(glance, str):
                return glance
            glances.append(glance)
        return self._lay_out(self._encoder.encode(request.messages), tuple(glances))

    def sources(self, prepared: Prepared, tolerance: int) -> np.ndarray | str:
        """`[visual_tokens]` int64: which visual token stands for each, see `find_sources`, counted over all; or why it can't be
        said."""
        processor = self._processor
        if not isinstance(processor, Tiled):
            return _NO_TILES if isinstance(processor, Foveal) else _WHOLE_PICTURES
        found: list[np.ndarray] = []
        for cells in chain.from_iterable(processor.cells(visual) for visual in prepared.visuals):
            found.append(find_sources(cells, tolerance) + sum(map(len, found)))
        return np.concatenate(found)

    def enlarge(self, scores: np.ndarray, small: Sequence[Visual], whole: Sequence[Visual]) -> np.ndarray:
        """Scores of all small pictures at the places of the large ones' visual tokens; see `Foveal.enlarge`."""
        ends = np.cumsum([visual.num_tokens for visual in small])[:-1]
        parts = zip(np.split(scores, ends), small, whole, strict=True)
        return np.concatenate([self._foveal.enlarge(own, glance, visual) for own, glance, visual in parts])

    def runs(self, prepared: Prepared, tokens: np.ndarray, seen: Sequence[int] = ()) -> Runs:
        """How some of all visual tokens come about; see `plan_runs`."""
        processor = self._processor
        assert isinstance(processor, Foveal | Tiled)  # or there would be nothing to choose by
        return plan_runs(tokens, prepared.visuals, processor.part, seen)

    @property
    def glance_stays(self) -> bool:
        """See `Foveal.glance_stays`."""
        return self._foveal.glance_stays

    @property
    def _foveal(self) -> Foveal:
        assert isinstance(self._processor, Foveal)  # or there would be no glance to choose by
        return self._processor

    @property
    def most_pixels(self) -> int | None:
        """See `Processor.most_pixels`."""
        return self._processor.most_pixels

    def _visuals(self, request: Request, prompt: EncodedPrompt) -> tuple[Visual, ...]:
        """What the pixels give, in the order of the placeholders."""
        sources = collect_visuals(request.messages, request.images, request.videos, prompt.placeholders)
        alone = [kind for kind, _ in sources].count("image") == 1
        return tuple(
            self._image(source, request, alone) if kind == "image" else self._video(source, request) for kind, source in sources
        )

    def _lay_out(self, prompt: EncodedPrompt, visuals: tuple[Visual, ...]) -> Prepared:
        """The prompt with room for these visual tokens."""
        layout = self._processor.layout(prompt.input_ids, visuals)
        instruction, note = find_instruction(prompt.user_text, layout.visual_indices, len(layout.input_ids))
        return Prepared(layout, visuals, instruction, note)

    def _image(self, source: ImageSource, request: Request, alone: bool) -> Visual:
        return self._processor.image(open_image(source, self._limits), alone, request.resolution)

    def _video(self, source: VideoSource, request: Request) -> Visual:
        usual = self._processor.frame_defaults
        rule, fps, most = request.frame_rule or usual.rule, request.fps or usual.fps, usual.max_frames
        if request.fps is not None and request.frame_rule is None and rule in RULES_WITHOUT_RATE:
            rule = "interval"
        if is_given_frames(source):
            fps, most = request.fps or 1.0, max(_MOST_GIVEN_FRAMES, usual.max_frames)
        max_frames = request.max_frames or min(most, self._video_limits.max_frames)
        with open_frames(source, fps, max_frames, self._video_limits, rule) as (frames, seconds):
            return self._processor.video(frames, seconds, request.resolution)
