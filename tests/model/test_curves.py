import numpy as np
import pytest

from model.serving.runner import NANO
from model.training.plot import COLUMNS, HEIGHT, LINE, WIDTH, draw_curves, read


def test_every_column_of_the_shipped_log_has_its_curve():
    minutes, values = read(NANO / "training" / "log.csv")
    assert minutes == sorted(minutes) and {"loss", "number was"} <= set(values) and "length" not in values
    picture = np.asarray(draw_curves(NANO / "training"))
    assert picture.shape == (-(-len(values) // COLUMNS) * HEIGHT, COLUMNS * WIDTH, 3)
    for i in range(len(values)):
        row, column = divmod(i, COLUMNS)
        part = picture[row * HEIGHT : (row + 1) * HEIGHT, column * WIDTH : (column + 1) * WIDTH]
        assert (part == LINE).all(-1).sum() > 100


def test_a_curve_rises_where_its_values_do(tmp_path):
    rows = ["step,minutes,length,what", "1,1.0,8,0.0", "2,2.0,8,", "3,3.0,8,1.0"]
    (tmp_path / "log.csv").write_text("\n".join(rows))
    minutes, values = read(tmp_path / "log.csv")
    assert minutes == [1.0, 2.0, 3.0] and values == {"what": [(1.0, 0.0), (3.0, 1.0)]}
    blue = np.argwhere((np.asarray(draw_curves(tmp_path)) == LINE).all(-1))
    left, right = blue[blue[:, 1].argmin()], blue[blue[:, 1].argmax()]
    assert left[0] > right[0]


def test_what_is_no_run_is_told(tmp_path):
    with pytest.raises(FileNotFoundError, match="name the folder"):
        draw_curves(tmp_path)
    (tmp_path / "log.csv").write_text("step,minutes\n1,0.5\n")
    with pytest.raises(ValueError, match="has 1 rows"):
        draw_curves(tmp_path)
