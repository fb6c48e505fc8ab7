"""Answers requests with a bundle."""

from foveate.runtime.budget import Budget
from foveate.runtime.images import ImageLimits, ImageSource, open_image
from foveate.runtime.pipeline import Pipeline, load
from foveate.runtime.processors import PROCESSORS
from foveate.runtime.sampling import Sampler, Sampling
from foveate.runtime.select import Policy, Relevance, Selection, top_k
from foveate.runtime.stream import Stream
from foveate.runtime.types import Answer, Chunk, Layout, Message, Prepared, Request, Timings, Visual

__all__ = [
    "PROCESSORS",
    "Answer",
    "Budget",
    "Chunk",
    "ImageLimits",
    "ImageSource",
    "Layout",
    "Message",
    "Pipeline",
    "Policy",
    "Prepared",
    "Relevance",
    "Request",
    "Sampler",
    "Sampling",
    "Selection",
    "Stream",
    "Timings",
    "Visual",
    "load",
    "open_image",
    "top_k",
]
