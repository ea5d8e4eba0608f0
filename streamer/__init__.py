"""The daemon that watches live video and answers questions about it."""

import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from streamer.assistant import Answer, Assistant, StreamEvent, StreamStatus, Subscription, Usage
    from streamer.blocking import BlockingAnswer, BlockingAssistant
    from streamer.config import Config, ConfigError, load_config, parse_config
    from streamer.errors import AssistantError

_HOME = Path(__file__).resolve().parent.parent
_ASSISTANT = ("Answer", "Assistant", "StreamEvent", "StreamStatus", "Subscription", "Usage")
_PUBLIC = {
    "streamer.assistant": _ASSISTANT,
    "streamer.blocking": ("BlockingAnswer", "BlockingAssistant"),
    "streamer.errors": ("AssistantError",),
    "streamer.config": ("Config", "ConfigError", "load_config", "parse_config"),
}
_WHERE = {name: module for module, names in _PUBLIC.items() for name in names}

__all__ = [
    "Answer",
    "Assistant",
    "AssistantError",
    "BlockingAnswer",
    "BlockingAssistant",
    "Config",
    "ConfigError",
    "StreamEvent",
    "StreamStatus",
    "Subscription",
    "Usage",
    "load_config",
    "parse_config",
]


def _found(package: str) -> Path | None:
    """Where Python would import `package` from, without importing it."""
    spec = find_spec(package)
    if spec is None:
        return None
    places = [spec.origin] if spec.origin else list(spec.submodule_search_locations or ())
    return Path(places[0]).resolve() if places else None


def _shadow() -> str | None:
    """Which neighbour Python would take from elsewhere, with the mend; None where all three are our own."""
    for package in ("model", "capture", "protocols"):
        found = _found(package)
        if found is None:
            return f"streamer's package {package!r} is missing in {_HOME}: install streamer again"
        if found != _HOME / package / "__init__.py":
            return (
                f"{found} shadows streamer's own package {package!r} in {_HOME}: run from another folder, "
                "rename that file, or import streamer.client, which needs none of them"
            )
    return None


_CLIENTS = ("", "client", "client_recordings", "client_watches", "wire")
"""What the client is made of, which needs no neighbour."""


class _Refusal:
    """Stands before Python's finders where a neighbour is shadowed: of this package, the client's files alone are found."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        package, _, module = name.partition(".")
        if _SHADOW is not None and package == __name__ and module not in _CLIENTS:
            raise ImportError(_SHADOW)


_SHADOW = _shadow()
if _SHADOW is not None:
    sys.meta_path.insert(0, _Refusal())


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'streamer' has no attribute {name!r}")
    return getattr(import_module(_WHERE[name]), name)
