"""What the assistant refuses, for programs and for people."""

from __future__ import annotations


class AssistantError(Exception):
    """What was asked for can't be done. `code` is for programs, the message is one line with the mend, `param` what it is about."""

    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        self.code, self.message, self.param = code, message, param
        super().__init__(message)
