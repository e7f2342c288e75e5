"""What the routes say of themselves in /openapi.json: bodies are read by hand, so they are described by hand."""

from typing import Any

from pydantic import BaseModel
from starlette.responses import Response

from deepnarrow.serve.refusals import SHAPES

ANY: dict[str, Any] = {"application/json": {"schema": {}}}


def described(body: type[BaseModel], *, stream: bool = False) -> dict[str, Any]:
    """Arguments for a route: its body, and all the statuses it may answer with."""
    good: dict[str, Any] = dict(ANY)
    if stream:
        good["text/event-stream"] = {"schema": {}}  # an event each; what it holds is the API's own
    statuses = {shape.status for shape in SHAPES.values()} | {shape.openai_status for shape in SHAPES.values()}
    refusals = {status: {"description": "Refused", "content": ANY} for status in sorted(statuses)}
    schema = body.model_json_schema(ref_template=f"#/components/schemas/{body.__name__}/$defs/{{model}}")
    return {
        "responses": {200: {"description": "Answered", "content": good}, **refusals},
        "openapi_extra": {
            "requestBody": {"required": True, "content": {"application/json": {"schema": inlined(schema)}}}
        },
        "response_model": None,
    }


def plain(*refused: int, media: str = "application/json") -> dict[str, Any]:
    """Arguments for a route without a body: what it answers with, and by which further statuses."""
    refusals = {status: {"description": "Refused", "content": ANY} for status in refused}
    return {
        "responses": {200: {"description": "Answered", "content": {media: {"schema": {}}}}, **refusals},
        "response_model": None,
        "response_class": Response,
    }


def inlined(schema: dict[str, Any]) -> dict[str, Any]:
    """A schema with what it refers to written in its place, for a route stands alone."""
    parts = schema.get("$defs", {})

    def walk(value: Any) -> Any:
        if isinstance(value, list):
            return [walk(one) for one in value]
        if not isinstance(value, dict):
            return value
        if "$ref" in value:
            return walk(parts[value["$ref"].rsplit("/", 1)[1]])
        return {key: walk(one) for key, one in value.items() if key != "$defs"}

    found = walk(schema)
    assert isinstance(found, dict)
    return found
