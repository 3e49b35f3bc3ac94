"""run.json and run directories: whole at every instant, and never a secret in them."""

import json
from pathlib import Path

import pytest

from workers import manifest
from workers.samples.schema import SCHEMA_VERSION

SCENARIO = {"name": "demo", "dialect": "openai"}


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("http://user:secret@host:8080/x", "http://[redacted]@host:8080/x"),
        ("https://secret@host", "https://[redacted]@host"),
        ("http://user:se@cret@host:80", "http://[redacted]@host:80"),
        ("--host=http://user:secret@host/", "--host=http://[redacted]@host/"),
        ("http://host:8080/a@b", "http://host:8080/a@b"),
        ("http://localhost:8080", "http://localhost:8080"),
        ("someone@example.com", "someone@example.com"),
        ("", ""),
    ],
)
def test_credentials_are_cut_out(text: str, kept: str) -> None:
    assert manifest.without_credentials(text) == kept


def test_no_secret_gets_into_the_opening(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CICADA_TOKEN", "tok-secret")
    command = ["locust", "--host", "http://user:se@cret@tts.example:1/base", "-u", "5"]
    opening = manifest.opening("r1", "http://user:se@cret@tts.example:1/base", SCENARIO, 5, command)
    text = json.dumps(opening)
    assert "cret" not in text
    assert "user:" not in text
    assert opening["host"] == "http://[redacted]@tts.example:1/base"


def test_the_opening_says_what_runs_where_with_what() -> None:
    opening = manifest.opening("r1", None, SCENARIO, 50, ["locust"])
    assert opening["schema_version"] == SCHEMA_VERSION
    assert (opening["run"], opening["name"], opening["state"]) == ("r1", "demo", "running")
    assert (opening["host"], opening["users"], opening["scenario"]) == ("", 50, SCENARIO)
    assert opening["ended_wall_at"] is None
    assert opening["workers"] == {}
    assert {"python", "locust", "gevent"} <= set(opening["versions"])
    assert {"host", "boot_id", "system", "cpus", "memory_bytes"} <= set(opening["machine"])
    assert opening["machine"]["memory_bytes"] > 1 << 20


def test_written_and_read_again(tmp_path: Path) -> None:
    opening = manifest.opening("r1", "http://h", SCENARIO, None, [])
    manifest.write(tmp_path, opening)
    assert json.loads((tmp_path / "run.json").read_text("utf-8")) == opening


def test_a_reader_never_sees_half_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write that fails half-way, as on a full disk, leaves the run.json that was there."""
    manifest.write(tmp_path, {"run": "before"})

    def break_off(path: Path, text: str, *_: object) -> int:
        with path.open("w") as file:
            file.write(text[: len(text) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", break_off)
    with pytest.raises(OSError, match="No space"):
        manifest.write(tmp_path, {"run": "after"})
    assert json.loads((tmp_path / "run.json").read_text("utf-8")) == {"run": "before"}


def test_a_reader_who_is_at_it_keeps_what_it_reads(tmp_path: Path) -> None:
    """Put in place in one step, never written over: who has it open has the whole of the one before."""
    manifest.write(tmp_path, {"run": "before"})
    with (tmp_path / "run.json").open() as reader:
        manifest.write(tmp_path, {"run": "after"})
        assert json.load(reader) == {"run": "before"}
    assert json.loads((tmp_path / "run.json").read_text("utf-8")) == {"run": "after"}
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_run_directories_do_not_collide(tmp_path: Path) -> None:
    runs = tmp_path / "deep" / "runs"
    made = [manifest.new_run_dir(runs, "demo") for _ in range(4)]
    assert len(set(made)) == 4
    for run_dir in made:
        assert (run_dir / "log").is_dir()
        assert run_dir.name.partition("-")[2].partition("-")[2].startswith("demo")


def test_latest_points_at_the_newest(tmp_path: Path) -> None:
    for _ in range(3):
        run_dir = manifest.new_run_dir(tmp_path, "demo")
        assert (tmp_path / "latest").resolve() == run_dir.resolve()
    assert not Path((tmp_path / "latest").readlink()).is_absolute(), "a moved runs folder keeps its latest"
    leftovers = [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]
    assert leftovers == []


@pytest.mark.parametrize("name", ["../../etc", "a/b", "mit Umlaut ü", "x" * 30, "..", "a\nb"])
def test_a_name_stays_one_folder(tmp_path: Path, name: str) -> None:
    run_dir = manifest.new_run_dir(tmp_path, name)
    assert run_dir.parent == tmp_path
    assert "\n" not in run_dir.name


def test_a_folder_that_cannot_be_made_is_an_oserror(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        manifest.new_run_dir(tmp_path / "file", "demo")


def test_boot_id_is_the_machines() -> None:
    assert manifest.boot_id() == manifest.boot_id() != ""
