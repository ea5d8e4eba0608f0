"""A recorded span, shown again to a state that has seen nothing else, is as the model knew it that saw just that."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import av
import httpx
import pytest

from streamer import Assistant, AssistantError
from streamer.client import AsyncClient, ClientError
from streamer.memory.footage import Piece, pieces
from streamer.memory.moments import written
from streamer.memory.recording import Segment
from streamer.memory.span import missing, plan_span
from tests.capture.lab import render
from tests.memory.test_past import served
from tests.memory.test_replay import piece
from tests.memory.test_restart import DOOR, config, run
from tests.streamer.serving import eventually


def test_the_plan_is_what_was_seen_in_the_span() -> None:
    first = piece(1, "a", {n: 100 + n / 10 for n in range(8)}, [(0, 1), (2, 3), (4, 5), (6, 9)])
    again = piece(2, "b", {n: 200 + n / 10 for n in range(4)}, [(0, 1), (2, 3)])
    made = plan_span([first, again], 100.15, 200.15)
    assert [tuple(shown.wall for shown, _ in step) for step in made.steps] == [
        (100.2, 100.3), (100.4, 100.5), (200.0, 200.1),
    ]  # fmt: skip
    times = [time for step in made.steps for _, time in step]
    assert times == pytest.approx([0, 0.04, 0.08, 0.12, 0.12 + 99.5, 0.16 + 99.5]), (
        "as it was told, or as the clock went"
    )
    assert not plan_span([first, again], 101, 200).steps


def test_what_is_not_recorded_is_counted() -> None:
    kept = [Segment(n, begins, ends, 1, Path("x")) for n, (begins, ends) in enumerate([(10, 20), (30, 40), (35, 50)])]
    assert missing(kept, 15, 45) == 10 and missing(kept, 0, 60) == 10 + 10 + 10
    assert missing(kept, 22, 28) == 6 and missing([], 1, 3) == 2


def sequences(run: list[Piece]) -> list[int]:
    """Sequences of the frames that the model saw, as their notes say."""
    return [sequence for piece in run for step in piece.notes.steps for sequence, _ in step.frames]


def test_a_span_is_asked_about_as_it_was_seen_live(tmp_path: Path) -> None:
    clip = render(tmp_path / "clip.mp4", 40)
    door: dict[str, Any] = {"name": "door", "source": str(clip), "record": True, "policy": "every"}

    async def test() -> None:
        async with Assistant(config(tmp_path / "state", door, DOOR | {"name": "blind"}, every=60)) as assistant:
            keeper, stream = assistant.keeper, assistant._streams["door"]
            assert keeper is not None
            await eventually(lambda: stream.source.status.state == "ended" and stream.frames_seen == 40)
            begins = keeper.recordings.of("door")[0].begins - 0.5
            live = await assistant.ask("What is there?", stream="door", max_tokens=12).text()
            # What came last is on its way to the disk.
            await eventually(lambda: len(sequences(pieces(keeper.recordings.of("door")))) == 40)
            ends = keeper.recordings.of("door")[-1].ends + 0.2
            asked: dict[str, Any] = {"stream": "door", "max_tokens": 12, "since": begins, "until": ends}
            for _ in range(2):
                answer = assistant.ask("What is there?", **asked)
                assert await answer.text() == live and answer.moment is not None, answer.error
                facts = answer.moment.facts()
                assert facts["how"] == "replayed" and facts["frames"] == 40, json.dumps(facts)
                assert facts["asked_from"] == written(begins) and 0.4 < facts["missing_s"] < 1.0, facts
            part = assistant.ask("What is there?", **asked | {"since": ends - 0.9})
            assert await part.text() and part.moment is not None and part.moment.facts()["frames"] < 40
            assert len(assistant.engine.executor.free_answers) == 2

            wrong: dict[str, dict[str, Any]] = {
                "no_recording": {"since": begins - 60, "until": begins - 50},
                "bad_moment": {"since": "noonish"},
                "bad_span": {"since": ends, "until": begins},
            }
            limits = {"until alone": {"since": None}, "both": {"at": begins}, "long": {"since": begins - 400}}
            for name, given in (wrong | limits).items():
                with pytest.raises(AssistantError) as error:
                    assistant.ask("What is there?", **asked | given)
                assert error.value.code == (name if name in wrong else "bad_span") and "\n" not in error.value.message
            with pytest.raises(AssistantError, match="set record to true"):
                assistant.ask("What is there?", stream="blind", since=begins)
            await on_the_wires(assistant, begins, ends)
            await in_the_archive(assistant, begins, ends, tmp_path)

    run(test())


async def on_the_wires(assistant: Assistant, begins: float, ends: float) -> None:
    """Realtime tells of progress, chat completions too; the command line says what the answer speaks of."""
    since, until = written(begins), written(ends)
    async with served(assistant) as server:
        async with AsyncClient(server.url, stream="door") as client:
            told: list[dict[str, Any]] = []
            steps: list[tuple[int, int]] = []
            asking = client.ask(
                "What?", since=since, until=until, max_tokens=3, moment=told.append,
                progress=lambda shown, of: steps.append((shown, of)),
            )  # fmt: skip
            assert [word async for word in asking]
            # Twenty pairs, and more steps where a busy machine saw a frame alone.
            assert steps[-1][0] == steps[-1][1] >= 20 and told[0]["frames"] == 0 and told[-1]["frames"] == 40
        body: dict[str, Any] = {"model": "tiny/door", "messages": [{"role": "user", "content": "What?"}]}
        body |= {"max_tokens": 3, "from": since, "to": until}
        async with httpx.AsyncClient(base_url=server.url, timeout=60) as web:
            whole = (await web.post("/v1/chat/completions", json=body)).json()
            assert whole["moment"]["how"] == "replayed" and whole["moment"]["frames"] == 40
            lines = (await web.post("/v1/chat/completions", json=body | {"stream": True})).text.split("data: ")
            parts = [json.loads(line) for line in lines[1:-1]]
            last = [part["replaying"] for part in parts if "replaying" in part][-1]
            assert last["shown"] == last["of"] >= 20
            assert all(part["choices"][0]["delta"] is not None for part in parts)
            assert parts[-1]["moment"]["frames"] == 40
            spoken = {"model": "tiny/door", "input": "What?", "max_output_tokens": 3, "from": since, "to": until}
            lines = (await web.post("/v1/responses", json=spoken | {"stream": True})).text.split("data: ")[1:]
            parts = [json.loads(line.partition("\n")[0]) for line in lines]
            shown = [part for part in parts if part["type"] == "response.replaying"]
            assert shown[-1]["shown"] == shown[-1]["of"] >= 20 and shown[-1]["moment"]["frames"] == 40
            assert parts[-1]["response"]["moment"]["how"] == "replayed" and parts[-1]["response"]["output"]
            none = await web.post("/v1/chat/completions", json=body | {"from": "2 hours ago", "to": "119 minutes ago"})
            assert none.status_code == 404 and none.json()["error"]["code"] == "no_recording"
        command = [sys.executable, "-m", "streamer.cli.main", "ask", "What?", "--stream", "door", "--max-tokens", "3"]
        span = ["--from", since, "--to", until, "--url", server.url]
        pipe = asyncio.subprocess.PIPE
        made = await asyncio.create_subprocess_exec(*command, *span, stdout=pipe, stderr=pipe)
        out, said = await made.communicate()
        assert out and said.decode().startswith(f"[{since[:10]}") and b"replayed: 40 frames]" in said


async def in_the_archive(assistant: Assistant, begins: float, ends: float, folder: Path) -> None:
    """Python and the client read what happened, and have stills and clips, until it is forgotten."""
    archive, keeper = assistant.archive, assistant.keeper
    assert keeper is not None
    assert {each.text.partition(":")[0] for each in await archive.timeline("door")} >= {"live", "ended"}
    assert len(await archive.timeline("door", search="ended", since=begins)) == 1
    assert {each.kind for each in await archive.timeline("door", kinds="state")} == {"state"}
    picture = await archive.still("door", begins + 1)
    saved = await archive.clip("door", begins, ends, folder / "clip.mp4")
    with av.open(str(saved)) as clip:
        assert sum(1 for _ in clip.decode(video=0)) == 40
    for code, wrong in {
        "bad_search": archive.timeline("door", search="("),
        "bad_option": archive.timeline("door", kinds=["state", "stat"]),
        "bad_moment": archive.still("door", "noonish"),
    }.items():
        with pytest.raises(AssistantError) as error:
            await wrong
        assert error.value.code == code
    async with served(assistant) as server, AsyncClient(server.url, stream="door") as client:
        found = await client.timeline(search="ended", since=written(begins))
        assert [each["kind"] for each in found] == ["state"]
        assert await client.still("door", written(begins + 1)) == picture
        assert await client.clip("door", written(begins), written(ends)) == saved.read_bytes()
        with pytest.raises(ClientError, match="is recorded there"):
            await client.clip("door", "2 hours ago", "1 hour ago")
        await client.follow()
        keeper.timeline.add("note", "door", "a banana lies there")
        while (event := await anext(client.events()))["type"] != "memory.added":
            pass
        assert event["entry"]["text"] == "a banana lies there"
    assert list(keeper.clips.place.iterdir())
    await assistant.forget("door")
    assert not list(keeper.clips.place.iterdir()) and not keeper.recordings.of("door")
