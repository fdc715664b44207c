import os

import pytest

from skvae._io.atomic import replace_file


@pytest.mark.parametrize("name", ["file", "a.b.pt", ".hidden", 255 * "a", 251 * "b" + ".pt"])
def test_file_is_replaced(name, tmp_path):
    for data in (b"first", memoryview(b"second")):
        replace_file(tmp_path / name, data)
        assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [(name, bytes(data))]


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_failure_leaves_the_old_file_and_nothing_else(call, error, tmp_path, monkeypatch):
    path, seen = tmp_path / "name.pt", []
    path.write_bytes(b"older")

    def fail(*args):
        seen.extend(sorted(file.name for file in tmp_path.iterdir()))
        raise error

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(type(error)):
        replace_file(path, b"newer")
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("name.pt", b"older")]
    unfinished, _ = seen  # beside the file: checkpoints delete what begins with their stem
    assert unfinished.startswith("name.")
    assert unfinished.endswith(".tmp")
