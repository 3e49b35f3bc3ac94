"""Opening a run directory: what is there is read, what is missing is named, what is foreign is refused."""

import json
from pathlib import Path

import pytest
from run_maker import (
    MONOTONIC_AT,
    RUN,
    WALL_AT,
    clean_seconds,
    facts,
    log_of,
    make_run,
    packed_header,
    turns,
)

from analysis.runs import ForeignRun, open_run


def test_a_run_is_opened_whole(tmp_path: Path) -> None:
    run = open_run(make_run(tmp_path, log_of(turns(30), clean_seconds(4))))
    assert run.id == RUN
    assert run.finished
    assert (len(run.turns), len(run.workers), len(run.sessions), len(run.server)) == (30, 4, 20, 0)
    assert run.turns["cluster"].nunique() == 20
    assert run.turns["flagged"].dtype == bool


def test_latest_is_followed(tmp_path: Path) -> None:
    made = make_run(tmp_path, log_of(turns(3)))
    (tmp_path / "latest").symlink_to(made.name)
    assert open_run(tmp_path / "latest").path == made.resolve()


def test_workers_of_two_hosts_are_laid_on_one_wall_clock(tmp_path: Path) -> None:
    far = facts("w1", host="box-b", boot_id="boot-b", monotonic_at=900_000.0, wall_at=WALL_AT + 3.0)
    logs = {
        "w0": log_of(turns(2)),
        "w1": log_of(turns(2, worker="w1", intended_at=lambda n: 900_000.0 + 7.0 + n), worker=far),
    }
    run = open_run(make_run(tmp_path, logs))
    assert run.turns["intended_wall_at"].tolist() == pytest.approx(
        [WALL_AT + 10, WALL_AT + 10.1, WALL_AT + 10, WALL_AT + 11]
    )


def test_workers_of_one_boot_share_an_anchor(tmp_path: Path) -> None:
    """The wall clock was set back by 2 s between the starts of two workers of one host."""
    later = facts("w1", monotonic_at=MONOTONIC_AT + 5, wall_at=WALL_AT + 5 - 2)
    logs = {"w0": log_of(turns(1)), "w1": log_of(turns(1, worker="w1"), worker=later)}
    run = open_run(make_run(tmp_path, logs))
    assert run.turns["intended_wall_at"].nunique() == 1


def test_sessions_of_two_workers_are_two_though_named_alike(tmp_path: Path) -> None:
    logs = {"w0": log_of(turns(6, 3)), "w1": log_of(turns(6, 3, worker="w1"), worker=facts("w1"))}
    assert open_run(make_run(tmp_path, logs)).turns["cluster"].nunique() == 6


@pytest.mark.parametrize("state", ["running", None])
def test_a_half_written_run_is_read_as_far_as_it_goes(tmp_path: Path, state: str | None) -> None:
    made = make_run(tmp_path, log_of(turns(10))[:-40], state="running")
    if state is None:
        (made / "run.json").unlink()
    run = open_run(made)
    assert len(run.turns) == 10
    assert not run.finished
    assert run.sealed.logs["w0"].torn_bytes > 0


@pytest.mark.parametrize("text", ["{", "[]", '{"hello": 1}', "\x00"])
def test_a_broken_manifest_does_not_hide_the_rows(tmp_path: Path, text: str) -> None:
    made = make_run(tmp_path, log_of(turns(3)))
    (made / "run.json").write_text(text)
    run = open_run(made)
    assert len(run.turns) == 3
    assert "run.json" in run.manifest_fault
    assert run.id == made.name


def test_a_log_that_grew_since_is_read_again(tmp_path: Path) -> None:
    made = make_run(tmp_path, log_of(turns(3)))
    assert len(open_run(made).turns) == 3
    (made / "log" / "w0.msgpack").write_bytes(log_of(turns(8)))
    assert len(open_run(made).turns) == 8


def refusal(path: Path) -> str:
    with pytest.raises(ForeignRun) as caught:
        open_run(path)
    line = str(caught.value)
    assert "\n" not in line
    return line


def test_what_is_no_run_is_refused_with_the_way_out(tmp_path: Path) -> None:
    assert "make demo" in refusal(tmp_path / "runs" / "latest")
    assert "name a run directory" in refusal(tmp_path / "gone")
    (tmp_path / "file").write_text("")
    assert "is a file" in refusal(tmp_path / "file")
    (tmp_path / "empty").mkdir()
    assert "is empty" in refusal(tmp_path / "empty")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_text("")
    assert "not a run directory" in refusal(tmp_path / "photos")
    (tmp_path / "photos" / "run.json").write_text('{"scripts": {}}')
    assert "another program" in refusal(tmp_path / "photos")


def test_the_folder_of_runs_is_no_run(tmp_path: Path) -> None:
    made = make_run(tmp_path, log_of(turns(1)))
    assert f"{tmp_path / made.name}" in refusal(tmp_path)


def test_a_run_without_turns_is_refused(tmp_path: Path) -> None:
    assert "began no turn" in refusal(make_run(tmp_path / "a", log_of([], clean_seconds(5))))
    assert "began no turn" in refusal(make_run(tmp_path / "b", packed_header(facts())[:50]))
    assert "log/ is empty" in refusal(make_run(tmp_path / "c", {}))
    assert "newer Cicada" in refusal(make_run(tmp_path / "d", packed_header(facts(), version=99)))
    assert "newer Cicada" in refusal(make_run(tmp_path / "e", log_of(turns(1)), schema_version=99))


def test_a_manifest_is_whatever_json_says(tmp_path: Path) -> None:
    made = make_run(tmp_path, log_of(turns(1)), workers=[])
    assert json.loads((made / "run.json").read_text())["workers"]
    (made / "run.json").write_text(json.dumps({"schema_version": 1, "workers": None, "scenario": None}))
    assert open_run(made).log_workers == {}
