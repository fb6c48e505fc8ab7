"""Answers requests with a bundle."""

from foveate.runtime.budget import Budget
from foveate.runtime.frames import FRAME_RULES
from foveate.runtime.grammar import Grammar, GrammarState
from foveate.runtime.images import ImageLimits, ImageSource, open_image
from foveate.runtime.pipeline import Pipeline, load
from foveate.runtime.prepare import Preparer
from foveate.runtime.processors import PROCESSORS
from foveate.runtime.resolution import Resized
from foveate.runtime.sampling import Sampler, Sampling
from foveate.runtime.scheduler import Engine, EngineOptions, EngineStats, Ticket
from foveate.runtime.select import SELECTORS, Policy, Relevance, Selection, Selector, open_selector, top_k
from foveate.runtime.stages import Timings
from foveate.runtime.stream import Stream
from foveate.runtime.types import Answer, Chunk, Encoded, Layout, Message, Prepared, Request, TokenLogprob, Visual
from foveate.runtime.video import Clip, VideoLimits, VideoSource, open_video
from foveate.runtime.vision_cache import CacheStats, VisionCache

__all__ = [
    "FRAME_RULES",
    "PROCESSORS",
    "SELECTORS",
    "Answer",
    "Budget",
    "CacheStats",
    "Chunk",
    "Clip",
    "Encoded",
    "Engine",
    "EngineOptions",
    "EngineStats",
    "Grammar",
    "GrammarState",
    "ImageLimits",
    "ImageSource",
    "Layout",
    "Message",
    "Pipeline",
    "Policy",
    "Prepared",
    "Preparer",
    "Relevance",
    "Request",
    "Resized",
    "Sampler",
    "Sampling",
    "Selection",
    "Selector",
    "Stream",
    "Ticket",
    "Timings",
    "TokenLogprob",
    "VideoLimits",
    "VideoSource",
    "VisionCache",
    "Visual",
    "load",
    "open_image",
    "open_selector",
    "open_video",
    "top_k",
]
