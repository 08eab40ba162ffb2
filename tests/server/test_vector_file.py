import hashlib
import tracemalloc

import numpy as np
import pytest
from safetensors.numpy import load_file, save

from server.vector_file import read_vectors, write_vectors

VECTORS = {
    "model": np.arange(5, dtype=np.float32),
    "first": np.full(5, -0.0, np.float32),
    "none": np.empty(0, np.float32),
}


def test_vectors_read_back_to_the_bit_by_us_and_by_the_library(tmp_path):
    path = tmp_path / "file"
    sha256 = write_vectors(path, VECTORS)
    assert sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    for found in (read_vectors(path)[0], load_file(path)):
        assert {n: v.tobytes() for n, v in found.items()} == {
            n: v.tobytes() for n, v in VECTORS.items()
        }


def test_a_file_that_the_library_wrote_is_read(tmp_path):
    (tmp_path / "file").write_bytes(save(VECTORS))
    found, sha256 = read_vectors(tmp_path / "file")
    assert found["model"].tolist() == [0, 1, 2, 3, 4]
    assert sha256 == hashlib.sha256((tmp_path / "file").read_bytes()).hexdigest()


@pytest.mark.parametrize(
    "change",
    [
        lambda whole: b"",
        lambda whole: b"junk" * 10,
        lambda whole: whole[:-1],
        lambda whole: whole + b"x",
        lambda whole: whole.replace(b"F32", b"F16"),
        lambda whole: whole.replace(b"shape", b"shope"),
        lambda whole: whole.replace(b"[0,20]", b"[1,21]"),
    ],
)
def test_another_file_is_a_value_error(tmp_path, change):
    path = tmp_path / "file"
    write_vectors(path, VECTORS)
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ValueError):
        read_vectors(path)


def test_a_model_is_in_memory_once(tmp_path):
    model = np.ones(5_000_000, np.float32)
    tracemalloc.start()
    try:
        write_vectors(tmp_path / "file", {"model": model})
        assert tracemalloc.get_traced_memory()[1] < 0.1 * model.nbytes
        read_vectors(tmp_path / "file")
        assert tracemalloc.get_traced_memory()[1] < 1.1 * model.nbytes
    finally:
        tracemalloc.stop()
