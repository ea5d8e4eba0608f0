"""The door: every refusal names path, value and mend."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from capture import IceServer
from streamer.config import Config, ConfigError, load_config, parse_config
from streamer.engine.stream import source_options

CONFIGS = Path(__file__).parents[2] / "configs"


def problem(data: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as refused:
        parse_config(data)
    assert len(refused.value.problems) == 1
    return refused.value.problems[0]


def stream(**keys: Any) -> dict[str, Any]:
    return {"streams": [{"name": "door", "source": "demo:", **keys}]}


def test_nothing_is_needed() -> None:
    config = parse_config({})
    assert config == Config()
    assert config.server.port == 8765 and config.server.host == "127.0.0.1"


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.name)
def test_shipped_files_are_accepted(path: Path) -> None:
    assert load_config(path).streams


@pytest.mark.parametrize(
    ("data", "parts"),
    [
        ({"sever": {}}, ["sever: unknown key", "did you mean 'server'?"]),
        ({"server": {"prot": 80}}, ["server.prot: unknown key (value 80)", "did you mean 'port'?"]),
        ({"server": {"zzz": 1}}, ["server.zzz", "known here: host, port"]),
        ({"webrtc": {"ice_server": []}}, ["webrtc.ice_server: unknown key", "did you mean 'ice_servers'?"]),
        (
            {"webrtc": {"ice_servers": [{"urls": ["stun:a:1"], "user": "x"}]}},
            ["webrtc.ice_servers[0].user: unknown key", "did you mean 'username'?"],
        ),
        (
            {"server": {"public_url": "home.example"}},
            ["server.public_url: 'home.example'", "write https://home.example"],
        ),
        (
            {"server": {"public_url": "https://home.example/", "root_path": "/cam"}},
            ["public_url https://home.example does not end with root_path /cam: write https://home.example/cam"],
        ),
        (stream(deadlin=1), ["streams[0].deadlin: unknown key", "did you mean 'deadline'?"]),
        (stream(fps="25fps"), ["streams[0].fps: '25fps' is not a plain number: write 25"]),
        (stream(loop="ja"), ["streams[0].loop: 'ja' is neither true nor false; write one of them"]),
        ({"streams": [{"name": 7, "source": "demo:"}]}, ["streams[0].name: 7 is no text; write it in quotes"]),
        ({"answers": {"max_tokens": "many"}}, ["answers.max_tokens: 'many' is not a number"]),
        (
            {"server": {"tokens": [{"name": "a", "scopes": ["vew"], "digest": "sha256:" + "0" * 64}]}},
            ["server.tokens[0].scopes[0]: 'vew' is not one of"],
        ),
        (
            {**stream(), "watches": [{"name": "w", "streams": ["door"], "question": "Is it?", "describe": 7}]},
            ["watches[0].describe: 7 is no question: write one in quotes, or true or false"],
        ),
        (stream(fps=float("nan")), ["streams[0].fps: nan is not finite; write a plain number"]),
        (stream(start=float("inf")), ["streams[0].start: inf is not finite; write a plain number"]),
        (stream(source=""), ["streams[0].source: '' is too short; write at least 1 character"]),
        (stream(notes={"question": "x" * 1_001}), ["xxx... is too long; write at most 1000 characters"]),
        ({"server": {"port": 1.5}}, ["server.port: 1.5 must be a valid integer"]),
        (
            {"outputs": {"webhooks": [{"name": "w", "url": "http://x/", "secret": "keepout"}]}},
            ["outputs.webhooks[0].secret: what it holds is too short; write at least 8 characters"],
        ),
        (
            {"outputs": {"commands": [{"name": "c", "command": []}]}},
            ["outputs.commands[0].command: [] is too short; write at least 1 entry"],
        ),
        (stream(fps=0), ["streams[0].fps: 0 is out of range; it must be more than 0"]),
        (stream(stall_after=-3), ["streams[0].stall_after: -3 is out of range; it must be more than 0"]),
        (stream(stall_after="5s"), ["streams[0].stall_after: '5s'", "write 5"]),
        (stream(deadline="200ms"), ["streams[0].deadline: '200ms'", "write 0.2"]),
        (stream(stall_after="1 min"), ["write 60"]),
        (stream(stall_after="soon"), ["streams[0].stall_after: 'soon' is not a number"]),
        (stream(fps=True), ["streams[0].fps: True is not a number"]),
        (stream(policy="newst"), ["streams[0].policy: 'newst' is not one of", "did you mean 'newest'?"]),
        (stream(realtime=False), ["streams[0]", "set policy to every"]),
        (stream(name="a b"), ["streams[0].name: 'a b' is no name", "letters, digits"]),
        ({"streams": [{"name": "door"}]}, ["streams[0].source: is missing; add it"]),
        ({"streams": {"name": "door"}}, ["streams:", "is not a list"]),
        ({"server": 8765}, ["server: 8765 is not a section"]),
        ({"server": {"port": 70_000}}, ["server.port: 70000 is out of range; it must be at most 65535"]),
        ({"model": {"position_horizon": -60}}, ["model.position_horizon: -60 is out of range"]),
        ({"model": {"device": "gpu"}}, ["model.device: 'gpu' is not one of 'cpu' or 'cuda'"]),
        ({"model": {"dtype": "fp8"}}, ["model: dtype fp8 needs device cuda, not cpu"]),
        (
            {"model": {"dtype": "int8", "device": "cuda"}},
            ["model: dtype int8 needs device cpu, not cuda: choose bfloat16 or fp8"],
        ),
        (
            {"model": {"attention": {"sinks": 4, "window": 9, "sink": 1}}},
            ["model.attention.sink: unknown", "did you mean 'sinks'?"],
        ),
        (
            {"answers": {"floor_tokens_per_second": 40}},
            ["answers", "floor_tokens_per_second 40 is above ceiling_tokens_per_second 30"],
        ),
        ({"answers": {"max_tokens": 2000}}, ["answers.max_tokens 2000 is above limits.answer_tokens 1024"]),
        (
            {"streams": [{"name": "a", "source": "demo:"}] * 2},
            ["streams has a more than once: give every stream a name of its own"],
        ),
        (
            {"streams": [{"name": n, "source": "demo:"} for n in "ab"], "limits": {"streams": 1}},
            ["streams has 2 entries, limits.streams allows 1"],
        ),
    ],
)
def test_refusals_name_path_value_and_mend(data: dict[str, Any], parts: list[str]) -> None:
    line = problem(data)
    assert "\n" not in line and "keepout" not in line
    for part in parts:
        assert part in line


def test_what_is_no_section_at_all_is_named_first() -> None:
    with pytest.raises(ConfigError) as refused:
        parse_config("demo.yaml")  # type: ignore[arg-type]
    assert refused.value.problems == ["'demo.yaml' is not a section; write keys under it"]


def test_every_problem_is_listed() -> None:
    with pytest.raises(ConfigError) as refused:
        parse_config({"server": {"port": -1}, "limits": {"stream": 3}}, "c.yaml")
    assert len(refused.value.problems) == 2
    assert str(refused.value).count("c.yaml: ") == 2


def test_two_streams_of_one_name_are_told_beside_other_mistakes() -> None:
    streams = [{"name": "a", "source": "demo:", "fps": 0}, {"name": "a", "source": "demo:"}]
    with pytest.raises(ConfigError) as refused:
        parse_config({"streams": streams})
    assert refused.value.problems == [
        "streams[0].fps: 0 is out of range; it must be more than 0",
        "streams has a more than once: give every stream a name of its own",
    ]
    for odd in ("demo:", [7, {"name": ["a"]}, {"name": ["a"]}, None], [{"name": "a\nb"}] * 2, {"name": "a"}):
        with pytest.raises(ConfigError) as refused:
            parse_config({"streams": odd})
        assert not any("more than once" in line for line in refused.value.problems)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("streams: [", "line 1: is not YAML"),
        ("- 1", "holds a list"),
        ("\xff", "is not text"),
        ("a: \x00", "is not YAML"),
        ("[" * 5000, "is nested too deeply"),
        (
            "streams: [{name: a, source: 'demo:'}]\nstreams: []",
            "line 2: is not YAML (key 'streams' stands there a second",
        ),
        ("server:\n  port: 1\n  port: 2", "line 3: is not YAML (key 'port' stands there a second time: keep one)"),
    ],
)
def test_broken_files(tmp_path: Path, text: str, part: str) -> None:
    path = tmp_path / "broken.yaml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError) as refused:
        load_config(path)
    assert str(path) in str(refused.value) and part in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1


def test_merged_keys_may_be_overridden(tmp_path: Path) -> None:
    path = tmp_path / "merged.yaml"
    path.write_text("streams:\n  - &a {name: a, source: 'demo:', fps: 5}\n  - {<<: *a, name: b}\n")
    assert [(stream.name, stream.fps) for stream in load_config(path).streams] == [("a", 5), ("b", 5)]


def test_missing_and_empty_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path / "none.yaml")
    (tmp_path / "empty.yaml").write_text("# nothing\n")
    assert load_config(tmp_path / "empty.yaml") == Config()


KEYS = st.sampled_from(
    [
        "server",
        "model",
        "streams",
        "answers",
        "limits",
        "name",
        "source",
        "fps",
        "port",
        "tokens",
        "attention",
        "x",
        "device",
    ]
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS | st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(KEYS, VALUES, max_size=4))
@example({"server": {"\n": None}})
@example({"model": {"k" * 2_000: 1}})
def test_whatever_is_written_is_accepted_or_refused_in_lines(data: dict[str, Any]) -> None:
    try:
        parse_config(data)
    except ConfigError as error:
        assert error.problems and not any("\n" in problem for problem in error.problems)
        assert all(len(problem) < 600 for problem in error.problems)


def test_a_source_is_opened_as_its_stream_is_configured() -> None:
    chosen = {"fps": 5.0, "loop": True, "start": 2.0, "change": 3.0, "transport": "udp", "camera_size": (640, 480)}
    config = parse_config(
        {
            "streams": [{"name": "door", "source": "demo:", "open_timeout": 3, "stall_after": 4, **chosen}],
            "webrtc": {"ice_servers": [{"urls": ["turn:a:1"], "username": "u", "credential": "c"}]},
        }
    )
    options = source_options(config.streams[0], config.webrtc)
    assert {name: getattr(options, name) for name in chosen} == chosen
    assert (options.patience.open, options.patience.stall) == (3, 4)
    assert options.ice_servers == (IceServer(("turn:a:1",), "u", "c"),)
