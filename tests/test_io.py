"""A file or folder is there whole, or not at all."""

import errno
import os

import numpy as np
import pandas as pd
import pytest

from derm_rl import errors, io


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


def no_space(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


FULL = {
    "by errno": no_space,
    "in words": lambda: (_ for _ in ()).throw(RuntimeError("I/O error: No space left on device")),
    "without a reason": lambda: (_ for _ in ()).throw(RuntimeError("enforce fail")),
}


@pytest.mark.parametrize("way", FULL)
@pytest.mark.parametrize("atomic", [io.atomic_path, io.atomic_dir])
def test_a_full_disk_is_said_and_nothing_half_written_stays(tmp_path, monkeypatch, atomic, way):
    monkeypatch.setattr(io, "nearly_full", lambda path: way == "without a reason")
    target = tmp_path / "result"
    with pytest.raises(errors.DiskFull) as error, atomic(target):
        FULL[way]()
    assert not list(tmp_path.iterdir())
    mount = next(p for p in tmp_path.resolve().parents if p.is_mount())
    assert f"{target}: the disk is full: file system {mount} has " in str(error.value)
    assert "MB free" in str(error.value)


def test_a_full_disk_is_met_before_a_memory_map_is_written_to(tmp_path, monkeypatch):
    file = tmp_path / "images.npy"
    np.lib.format.open_memmap(file, "w+", np.uint8, (3,))
    monkeypatch.setattr(os, "posix_fallocate", no_space)
    with pytest.raises(errors.DiskFull, match=r"images\.npy: the disk is full"):
        io.reserve(file)
    assert not file.exists()


def test_errors_of_the_file_system_name_the_file_and_a_remedy(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError) as error:
        io.write_atomic(tmp_path / "file" / "x.json", "")
    assert str(tmp_path / "file") in errors.mendable(error.value)
    denied = PermissionError(errno.EACCES, "Permission denied", "/somewhere")
    assert errors.mendable(denied).startswith("/somewhere: Permission denied; ")
    assert "DERM_RL_RUNS" in errors.mendable(denied)
    full = OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "x"))
    assert f"{tmp_path / 'x'}: the disk is full" in errors.mendable(full)
    for fault in (KeyError("x"), ValueError("x"), TypeError(), AssertionError(), RuntimeError()):
        assert errors.mendable(fault) is None
    assert errors.mendable(BrokenPipeError(errno.EPIPE, "")) is None  # `derm-rl presets | head -1`


def test_a_key_that_stands_twice_is_no_yaml():
    assert io.parse_yaml("a: 1\n'1': 2\n1: 3\n") == {"a": 1, "1": 2, 1: 3}
    assert io.parse_yaml("x: &x {a: 1}\ny: {<<: *x, a: 2}") == {"x": {"a": 1}, "y": {"a": 2}}
    with pytest.raises(ValueError, match="'a' stands twice, again in line 3"):
        io.parse_yaml("a: 1\nb: 2\na: 3")
