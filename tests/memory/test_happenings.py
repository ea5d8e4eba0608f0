"""A daemon's timeline: what happened to its streams and was asked, noted and forgotten, at every door."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from streamer import Assistant
from streamer.config import ConfigError, parse_config
from streamer.events import StreamEvent
from streamer.memory import notes as noting
from streamer.memory.notes import NotePace, same
from streamer.memory.timeline import KINDS, Wanted
from streamer.server.auth import new_token, token_digest
from streamer.storage_config import NotesConfig
from tests.streamer.fed import picture
from tests.tiny import TINY

from .test_past import scenes, served
from .test_restart import config, run, show

PLACE = "/v1/streams/door/timeline"


def door(**options: Any) -> dict[str, Any]:
    return {"name": "door", "source": "push://door", "policy": "every", **options}


async def entries(assistant: Assistant, stream: str = "door", **wanted: Any) -> list[Any]:
    """Once all rows are in the database; the oldest first."""
    keeper = assistant.keeper
    assert keeper is not None
    await asyncio.wrap_future(keeper.store.write("DELETE FROM entries WHERE FALSE", now=True))
    found = await asyncio.to_thread(keeper.timeline.entries, Wanted(stream, **wanted), 100)
    return found[::-1]


def test_the_doors_tell_what_happened(tmp_path: Path) -> None:
    tokens = {name: new_token() for name in ("ada", "bob", "root")}
    scopes = {"ada": ["view", "ask"], "bob": ["view"], "root": ["admin"]}
    known = [{"name": n, "scopes": scopes[n], "digest": f"sha256:{token_digest(t)}"} for n, t in tokens.items()]
    made = {
        "streams": [door(keep_questions=True), {"name": "secret", "source": "push://secret", "keep": "nothing"}],
        "model": TINY,
        "answers": {"max_tokens": 8},
        "storage": {"folder": str(tmp_path)},
        "server": {"tokens": known},
    }

    async def test() -> None:
        async with Assistant(parse_config(made)) as assistant:
            async with served(assistant) as server, httpx.AsyncClient(base_url=server.url, timeout=60) as web:
                head = {name: {"Authorization": f"Bearer {token}"} for name, token in tokens.items()}
                await show(assistant, "door", 1)
                asked = {"model": "tiny/door", "messages": [{"role": "user", "content": "What is there?"}]}
                said = await web.post("/v1/chat/completions", json=asked, headers=head["ada"])
                words = said.json()["choices"][0]["message"]["content"]
                began = [each for each in await entries(assistant) if each.kind == "question"]
                assert began[0].data["answer"] == words and began[0].visitor == "ada" and began[0].time is not None

                async def listed(who: str, **query: Any) -> Any:
                    reply = await web.get(PLACE, params=query, headers=head[who])
                    return reply.json()["entries"] if reply.status_code == 200 else (reply.status_code, reply.json())

                kinds = [each["kind"] for each in await listed("root")]
                assert kinds[0] == "question" and "state" in kinds[1:]
                assert [each["data"]["question"] for each in await listed("ada", search="there")] == ["What is there?"]
                assert "question" not in {each["kind"] for each in await listed("bob")}
                assert not await listed("bob", search="there")
                assert [each["kind"] for each in await listed("root", kind="note,question")] == ["question"]
                assert (await web.get(PLACE)).status_code == 401
                status, body = await listed("ada", search='"open')
                assert status == 400 and body["error"]["code"] == "bad_search"
                assert (await listed("ada", limit="many"))[0] == 400 == (await listed("ada", **{"from": "noonish"}))[0]
                assert (await web.get("/v1/streams/gate/timeline", headers=head["bob"])).status_code == 404
                assert (await web.get(f"{PLACE}/{began[0].id}.jpg", headers=head["bob"])).status_code == 404
                dense = (await web.get(f"{PLACE}/density?buckets=4", headers=head["ada"])).json()
                assert dense["bucket_s"] == pytest.approx(900, abs=1) and sum(dense["counts"]["question"]) == 1
                assert len(dense["counts"]["state"]) == 4

                async with server.connect("?stream=door", additional_headers=head["ada"]) as socket:
                    await socket.send(json.dumps({"type": "memory.list", "search": "there", "kinds": ["question"]}))
                    while (event := json.loads(await socket.recv()))["type"] != "memory.listed":
                        assert event["type"] != "error", event
                    assert [each["text"] for each in event["entries"]] == [f"What is there?\n{words}"]
                    assert event["entries"][0]["wall"] == pytest.approx(time.time(), abs=60) and not event["more"]
                    await socket.send(json.dumps({"type": "memory.subscribe"}))
                    while (event := json.loads(await socket.recv()))["type"] != "memory.subscribed":
                        pass
                    timeline = assistant.keeper.timeline if assistant.keeper else None
                    assert timeline is not None
                    timeline.add("question", "door", "what does root ask?", visitor="root")
                    timeline.add("note", "door", "a banana lies about", {"question": "What?"})
                    await timeline.forget("door", 1.0, 2.0)
                    told = [json.loads(await socket.recv())]
                    while told[-1]["type"] != "memory.forgotten":
                        told.append(json.loads(await socket.recv()))
                    added = [each["entry"]["text"] for each in told if each["type"] == "memory.added"]
                    assert added == ["a banana lies about"] and (told[-1]["since"], told[-1]["until"]) == (1.0, 2.0)
                    await socket.send(json.dumps({"type": "memory.list", "search": "(open"}))
                    while (event := json.loads(await socket.recv()))["type"] != "error":
                        pass
                    assert event["error"]["code"] == "bad_search"

                command = [sys.executable, "-m", "streamer.cli.main", "timeline", "--url", server.url]
                file = tmp_path / "token"
                file.write_text(tokens["root"])
                command += ["--search", "there", "--token-file", str(file)]
                ran = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
                line = (await ran.communicate())[0].decode()
                assert "  door  question  What is there?" in line and line.count("\n") == 1
                ran = await asyncio.create_subprocess_exec(*command, "--kind", "gap", stdout=asyncio.subprocess.PIPE)
                assert (await ran.communicate())[0] == b"no entries\n"
                command += ["--kind", "gap,pears"]
                ran = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE)
                refused = (await ran.communicate())[1].decode()
                assert ran.returncode == 1 and "'pears'" in refused and refused.endswith(f"{', '.join(KINDS)}.\n")

                gone = (await web.delete("/v1/streams/door/memory", headers=head["root"])).json()
                assert gone["entries"] >= 2 and not await listed("root")
            assert assistant.keeper is not None and not assistant.keeper.timeline.ears
            assert b"What is there?" not in (tmp_path / "streamer.sqlite").read_bytes()
            assert not await entries(assistant, "secret")

    run(test())


def test_gaps_drops_and_restarts_are_written_down(tmp_path: Path) -> None:
    async def test() -> None:
        async with Assistant(config(tmp_path, door(stall_after=0.3))) as assistant:
            await show(assistant, "door", 1)
            await eventually_listed(assistant, "stalled")
            await show(assistant, "door", 2)
            assistant.news.dropped(
                "door", assistant._streams["door"].drops + type(assistant._streams["door"].drops)(stale=7)
            )
            await eventually_listed(assistant, "nothing was seen")
            assert not any(each.kind == "jump" for each in await entries(assistant))
            for moment in (500.0, 20.0):  # that pusher's clock is not to be trusted
                assistant.push("door", picture(3), moment)
            await eventually_listed(assistant, "the source's clock jumped 2 times")
            found = await entries(assistant)
            gap = next(each for each in found if each.kind == "gap")
            stalled = next(each for each in found if each.text.startswith("stalled"))
            assert gap.id < stalled.id and 0 < gap.data["gap_s"] < 30 and gap.time == 0.0
            assert not any(each.kind == "drops" for each in found), "those are summed"
        async with Assistant(config(tmp_path, door())) as assistant:
            found = await entries(assistant)
            drops = next(each for each in found if each.kind == "drops")
            assert drops.data["dropped"] == {"stale": 7} and "7 frames" in drops.text
            resumed = next(each for each in found if each.kind == "resumed")
            assert resumed.id > drops.id and resumed.data["resumes"] == 1
            assert not [each for each in found if each.kind == "question"], "kept only where configured"

    run(test())


def test_a_camera_that_stays_away_is_written_down_once_a_reason(tmp_path: Path) -> None:
    refused, silent = "the connection was refused", "no picture within 10 s of connecting"
    away = [("waiting", refused), ("connecting", refused), ("waiting", refused), ("connecting", refused)]
    stall = [(state, "no frame for 5 s") for state in ("stalled", "waiting", "connecting")]
    story = [
        *(("connecting", ""), *away, ("waiting", silent), ("connecting", silent), *away),
        *(("live", ""), *stall, *away),
        *(("live", ""), *away, ("ended", "it is watched no more")),
    ]

    async def test() -> None:
        async with Assistant(config(tmp_path, door())) as assistant:
            assert assistant.keeper is not None
            assistant.keeper.timeline.open("gate")
            for state, reason in story:
                facts = {"state": state, "reason": reason, "frozen": False}
                assistant.keeper.diary.heard(StreamEvent("stream.status", "gate", facts))
            found = await entries(assistant, "gate")
            assert [each.text for each in found if each.kind == "state"] == [
                *("connecting", f"waiting: {refused}", f"waiting: {silent}"),
                *("live", "stalled: no frame for 5 s", f"waiting: {refused}"),
                *("live", f"waiting: {refused}", "ended: it is watched no more"),
            ]
            assert len([each for each in found if each.kind == "gap"]) == 1

    run(test())


async def eventually_listed(assistant: Assistant, words: str) -> None:
    for _ in range(600):
        if any(each.text.startswith(words) for each in await entries(assistant)):
            return
        await asyncio.sleep(0.05)
    raise AssertionError([each.text for each in await entries(assistant)])


@pytest.mark.slow
def test_notes_are_taken_when_the_picture_changes_and_nobody_asks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(noting, "LOOK_SECONDS", 0.02)
    monkeypatch.setattr(noting, "SOONEST_SECONDS", 0.0)
    noted = door(notes={"question": "What is there?", "every": 3600, "change": 5})

    async def test() -> None:
        nano = config(tmp_path, noted, model={"name": "nano", "threads": 1})
        async with Assistant(nano) as assistant:
            first, second, _ = scenes()
            await show(assistant, "door", first)
            said = await assistant.ask("What is there?").text()
            await eventually_listed(assistant, said)
            await show(assistant, "door", second)
            other = await assistant.ask("What is there?").text()
            assert not same(said, other)
            await eventually_listed(assistant, other)
            async with served(assistant) as server, httpx.AsyncClient(base_url=server.url, timeout=60) as web:
                for note in (await web.get(PLACE, params={"kind": "note"})).json()["entries"]:
                    picture = await web.get(f"{PLACE}/{note['id']}.jpg")
                    assert note["still"] and picture.headers["content-type"] == "image/jpeg"
            keeper = assistant.keeper
            assert keeper is not None
            # A user's question ends the open note, which is taken again.
            open_note = keeper.notes._open = assistant.ask("What is there?", max_tokens=200)
            answer = assistant.ask("What is there?")
            assert await answer.text() == other and answer.finish_reason == "stop"
            await open_note.text()
            assert open_note.finish_reason in ("cancelled", "stop") and keeper.notes._open is not open_note

    run(test())


def test_the_pace_of_notes() -> None:
    dark, light = np.zeros((20, 20), np.int16), np.full((20, 20), 99, np.int16)
    pace = NotePace(NotesConfig(every=60, change=25))
    assert pace.due(dark, 0.0, short=True) and pace.due(dark, 0.0, short=False), "the first is taken at once"
    pace.took(dark, 0.0)
    assert not pace.due(dark, 59.9, False) and pace.due(dark, 60.0, False)
    assert pace.due(light, noting.SOONEST_SECONDS, False) and not pace.due(light, noting.SOONEST_SECONDS - 0.1, False)
    assert not pace.due(light, 60.0, short=True) and pace.due(dark, 60 * noting.PATIENCE, short=True)
    still = NotePace(NotesConfig(every=60, change=None))
    still.took(dark, 0.0)
    assert not still.due(light, 59.0, False)
    assert same("A red van.", "a red  van") and not same("a red van", "a red car")


def test_what_leaves_a_trace_is_refused_where_nothing_is_kept() -> None:
    for key, value in (("notes", {}), ("keep_questions", True)):
        with pytest.raises(ConfigError) as error:
            parse_config({"streams": [door(keep="nothing", **{key: value})]})
        assert f"{key} with keep nothing" in str(error.value)
