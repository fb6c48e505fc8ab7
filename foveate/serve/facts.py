"""The endpoints that generate nothing: models, tokens, health, figures, the page."""

from __future__ import annotations

import asyncio
from importlib.metadata import version
from typing import Any

from foveate.runtime import Request
from foveate.serve.asking import check_length, read_messages
from foveate.serve.calls import Call
from foveate.serve.errors import HttpError
from foveate.serve.metrics import CONTENT_TYPE
from foveate.serve.options import Served
from foveate.serve.replies import Detokenized, Health, Model, ModelFacts, ModelList, Tokens, Version
from foveate.serve.schema import DetokenizeBody, TokenizeBody


async def models(call: Call) -> None:
    """`GET /v1/models`"""
    await call.reply(ModelList(data=[_model(one, call.state.created) for one in call.state.served.values()]))


async def model(call: Call) -> None:
    """`GET /v1/models/{model}`"""
    await call.reply(_model(call.state.find(call.scope["path_params"]["model"]), call.state.created))


def _model(served: Served, created: int) -> Model:
    manifest = served.pipe.manifest
    facts = ModelFacts(
        family=manifest.family,
        source=manifest.source.name,
        precision=manifest.precision,
        images=bool(manifest.prompt.image_token),
        videos=bool(manifest.prompt.video_token),
        retained={f"{point.keep:g}": point.retained for point in manifest.scorer.curve()},
    )
    return Model(id=served.name, created=created, max_model_len=served.slot_tokens, foveate=facts)


async def tokenize(call: Call) -> None:
    """`POST /tokenize`"""
    body = call.decode(TokenizeBody)
    served = call.state.find(body.model)
    if (body.prompt is None) == (body.messages is None):
        raise HttpError(400, "there are both prompt and messages, or neither. Send one of them.", "prompt", "invalid_value")
    if body.messages is not None:
        messages = await read_messages(body.messages, served, call.state.sources, call.state.options, call.holding)
        tokens = await asyncio.to_thread(_prompt_tokens, served, messages)
    else:
        assert body.prompt is not None
        check_length(len(body.prompt), served)
        tokens = await asyncio.to_thread(served.texts.encode, body.prompt, body.add_special_tokens is not False)
    await call.reply(Tokens(count=len(tokens), max_model_len=served.slot_tokens, tokens=tokens))


def _prompt_tokens(served: Served, messages: list[dict[str, Any]]) -> list[int]:
    tokens: list[int] = served.pipe.prepare(Request(messages)).layout.input_ids.tolist()
    return tokens


async def detokenize(call: Call) -> None:
    """`POST /detokenize`"""
    body = call.decode(DetokenizeBody)
    served = call.state.find(body.model)
    if len(body.tokens) > served.slot_tokens:
        fact = f"there are {len(body.tokens)} tokens, the limit is {served.slot_tokens}. Send fewer."
        raise HttpError(400, fact, "tokens", "context_length_exceeded")
    await call.reply(Detokenized(prompt=await asyncio.to_thread(served.texts.decode, body.tokens)))


async def health(call: Call) -> None:
    """`GET /health`"""
    stuck = call.state.stuck
    await call.reply(Health(status="stuck" if stuck else "ok"), 503 if stuck else 200)


async def ready(call: Call) -> None:
    """`GET /ready`"""
    status = "draining" if call.state.draining else "stuck" if call.state.stuck else "ok"
    await call.reply(Health(status=status), 200 if status == "ok" else 503)  # type: ignore[arg-type]


async def metrics(call: Call) -> None:
    """`GET /metrics`"""
    await call.reply_bytes(call.state.metrics.text(), [(b"content-type", CONTENT_TYPE.encode())])


async def foveate_version(call: Call) -> None:
    """`GET /version`"""
    await call.reply(Version(version=version("foveate")))
