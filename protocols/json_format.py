"""How a request says that its answer is JSON: `response_format` of chat completions, `text.format` of responses."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from protocols.fields import Model, Text
from protocols.question import JsonSchema

Name = Annotated[Text, Field(min_length=1, max_length=64, pattern=r"^[a-zA-Z0-9_-]+$")]


class PlainText(Model):
    type: Literal["text"]

    def form(self, param: str) -> JsonSchema | None:
        """None: any text."""
        return None


class AnyObject(Model):
    type: Literal["json_object"]

    def form(self, param: str) -> JsonSchema | None:
        """Any JSON object."""
        return JsonSchema({"type": "object"}, param)


class NamedSchema(Model):
    """A schema is always kept to, whatever `strict` says."""

    name: Name
    description: Text | None = None
    schema_: Annotated[dict[str, Any], Field(alias="schema")]
    strict: bool | None = None


class ChatSchema(Model):
    """As chat completions put it."""

    type: Literal["json_schema"]
    json_schema: NamedSchema

    def form(self, param: str) -> JsonSchema | None:
        """What its schema allows."""
        return JsonSchema(self.json_schema.schema_, f"{param}.json_schema.schema")


class TextSchema(NamedSchema):
    """As responses put it."""

    type: Literal["json_schema"]

    def form(self, param: str) -> JsonSchema | None:
        """What its schema allows."""
        return JsonSchema(self.schema_, f"{param}.schema")


ChatFormat = Annotated[PlainText | AnyObject | ChatSchema, Field(discriminator="type")]
TextFormat = Annotated[PlainText | AnyObject | TextSchema, Field(discriminator="type")]


class TextSettings(Model):
    """`text` of a response, or of a session."""

    format: TextFormat | None = None

    def form(self, param: str) -> JsonSchema | None:
        """The form of the answer, where one is set."""
        return None if self.format is None else self.format.form(f"{param}.format")
