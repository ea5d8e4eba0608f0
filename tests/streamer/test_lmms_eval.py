"""lmms-eval, the real one in an environment of its own, examines a daemon through our plug-in."""

import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import av
import pytest

from tests.environments import install

ROOT = Path(__file__).parents[2]
HOME = ROOT / ".venv-lmms-eval"
DEMO = ROOT / "capture" / "clips" / "demo.mp4"
TASK = """
task: streamer_made
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/made.jsonl}}}}
test_split: test
output_type: generate_until
doc_to_messages: !function made.messages
doc_to_text: question
doc_to_target: answer
generation_kwargs: {{max_new_tokens: 8, temperature: 0}}
process_results: !function made.results
metric_list: [{{metric: right, aggregation: mean, higher_is_better: true}}]
"""
FUNCTIONS = """
from PIL import Image

def messages(doc, **_):
    video = doc["file"].endswith(".mp4")
    seen = {"type": "video", "url": doc["file"]} if video else {"type": "image", "url": Image.open(doc["file"])}
    return [{"role": "user", "content": [seen, {"type": "text", "text": doc["question"]}]}]

def results(doc, answers):
    return {"right": float(answers[0].strip().lower() == doc["answer"])}
"""
QUESTIONS = [
    (4.0, "What do you see?", "a red circle"),
    (12.0, "What do you see?", "a dog"),
    (20.0, "What number is shown?", "42"),
    (28.0, "What do you see?", "a blue square"),
    (None, "What number was shown?", "42"),
    (None, "Has a banana appeared?", "yes"),
]
"""When in the demo clip, or all of it; what is asked, and what is right."""


def still(path: Path, at: float) -> Path:
    with av.open(str(DEMO)) as container:
        frame = next(each for each in container.decode(video=0) if each.time >= at)
        frame.to_image().save(path)
    return path


@pytest.fixture
def url() -> Iterator[str]:
    """Of a daemon with the nano's own weights, by `streamer run`."""
    command = [sys.executable, "-m", "streamer.cli.main", "run", "--stateless", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=ROOT) as daemon:
        assert daemon.stdout is not None
        yield next(line.split()[-1] for line in daemon.stdout if line.startswith("streamer is ready at "))
        daemon.terminate()
        daemon.communicate(timeout=60)


@pytest.mark.nightly
@pytest.mark.timeout(2_000)
def test_the_real_kit_examines_a_daemon(url: str, tmp_path: Path) -> None:
    mark = HOME / "installed"
    if not mark.exists():
        ours = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
        done = install(HOME, "lmms-eval", "filelock<3.20", *ours, seconds=900)  # it reaches into filelock's own files
        assert done.returncode == 0, done.stderr[-2000:]
        mark.touch()
    rows = [
        {
            "file": str(DEMO if at is None else still(tmp_path / f"{at}.png", at)),
            "question": question,
            "answer": answer,
        }
        for at, question, answer in QUESTIONS
    ]
    (tmp_path / "made.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "made.yaml").write_text(TASK.format(folder=tmp_path))
    (tmp_path / "made.py").write_text(FUNCTIONS)
    known = (
        tmp_path / "plug" / "streamer_plug-0.dist-info"
    )  # as `pip install .` would leave it, without another copy of streamer
    known.mkdir(parents=True)
    (known / "METADATA").write_text("Metadata-Version: 2.1\nName: streamer-plug\nVersion: 0\n")
    (known / "entry_points.txt").write_text("[lmms_eval.models]\nstreamer = streamer.lmms_eval:manifest\n")
    command = [HOME / "bin" / "python", "-m", "lmms_eval", "--model", "streamer", "--model_args", f"url={url}"]
    command += ["--include_path", tmp_path, "--tasks", "streamer_made", "--batch_size", "1"]
    places = {"PYTHONPATH": f"{ROOT}:{known.parent}", "HF_HOME": str(tmp_path / "hf"), "HF_DATASETS_OFFLINE": "1"}
    ran = subprocess.run(command, env=os.environ | places, capture_output=True, text=True, timeout=1_000)
    assert ran.returncode == 0, ran.stderr[-3000:]
    found = re.search(r"\|right\s*\|[^|]*\|\s*([0-9.]+)", ran.stdout)
    assert found, ran.stdout[-3000:]
    assert float(found[1]) >= 0.6  # who sees nothing is right of none; how often the nano is right is its card's to say
