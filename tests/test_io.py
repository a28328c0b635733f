"""A file or folder is there whole, or not at all."""

import numpy as np
import pandas as pd
import pytest

from derm_rl import io


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    io.write_atomic(path, "old")
    with pytest.raises(RuntimeError), io.atomic_path(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_a_failed_folder_leaves_the_old_folder(tmp_path):
    folder = tmp_path / "model"
    with io.atomic_dir(folder) as temporary:
        (temporary / "weights").write_text("old")
    with pytest.raises(RuntimeError), io.atomic_dir(folder) as temporary:
        (temporary / "weights").write_text("half")
        raise RuntimeError
    assert (folder / "weights").read_text() == "old"
    with io.atomic_dir(folder) as temporary:
        (temporary / "other").write_text("new")
    assert [p.name for p in folder.iterdir()] == ["other"]
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_json_refuses_what_is_not_json(tmp_path):
    with pytest.raises(ValueError):
        io.write_json(tmp_path / "a.json", {"x": float("nan")})
    assert not list(tmp_path.iterdir())
    (tmp_path / "b.json").write_text("{")
    with pytest.raises(ValueError, match=r"b\.json"):
        io.read_json(tmp_path / "b.json")


def test_csv_round_trip_and_missing_values(tmp_path):
    frame = pd.DataFrame({"x": [1.0, np.nan], "y": ["a", None]})
    io.write_csv(tmp_path / "t.csv", frame)
    assert (tmp_path / "t.csv").read_text() == "x,y\n1,a\n,\n"
    pd.testing.assert_frame_equal(io.read_csv(tmp_path / "t.csv"), frame, check_dtype=False)
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(ValueError, match=r"empty\.csv"):
        io.read_csv(tmp_path / "empty.csv")


def test_numpy_may_write_to_the_temporary_name(tmp_path):
    with io.atomic_path(tmp_path / "a.npy") as temporary:
        np.save(temporary, np.arange(3))
    assert np.load(tmp_path / "a.npy").tolist() == [0, 1, 2]
