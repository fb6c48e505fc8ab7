"""/openapi.json says what there is, and docs/serving.md says the same."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest

from benchmarks.pages import write_between
from benchmarks.serving import BEGIN, PAGE, lines
from foveate.runtime.scheduler import EngineOptions
from foveate.serve.app import HANDLERS
from foveate.serve.openapi import OPERATIONS, describe_api
from tests.foveate.serve.conftest import ASK, CHAT, TEXT, Running, Serve

ROOT = Path(__file__).parents[3]
DOCUMENT: dict[str, Any] = msgspec.json.decode(describe_api(("tiny",), keys=False))


def validator(schema: dict[str, Any]) -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator({**schema, "components": DOCUMENT["components"]})


def schema_of(path: str, method: str, status: str = "200") -> dict[str, Any]:
    found: dict[str, Any] = DOCUMENT["paths"][path][method]["responses"][status]["content"]["application/json"]["schema"]
    return found


def test_every_endpoint_is_described_and_has_a_handler() -> None:
    assert {one.id for one in OPERATIONS} == {*HANDLERS, "openapi"}
    for schema in DOCUMENT["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(schema)


def test_the_server_answers_with_it(server: Running) -> None:
    assert server.http.get("/openapi.json").json() == DOCUMENT


@pytest.mark.parametrize("path", ["/v1/models", "/health", "/ready", "/version"])
def test_facts_are_as_described(server: Running, path: str) -> None:
    validator(schema_of(path, "get")).validate(server.http.get(path).json())


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (
            CHAT,
            {"messages": ASK, "max_tokens": 4, "logprobs": True, "top_logprobs": 2, "foveate": {"keep": 0.5, "explain": True}},
        ),
        ("/v1/completions", {"prompt": "Hello", "max_tokens": 4, "logprobs": 1}),
        ("/v1/responses", {"input": "Hello", "max_output_tokens": 4}),
        ("/tokenize", {"messages": TEXT}),
        ("/detokenize", {"tokens": [1, 2]}),
    ],
)
def test_bodies_and_answers_are_as_described(server: Running, path: str, body: dict[str, Any]) -> None:
    described = DOCUMENT["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    validator(described).validate(body)
    validator(schema_of(path, "post")).validate(server.http.post(path, json=body).json())
    refused = {**body, "surprise": 1}
    assert not validator(described).is_valid(refused)
    response = server.http.post(path, json=refused)
    assert str(response.status_code) in DOCUMENT["paths"][path]["post"]["responses"]
    validator(schema_of(path, "post", "400")).validate(response.json())


def test_the_page_is_up_to_date(tmp_path: Path) -> None:
    """`python -m benchmarks.serving` writes it."""
    page = tmp_path / PAGE.name
    page.write_text((ROOT / PAGE).read_text())
    write_between(page, BEGIN, lines())
    assert page.read_text() == (ROOT / PAGE).read_text()


@pytest.mark.slow
def test_schemathesis(serve: Serve, tmp_path: Path) -> None:
    """No answer but those that are described. It is installed apart: `pip install schemathesis`, its `st` on the PATH."""
    tool = shutil.which("st")
    if tool is None:
        pytest.skip("there is no st on the PATH: install schemathesis in an environment of its own")
    with serve(EngineOptions(slots=4, tokens_per_slot=256)) as server:
        words = ["--max-examples", "50", "--phases", "coverage,fuzzing", "--seed", "1", "--no-color", "--continue-on-failure"]
        command = [tool, "--config-file", str(Path(__file__).parent / "schemathesis.toml"), "run", f"{server.url}/openapi.json"]
        done = subprocess.run([*command, *words], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stdout
