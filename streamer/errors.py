"""What the assistant refuses, for programs and for people."""

from __future__ import annotations


class AssistantError(Exception):
    """What was asked for can't be done. `code` is for programs, the message is one line with the mend."""

    def __init__(self, code: str, message: str) -> None:
        self.code, self.message = code, message
        super().__init__(message)
