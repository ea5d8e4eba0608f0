import json

import pytest

from model.serving.runner import NANO
from model.training.plot import draw_curves, read


def test_all_that_the_shipped_curve_tells_is_drawn(tmp_path):
    last, values = read(NANO / "training")
    assert last > 147 and {"loss", "number was"} <= set(values) and "length" not in values
    figure = draw_curves([NANO / "training"])
    titles = [axes.get_title(loc="left").split(",")[0] for axes in figure.axes]
    assert set(titles) == set(values) and titles[0] in ("lr", "loss", "guiding", "norm")
    for axes, title in zip(figure.axes, titles, strict=True):
        (line,) = axes.lines
        assert line.get_xydata().tolist() == [list(point) for point in values[title]]
        assert axes.get_xlim() == (0, last)
    figure.savefig(tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_several_stages_share_each_panel(tmp_path):
    for name, end in (("base", 0.9), ("nothing", 0.5)):
        (tmp_path / name).mkdir()
        rows = [
            {"step": 1, "minutes": 1.0, "part": "answering", "loss": 2.0, "right": {"what": 0.0}},
            {"step": 2, "minutes": 2.0, "part": "answering", "probe": {"now 32": [int(10 * end), 10]}},
        ]
        (tmp_path / name / "curve.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read(tmp_path / "base") == (2.0, {"loss": [(1.0, 2.0)], "what": [(1.0, 0.0)], "now 32 frames": [(2.0, 0.9)]})
    figure = draw_curves([tmp_path / "base", tmp_path / "nothing"])
    (probed,) = [axes for axes in figure.axes if axes.get_title(loc="left").startswith("now 32 frames")]
    assert [line.get_xydata().tolist() for line in probed.lines] == [[[2.0, 0.9]], [[2.0, 0.5]]]


def test_what_is_no_curve_is_told(tmp_path):
    with pytest.raises(FileNotFoundError, match="name the folder"):
        draw_curves([tmp_path])
    (tmp_path / "curve.jsonl").write_text('{"step": 1, "minutes": 0.5}\n')
    with pytest.raises(ValueError, match="has 1 rows"):
        draw_curves([tmp_path])
    (tmp_path / "curve.jsonl").write_text("step,minutes\n1,0.5\n")
    with pytest.raises(ValueError, match="is not a curve"):
        draw_curves([tmp_path])
