"""A daemon as a model of lmms-eval: `python -m lmms_eval --model streamer --model_args url=http://127.0.0.1:8765 --tasks …`.

Each request is shown to a stream of its own, pictures one by one or a video's file from its beginning, and asked about; nothing
but `streamer.client` is needed beside lmms-eval. Videos must lie where the daemon can read them.
"""

from __future__ import annotations

import io
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lmms_eval.api.instance import Instance
from lmms_eval.api.model import lmms
from lmms_eval.protocol import ChatMessages
from tqdm import tqdm

from streamer.client import Client

if TYPE_CHECKING:
    from lmms_eval.models.registry_v2 import ModelManifest

TOKENS = 256
"""Of an answer, where a task does not say."""
QUALITY = 95
"""Of the JPEG pictures that are sent."""


class LostError(Exception):
    """What was shown was not seen, in one line."""


class Streamer(lmms):  # type: ignore[misc]
    """See the module. Greedy unless a task says otherwise."""

    is_simple = False

    def __init__(
        self,
        url: str | None = None,
        token: str | None = None,
        fps: float = 2.0,
        patience: float = 600.0,
        batch_size: int | str = 1,
        **_: Any,
    ) -> None:
        """`fps` is how many frames a second of a video are shown; `patience` seconds within which all must have been seen."""
        super().__init__()
        self.url, self.token, self.fps, self.patience = url, token, float(fps), float(patience)
        self.stream = f"lmms-eval-{time.time_ns() % 10**9}"

    def generate_until(self, requests: Sequence[Instance]) -> list[str]:
        """Answers, one a request. Raises ClientError, LostError, ValueError for a request that shows nothing."""
        answers = []
        with Client(self.url, token=self.token) as client:
            for request in tqdm(requests, desc="streamer", disable=self.rank != 0):
                _, to_messages, how, number, task, split = request.args
                answers.append(self._answer(client, to_messages(self.task_dict[task][split][number]), dict(how), task))
        return answers

    def _answer(self, client: Client, messages: Any, how: dict[str, Any], task: str) -> str:
        given = ChatMessages(messages=messages)
        pictures, videos, sounds = given.extract_media()
        texts = [part.text for message in given.messages for part in message.content if part.type == "text"]
        if sounds or len(videos) > 1 or (videos and pictures) or not (videos or pictures):
            raise ValueError(f"task {task}: streamer is asked about pictures or about one video, not {_found(given)}")
        if videos:
            options = {"policy": "every", "realtime": False, "fps": self.fps}
            client.attach(self.stream, str(videos[0]), **options)
        else:
            client.attach(self.stream, f"push://{self.stream}", policy="every", stall_after=self.patience)
        try:
            for moment, picture in enumerate(pictures):
                file = io.BytesIO()
                picture.convert("RGB").save(file, "JPEG", quality=QUALITY)
                client.push(file.getvalue(), stream=self.stream, timestamp=float(moment))
            self._wait(client, len(pictures) or None)
            words = client.ask(
                "\n".join(texts),
                stream=self.stream,
                max_tokens=int(how.get("max_new_tokens") or TOKENS),
                temperature=float(how.get("temperature") or 0.0),
            )
            return _until("".join(words), how.get("until"))
        finally:
            client.detach(self.stream)

    def _wait(self, client: Client, pictures: int | None) -> None:
        """Returns once all pictures were seen, or the video was to its end."""
        until, before = time.monotonic() + self.patience, -1
        while True:
            status = next(each for each in client.streams() if each["name"] == self.stream)
            seen = status["frames_seen"]
            if pictures is not None and seen >= pictures:
                return
            if pictures is None and status["state"] == "ended" and seen and seen == before:
                return
            if status["state"] == "ended" and not status["frames_in"]:
                raise LostError(f"{status['source']}: {status['reason']}")
            if time.monotonic() > until:
                raise LostError(
                    f"{status['source']}: {seen} frames were seen in {self.patience:g} s ({status['state']})"
                )
            before = seen
            time.sleep(0.05)

    def loglikelihood(self, requests: Sequence[Instance]) -> list[tuple[float, bool]]:
        """Raises NotImplementedError: a daemon tells no probabilities."""
        raise NotImplementedError("streamer tells no probabilities: choose tasks that generate")

    def generate_until_multi_round(self, requests: Sequence[Instance]) -> list[str]:
        """Raises NotImplementedError."""
        raise NotImplementedError("streamer does not play tasks of several rounds: choose tasks that generate once")


def _found(given: ChatMessages) -> str:
    kinds = [part.type for message in given.messages for part in message.content if part.type != "text"]
    return ", ".join(kinds) or "text alone"


def _until(words: str, stops: str | Sequence[str] | None) -> str:
    for stop in [stops] if isinstance(stops, str) else stops or ():
        if stop:
            words = words.split(stop)[0]
    return words


def manifest() -> ModelManifest:
    """What lmms-eval finds by the entry point `lmms_eval.models`."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id="streamer", chat_class_path="streamer.lmms_eval.Streamer")
