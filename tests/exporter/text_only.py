"""A text-only checkpoint as a bundle of `embed` and both decoders, answered by the runtime's own loop."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from foveate.engines import (
    DECODER_PREFILL,
    SCHEMA_VERSION,
    Bundle,
    DecoderEntry,
    Manifest,
    PromptEntry,
    ScorerEntry,
    SessionOptions,
    SourceEntry,
    list_files,
    open_decoder,
    open_session,
    write_manifest,
)
from foveate.exporter.checkpoint import TOKENIZER, Checkpoint
from foveate.exporter.decoder import DecoderConfig, TextDecoder
from foveate.exporter.graphs import text_graphs
from foveate.exporter.text_config import read_decoder
from foveate.exporter.trace import save_graph, trace_graph
from foveate.exporter.weights import resolve_weights, write_weights
from foveate.runtime.batch import Pruned, pad
from foveate.runtime.decode import decode
from foveate.runtime.sequence import TokenSequence
from foveate.runtime.text import TextStream
from foveate.runtime.text_model import TextModel

DECODERS = ("decoder", "decoder_standard", DECODER_PREFILL)
"""What answers: a decoder on its own, or `decoder` on the cache that `decoder_prefill` filled."""


def export_text(checkpoint: Path, folder: Path, names: Collection[str] = ("embed", *DECODERS)) -> Bundle:
    """The bundle of a `LlamaForCausalLM` or `Qwen2ForCausalLM`: of the graphs that every family shares those of these names."""
    source = Checkpoint.open(checkpoint)
    config = read_decoder(source.config, checkpoint / "config.json")
    graphs = [graph for graph in text_graphs(TextDecoder(config), None) if graph.spec.name in names]
    (folder / "graphs").mkdir(parents=True)
    weights = resolve_weights([graph.module for graph in graphs], source, _checkpoint_keys)
    stored = write_weights(weights, folder / "graphs" / "weights.safetensors")
    for graph in graphs:
        save_graph(trace_graph(graph, stored.keys()), graph.spec, stored, folder / graph.spec.file)
    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        foveate_version="0",
        family="text",
        source=SourceEntry("text", source.sha256()),
        graphs={graph.spec.name: graph.spec for graph in graphs},
        decoder=_entry(config),
        prompt=PromptEntry("", "", None, (0,), 0),
        processor={},
        scorer=ScorerEntry(),
        files=list_files(folder),
    )
    write_manifest(folder, manifest)
    return Bundle.open(folder)


def _checkpoint_keys(name: str) -> Sequence[str]:
    rest = name.removeprefix("language_model.")
    return (rest,) if rest.startswith("lm_head.") else (f"model.{rest}",)


def _entry(config: DecoderConfig) -> DecoderEntry:
    names = [name for name in DecoderEntry.__struct_fields__ if name != "kv_dtype"]
    return DecoderEntry(**{name: getattr(config, name) for name in names}, kv_dtype="float32")


@dataclass(frozen=True)
class TextAnswers:
    """A bundle of `export_text` on ONNX Runtime."""

    model: TextModel
    tokenizer: Tokenizer

    @classmethod
    def open(cls, bundle: Bundle, decoder: str, checkpoint: Path) -> TextAnswers:
        options = SessionOptions(threads=1)
        names = ("embed", "decoder", DECODER_PREFILL) if decoder == DECODER_PREFILL else ("embed", decoder)
        embed, *lowered = (open_session(bundle, name, options=options) for name in names)
        entry = bundle.manifest.decoder
        model = TextModel(embed, open_decoder(lowered, entry), entry.position_axes)
        return cls(model, Tokenizer.from_file(str(checkpoint / TOKENIZER)))

    def generate(
        self, prompts: Sequence[Sequence[int]], max_new_tokens: int, eos_token_ids: Sequence[int]
    ) -> list[TokenSequence]:
        """Greedy answers to all prompts in one batch."""
        pruned = [self._prompt(ids) for ids in prompts]
        batch = pad(pruned, pad_token_id=0)
        cache = self.model.decoder.new_cache(len(prompts), int(batch.lengths.max()) + max_new_tokens)
        following = self.model.prefill(cache, self.model.embed(batch), batch)
        rows = [TokenSequence(prompt, TextStream(self.tokenizer), eos_token_ids, max_new_tokens) for prompt in pruned]
        for _ in decode(self.model, cache, rows, following):
            pass
        return rows

    def logits(self, sequences: np.ndarray, lengths: Sequence[int], steps: int) -> np.ndarray:
        """`[steps + 1, batch, vocab_size]`: after the first `lengths` tokens of each row, and after each one that follows."""
        batch = pad([self._prompt(row[:length].tolist()) for row, length in zip(sequences, lengths, strict=True)], 0)
        cache = self.model.decoder.new_cache(len(lengths), max(lengths) + steps)
        found = [self.model.prefill(cache, self.model.embed(batch), batch).logits.copy()]
        rows = np.arange(len(lengths))
        for _ in range(steps):
            position = cache.lengths.astype(np.int64)
            found.append(self.model.step(cache, sequences[rows, position], position, rows.tolist()).logits.copy())
        return np.stack(found)

    def _prompt(self, ids: Sequence[int]) -> Pruned:
        nothing = np.empty(0, np.int64)
        return Pruned(
            np.array(ids, np.int64), np.arange(len(ids))[None], len(ids), self.model.no_visual_embeds, nothing, nothing
        )
