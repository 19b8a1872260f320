"""The engine on Ray gives the records that it gives on one machine; without Ray it says so in one line."""

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from common.data.engine import WORK, Job, Unit, begin, run_units
from common.errors import UserError
from tests.common import toy_units


class TaskError(Exception):
    """Stands for `ray.exceptions.RayTaskError`: what a task raised."""

    def __init__(self, cause: Exception) -> None:
        super().__init__("a long traceback")
        self.cause = cause


class FakeRay(ModuleType):
    """The part of Ray that the engine uses, in this process; what a task raises waits until it is fetched.

    A unit whose payload is "die" stands for one whose process died twice.
    """

    class RayError(Exception):
        """Base of what goes wrong on the way."""

    def __init__(self) -> None:
        super().__init__("ray")
        self.exceptions = SimpleNamespace(RayTaskError=TaskError, RayError=self.RayError)
        self.started: dict[str, Any] | None = None
        self.results: dict[int, Any] = {}
        self.most_pending = 0
        self.cancelled: list[int] = []

    def is_initialized(self) -> bool:
        return self.started is not None

    def init(self, **options: Any) -> None:
        self.started = options

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 2.0}

    def put(self, value: Any) -> Any:
        return value

    def remote(self, **options: Any) -> Any:
        assert options == {"num_cpus": 1, "max_retries": 1}

        def submit(function: Any, unit: Unit, *rest: Any) -> int:
            try:
                if unit.payload == "die":
                    raise self.RayError("the worker died")
                result: Any = function(unit, *rest)
            except self.RayError as error:
                result = error
            except Exception as error:
                result = TaskError(error)
            self.results[len(self.results)] = result
            return len(self.results) - 1

        return lambda function: SimpleNamespace(remote=lambda *values: submit(function, *values))

    def wait(self, references: list[int], num_returns: int) -> tuple[list[int], list[int]]:
        self.most_pending = max(self.most_pending, len(references))
        return references[-num_returns:], references[:-num_returns]

    def get(self, reference: int) -> Any:
        result = self.results[reference]
        if isinstance(result, Exception):
            raise result
        return result

    def cancel(self, reference: int) -> None:
        self.cancelled.append(reference)


@pytest.fixture
def fake_ray(monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    fake = FakeRay()
    monkeypatch.setitem(sys.modules, "ray", fake)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return fake


def clips(root: Path, payloads: dict[str, str]) -> tuple[list[Unit], Job]:
    begin(root, {})
    return [Unit(key, "1", payload) for key, payload in payloads.items()], Job(
        root, toy_units.clip, toy_units.tools, toy_units.key_of
    )


def files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def test_without_ray_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    units, job = clips(tmp_path, {"a": ""})
    with pytest.raises(UserError, match=r"needs Ray, which is not installed: pip install 'speechface\[ray\]'"):
        run_units(units, job, workers=2, label="clips", engine="ray")
    assert not (tmp_path / "clips").exists()


def test_ray_gives_what_the_local_engine_gives(tmp_path, fake_ray):
    payloads = {f"c{number}": "torn" if number == 4 else "" for number in range(9)}
    results = {}
    for engine in ("local", "ray"):
        units, job = clips(tmp_path / engine, payloads)
        results[engine] = run_units(units, job, workers=0, label="clips", engine=engine)
    assert results["ray"] == results["local"]
    assert [record.key for record in results["ray"]] == list(payloads)
    assert files(tmp_path / "ray") == files(tmp_path / "local")
    assert fake_ray.started == {"log_to_driver": False, "num_cpus": None, "include_dashboard": False}
    assert fake_ray.most_pending == 4, "two units for each of the two cores"


def test_a_cluster_is_joined_where_the_environment_names_one(tmp_path, fake_ray, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    units, job = clips(tmp_path, {"a": ""})
    run_units(units, job, workers=3, label="clips", engine="ray")
    assert fake_ray.started == {"log_to_driver": False}


def test_only_what_has_no_record_is_done(tmp_path, fake_ray):
    units, job = clips(tmp_path, {"a": "", "b": "", "c": ""})
    run_units(units[:2], job, workers=0, label="clips")
    run_units(units, job, workers=0, label="clips", engine="ray")
    assert [record.key for record in fake_ray.results.values()] == ["c"]


def test_a_dying_process_costs_its_unit_and_a_full_disk_the_run(tmp_path, fake_ray):
    units, job = clips(tmp_path / "a", {"a": "", "b": "die", "c": ""})
    records = run_units(units, job, workers=0, label="clips", engine="ray")
    assert [[drop.reason for drop in record.drops] for record in records] == [
        [],
        ["the process that read it died (out of memory, or a decoder's crash)"],
        [],
    ]
    units, job = clips(tmp_path / "b", {"a": "", "b": "full", "c": ""})
    with pytest.raises(UserError, match=r"^the disk is full$"):
        run_units(units, job, workers=0, label="clips", engine="ray")
    assert fake_ray.cancelled
    units, job = clips(tmp_path / "c", dict.fromkeys("abcd", "die"))
    with pytest.raises(UserError, match="every Ray process dies"):
        run_units(units, job, workers=0, label="clips", engine="ray")


@pytest.mark.slow
def test_a_local_ray_cluster(tmp_path):
    """Two real worker processes; a unit that kills its process is dropped, the others are stored."""
    ray = pytest.importorskip("ray")
    payloads = {"a": "", "b": "torn", "c": "die", "d": "", "e": ""}
    units, job = clips(tmp_path / "ray", payloads)
    try:
        records = run_units(units, job, workers=2, label="clips", engine="ray")
        full, full_job = clips(tmp_path / "full", {"a": "full"})
        with pytest.raises(UserError, match=r"^the disk is full$"):
            run_units(full, full_job, workers=2, label="clips", engine="ray")
    finally:
        ray.shutdown()
    assert [[item.id for item in record.items] for record in records] == [["clips/a"], [], [], ["clips/d"], ["clips/e"]]
    assert [drop.reason.split(" (")[0] for record in records for drop in record.drops] == [
        "the video is cut off",
        "the process that read it died",
    ]
    assert len(list((tmp_path / "ray" / WORK / "records").iterdir())) == 5
