"""The checkpoints that can be trained, one module a family."""

from __future__ import annotations

from importlib import import_module

from models.scenes.learners.learner import Learner

LEARNERS = {
    "llava-onevision-tiny": "models.scenes.learners.llava_onevision:LlavaOnevisionLearner",
    "qwen2-vl-dense-tiny": "models.scenes.learners.qwen2_vl:DenseLearner",
    "qwen2-vl-foveal-tiny": "models.scenes.learners.qwen2_vl:FovealLearner",
    "qwen2-vl-tiny": "models.scenes.learners.qwen2_vl:Qwen2VLLearner",
    "vila1.5-tiny": "models.scenes.learners.llava_llama:LlavaLlamaLearner",
}
"""Name of a reference checkpoint -> `module:class`."""


def new_learner(name: str, seed: int) -> Learner:
    """A freshly initialised checkpoint."""
    module, _, attribute = LEARNERS[name].partition(":")
    learner: Learner = getattr(import_module(module), attribute)(seed)
    return learner
