import pickle

from common.memo import Memo


class Reader:
    def __init__(self) -> None:
        self.calls: list[int] = []
        self.read = Memo(self._read)

    def _read(self, key: int) -> int:
        self.calls.append(key)
        return 2 * key


def test_a_key_is_read_once() -> None:
    reader = Reader()
    assert [reader.read(key) for key in (1, 2, 1, 1)] == [2, 4, 2, 2]
    assert reader.calls == [1, 2]


def test_it_is_pickled_with_its_owner_and_without_what_it_knows() -> None:
    reader = Reader()
    reader.read(3)
    copy = pickle.loads(pickle.dumps(reader))
    assert copy.read(3) == 6
    assert copy.calls == [3, 3]
    assert reader.calls == [3]
