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


def _only_client() -> bool:
    """Whether `streamer.client` is being imported: it needs none of the neighbours, so a crowd does not hurt it."""
    frame = sys._getframe()
    while frame.f_back is not None:
        frame = frame.f_back
        if frame.f_code.co_name == "_find_and_load" and frame.f_locals.get("name") == "streamer.client":
            return True
    return False


def _check_neighbours() -> None:
    for package in ("model", "capture", "protocols"):
        found = _found(package)
        if found == _HOME / package / "__init__.py" or _only_client():
            continue
        if found is None:
            raise ImportError(f"streamer's package {package!r} is missing in {_HOME}: install streamer again")
        raise ImportError(
            f"{found} shadows streamer's own package {package!r} in {_HOME}: run from another folder, "
            "rename that file, or import streamer.client, which needs none of them"
        )


_check_neighbours()


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'streamer' has no attribute {name!r}")
    _check_neighbours()
    return getattr(import_module(_WHERE[name]), name)
