import pytest

from model.serving.runner import NANO
from model.training.plot import draw_curves, read


def test_every_column_of_the_shipped_log_has_its_curve(tmp_path):
    minutes, values = read(NANO / "training" / "log.csv")
    assert minutes == sorted(minutes) and {"loss", "number was"} <= set(values) and "length" not in values
    figure = draw_curves(NANO / "training")
    assert [axes.get_title(loc="left").split(",")[0] for axes in figure.axes] == list(values)
    for axes, points in zip(figure.axes, values.values(), strict=True):
        (line,) = axes.lines
        assert line.get_xydata().tolist() == [list(point) for point in points]
        assert axes.get_xlim() == (0, minutes[-1])
    figure.savefig(tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_a_curve_rises_where_its_values_do(tmp_path):
    rows = ["step,minutes,length,what", "1,1.0,8,0.0", "2,2.0,8,", "3,3.0,8,1.0"]
    (tmp_path / "log.csv").write_text("\n".join(rows))
    minutes, values = read(tmp_path / "log.csv")
    assert minutes == [1.0, 2.0, 3.0] and values == {"what": [(1.0, 0.0), (3.0, 1.0)]}
    (axes,) = draw_curves(tmp_path).axes
    (start, end) = axes.transData.transform(axes.lines[0].get_xydata())
    assert end[0] > start[0] and end[1] > start[1]


def test_what_is_no_run_is_told(tmp_path):
    with pytest.raises(FileNotFoundError, match="name the folder"):
        draw_curves(tmp_path)
    (tmp_path / "log.csv").write_text("step,minutes\n1,0.5\n")
    with pytest.raises(ValueError, match="has 1 rows"):
        draw_curves(tmp_path)
