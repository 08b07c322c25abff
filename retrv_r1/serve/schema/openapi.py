"""The OpenAPI document: what is taken, what comes back, an example for every dialect."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from retrv_r1.serve.dialects import DIALECTS, SCORE_PATHS, Dialect
from retrv_r1.serve.dialects.score import FIRST, SECOND
from retrv_r1.serve.errors import ApiError, superset_body

DESCRIPTION = (
    "Ranks texts and pictures for a query. Clients of Cohere, Jina, Voyage, Text Embeddings "
    "Inference, vLLM, SGLang, Infinity and llama.cpp need another base address and nothing else."
)

TEXT: Mapping[str, Any] = {"type": "string"}
PICTURE: Mapping[str, Any] = {
    "type": "string",
    "description": "data URI, base64, or an address where the server allows it",
}
PART: Mapping[str, Any] = {
    "type": "object",
    "description": "a part of an item, such as {type: text, text} or {type: image_url, image_url}",
}
ITEM: Mapping[str, Any] = {
    "description": "a text, a picture, or both",
    "anyOf": [
        TEXT,
        {
            "type": "object",
            "properties": {
                "text": TEXT,
                "image": PICTURE,
                "content": {"anyOf": [TEXT, {"type": "array", "items": PART}]},
                "type": TEXT,
                "format": {"const": "base64"},
                "value": TEXT,
                "id": {"type": ["string", "number"]},
            },
        },
        {"type": "array", "items": {"anyOf": [TEXT, PART]}, "minItems": 1},
    ],
}
ITEMS: Mapping[str, Any] = {"type": "array", "items": ITEM, "minItems": 1}
OPTIONS: Mapping[str, Any] = {
    "type": "object",
    "description": "options of this server",
    "properties": {
        "mode": {"enum": ["reason", "fast", "auto"]},
        "max_inspections": {"type": "integer", "minimum": 0, "maximum": 128},
        "max_reasoning_tokens": {"type": "integer", "minimum": 1},
        "votes": {"type": "integer", "minimum": 1},
        "budget_ms": {"type": "integer", "minimum": 1, "maximum": 86400000},
        "stream": {"type": "boolean"},
        "reading": {"enum": ["compressed", "full"]},
        "instruction": TEXT,
    },
}
RERANK: Mapping[str, Any] = {
    "type": "object",
    "required": ["query"],
    "properties": {
        "model": TEXT,
        "query": ITEM,
        "documents": ITEMS,
        "texts": ITEMS,
        "top_n": {"type": ["integer", "null"], "minimum": 0},
        "top_k": {"type": ["integer", "null"], "minimum": 0},
        "return_documents": {"type": ["boolean", "null"]},
        "return_text": {"type": ["boolean", "null"]},
        "truncation": {"type": ["boolean", "null"]},
        "truncate": {"type": ["boolean", "null"]},
        "rank_fields": {"type": "array", "items": {"type": "string", "minLength": 1}},
        "instruction": TEXT,
        "stream": {"type": "boolean"},
        "retrv": OPTIONS,
    },
    "anyOf": [{"required": ["documents"]}, {"required": ["texts"]}],
}
SIDE: Mapping[str, Any] = {"anyOf": [TEXT, ITEMS]}
SCORE: Mapping[str, Any] = {
    "type": "object",
    "description": "one side of each pair, and the other",
    "properties": {"model": TEXT, **dict.fromkeys((*FIRST, *SECOND), SIDE), "retrv": OPTIONS},
    "allOf": [{"anyOf": [{"required": [name]} for name in side]} for side in (FIRST, SECOND)],
}
ERRORS: Mapping[int, str] = {
    400: "a value that cannot be used, or no JSON object",
    401: "no API key, or a wrong one",
    404: "another model, where the server is strict",
    405: "another method; Allow names those of the route",
    408: "the body came too slowly",
    413: "over a limit; error.code is its name",
    415: "no JSON",
    421: "the server does not answer to the name in the header Host",
    422: "a value that cannot be used, in the dialects of Cohere v2 and TEI",
    429: "the queue is full; Retry-After says when to come again",
    500: "a fault of the server",
    503: "the model is being loaded, or the engine restarts",
    504: "the deadline has passed",
}


def ranking_extra(path: str) -> dict[str, Any]:
    """Documentation of a route of rerank or score."""
    score = path in SCORE_PATHS
    dialects = [one for one in DIALECTS if path in one.paths]
    others = [one for one in DIALECTS if one not in dialects and (one.name == "score") == score]
    shown = [*dialects, *(() if score else others)]
    content: dict[str, Any] = {
        "application/json": {
            "schema": {"anyOf": [{"type": "object"}, {"type": "array"}]},
            "examples": {one.name: _example(one, response=True) for one in shown},
        }
    }
    if not score:
        content["text/event-stream"] = {"schema": {"type": "string"}}
    return {
        "summary": "Score pairs" if score else "Rank documents for a query",
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {
                    "schema": SCORE if score else RERANK,
                    "examples": {one.name: _example(one, response=False) for one in shown},
                }
            },
        },
        "responses": {"200": {"description": "the ranking", "content": content}, **_errors()},
    }


def about_extra(path: str) -> dict[str, Any]:
    """Documentation of a route about the server."""
    summaries = {
        "/health": "Whether requests are answered",
        "/info": "Model and limits",
        "/v1/models": "Name of the model",
        "/metrics": "Counts for Prometheus",
    }
    kind = "text/plain" if path == "/metrics" else "application/json"
    schema = {"type": "string"} if path == "/metrics" else {"type": "object"}
    responses: dict[str, Any] = {
        "200": {"description": "as said", "content": {kind: {"schema": schema}}}
    }
    if path == "/health":
        responses["503"] = {
            "description": "not now",
            "content": {"application/json": {"schema": {"type": "object"}}},
        }
    else:
        responses["401"] = _errors()["401"]
    responses["405"] = _errors()["405"]
    return {"summary": summaries[path], "responses": responses}


def document(app: FastAPI, *, keys: bool) -> dict[str, Any]:
    """The OpenAPI document of an application; ``keys`` says whether it wants API keys."""
    if app.openapi_schema is None:
        made = get_openapi(
            title=app.title, version=app.version, description=app.description, routes=app.routes
        )
        if keys:
            made.setdefault("components", {})["securitySchemes"] = {
                "bearer": {"type": "http", "scheme": "bearer"},
                "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
            }
            made["security"] = [{"bearer": []}, {"header": []}]
            made["paths"]["/health"]["get"]["security"] = []
        app.openapi_schema = made
    return app.openapi_schema


def _example(dialect: Dialect, *, response: bool) -> dict[str, Any]:
    example = dialect.example()
    return {
        "summary": dialect.title,
        "value": example.response if response else dict(example.request),
    }


def _errors() -> dict[str, Any]:
    error = ApiError(400, "missing_field", "documents is missing; send a list", "documents")
    example = superset_body(error, "rerank-7d5c")
    content = {"application/json": {"schema": {"type": "object"}, "example": example}}
    found: dict[str, Any] = {
        str(s): {"description": text, "content": content} for s, text in ERRORS.items()
    }
    scheme = {"description": "Bearer, with a realm", "schema": {"type": "string"}}
    found["401"]["headers"] = {"WWW-Authenticate": scheme}
    return found
