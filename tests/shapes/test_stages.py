"""Stages: what is done stays done, what fails says so, and nothing keeps running behind one's back."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from emu3.errors import UserError
from emu3.files import read_json, write_json
from shapes import stages as stages_module
from shapes.stages import ADDRESS, Command, Server, Stages, Task, module


def python(code: str) -> Command:
    return ["-c", code]


def note(file: Path, text: str) -> Command:
    """Appends a line to a file."""
    return python(f"open({str(file)!r}, 'a').write({text!r} + '\\n')")


def announce_and_sleep(file: Path) -> Command:
    """Writes its process id, whole, and sleeps on."""
    part = str(file) + ".part"
    return python(
        "import os, time; "
        f"open({part!r}, 'w').write(str(os.getpid())); os.replace({part!r}, {str(file)!r}); time.sleep(60)"
    )


def fail_once_there_is(file: Path) -> Command:
    return python(f"import os, sys, time\nwhile not os.path.exists({str(file)!r}): time.sleep(0.01)\nsys.exit(3)")


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_stage_that_is_done_is_not_run_again(tmp_path: Path) -> None:
    """An interrupted run continues where it stopped, also in a new process."""
    log = tmp_path / "log.txt"
    for _ in range(2):
        stages = Stages(tmp_path, cores=1)
        stages.run("first", note(log, "one"), note(log, "two"))
    stages.run("second", note(log, "three"))
    assert log.read_text().split() == ["one", "two", "three"]
    costs = stages.costs()
    assert list(costs["stages"]) == ["first", "second"]
    assert costs["wall_seconds"] == pytest.approx(sum(costs["stages"].values()))


def test_a_stage_that_was_renamed_is_not_run_again(tmp_path: Path) -> None:
    """A folder of an older version would tokenize anew what its later stages were trained on."""
    write_json(tmp_path / "stages.json", {"tokenise": {"seconds": 1.0, "core_seconds": 1.0}})
    Stages(tmp_path, cores=1).run("tokenize", note(tmp_path / "log.txt", "again"))
    assert not (tmp_path / "log.txt").exists()


def test_a_folder_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    """Guards stages that are taken for done though they made something else."""
    Stages(tmp_path, cores=1).run("first", note(tmp_path / "log.txt", "one"))
    done = read_json(tmp_path / "stages.json")
    assert done.keys() == {"version", "first"} and list(Stages(tmp_path, cores=1).done) == ["first"]
    write_json(tmp_path / "stages.json", done | {"version": done["version"] + 1})
    with pytest.raises(UserError, match=r"stages\.json has format 3, this version of the project reads up to 2"):
        Stages(tmp_path, cores=1)


def test_a_failure_names_the_stage_and_shows_its_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The reason is in the log of a child; without its end on the screen a person sees only a number."""
    stages = Stages(tmp_path, cores=1)
    with pytest.raises(UserError, match=r"stage train failed with exit code 3; its log is .*train\.log") as caught:
        stages.run("train", python("import sys; print('no such column'); sys.exit(3)"))
    assert "no such column" in capsys.readouterr().err
    assert "no such column" in Path(str(caught.value).split("its log is ")[1]).read_text()
    assert not (tmp_path / "stages.json").exists(), "a failed stage is run again"


def test_a_failure_stops_the_others(tmp_path: Path) -> None:
    """A sibling left alone would train for minutes behind the error and write into the next try."""
    pid = tmp_path / "pid"
    with pytest.raises(UserError, match=r"control-1\.log"):
        Stages(tmp_path, cores=2).run("control", announce_and_sleep(pid), fail_once_there_is(pid))
    assert not is_running(int(pid.read_text()))


def test_no_more_commands_at_once_than_cores(tmp_path: Path) -> None:
    """Three trainings on two cores take longer than one after the other, and their times mean nothing."""
    log = tmp_path / "log.txt"
    code = f"import time\nfor word in ('in', 'out'): open({str(log)!r}, 'a').write(word + '\\n'); time.sleep(0.1)"
    Stages(tmp_path, cores=1).run("both", python(code), python(code))
    assert log.read_text().split() == ["in", "out", "in", "out"]


def test_one_thread_per_command(tmp_path: Path) -> None:
    Stages(tmp_path, cores=1).run("ask", python("import os; print(os.environ['OMP_NUM_THREADS'])"))
    assert (tmp_path / "logs" / "ask.log").read_text() == "1\n"


def test_a_server_runs_as_long_as_it_is_needed(tmp_path: Path) -> None:
    """Also when the block fails: a judge that stays keeps its port and its memory."""
    pid = tmp_path / "pid"
    stages = Stages(tmp_path, cores=1)
    with (
        pytest.raises(RuntimeError, match="training broke"),
        stages.server("judge", announce_and_sleep(pid), pid) as url,
    ):
        process = int(url)
        assert is_running(process)
        raise RuntimeError("training broke")
    assert not is_running(process)
    assert not pid.exists(), "the next run must not take the address of this one"


def test_a_server_that_dies_at_once_is_reported_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits an hour for the address of a process that is gone."""
    address = tmp_path / "address"
    address.write_text("http://left.over")
    monkeypatch.setattr(stages_module, "_STARTUP", 3600.0)
    stages = Stages(tmp_path, cores=1)
    with (
        pytest.raises(UserError, match=r"judge did not start; its log is .*judge\.log"),
        stages.server("judge", python("import sys; sys.exit(1)"), address),
    ):
        pytest.fail("it took the address of a server that is gone")


def test_children_of_a_stage_end_with_it(tmp_path: Path) -> None:
    """torchrun's ranks are grandchildren."""
    pid = tmp_path / "pid"
    child = announce_and_sleep(pid)
    parent = python(f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child[1]!r}])")
    with pytest.raises(UserError):
        Stages(tmp_path, cores=2).run("ranks", parent, fail_once_there_is(pid))
    deadline = time.monotonic() + 300
    while is_running(int(pid.read_text())) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not is_running(int(pid.read_text()))


def test_commands_are_written_as_a_person_would_type_them() -> None:
    command = module("rl.train", "a.jsonnet", train_data=["x", "y"], use_cpu=True, coefficients=None)
    assert [str(part) for part in command] == [
        *("-m", "rl.train", "a.jsonnet"),
        *("--train-data", "x", "y", "--use-cpu", "True"),
    ]
    assert module("rl.train", "a", ranks=2) == ["-m", "emu3.launch", "--ranks", "2", "rl.train", "a"]


def test_costs_are_written_beside_the_run(tmp_path: Path) -> None:
    """The work is measured in CPU time: a loop of fixed length was over in none of it on a fast machine."""
    Stages(tmp_path, cores=1).run("work", python("import time\nwhile time.process_time() < 0.5: pass"))
    cost = read_json(tmp_path / "stages.json")["work"]
    assert 0.5 <= cost["core_seconds"] <= cost["seconds"] + 0.2


def meet(own: Path, other: Path) -> Command:
    """Ends once the other one has begun, too, and a while later."""
    return python(
        f"import os, time\nopen({str(own)!r}, 'w')\n"
        f"while not os.path.exists({str(other)!r}): time.sleep(0.01)\ntime.sleep(1)"
    )


def test_independent_tasks_run_side_by_side(tmp_path: Path) -> None:
    """One after the other, two trainings of one core each leave half of the machine idle. The time by the clock counts
    their common seconds once."""
    first, second = tmp_path / "first", tmp_path / "second"
    stages = Stages(tmp_path, cores=2)
    assert stages.run_all([Task("one", (meet(first, second),)), Task("two", (meet(second, first),))]) == {}
    costs = stages.costs()
    assert set(costs["stages"]) == {"one", "two"}
    assert costs["wall_seconds"] <= sum(costs["stages"].values()) - 0.7


def test_a_task_runs_after_what_it_needs(tmp_path: Path) -> None:
    """The order of the list is one of preference alone."""
    log = tmp_path / "log.txt"
    tasks = [
        Task("last", (note(log, "last"),), ("middle", "first")),
        Task("middle", (note(log, "middle"),), ("first",)),
        Task("first", (note(log, "first"),)),
    ]
    Stages(tmp_path, cores=2).run_all(tasks)
    assert log.read_text().split() == ["first", "middle", "last"]
    with pytest.raises(ValueError, match="nothing can run of lost"):
        Stages(tmp_path, cores=2).run_all([Task("lost", (note(log, "never"),), ("nobody",))])


def test_a_task_of_two_cores_runs_alone(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    code = f"import time\nfor word in ('in', 'out'): open({str(log)!r}, 'a').write(word + '\\n'); time.sleep(0.1)"
    wide, narrow = Task("wide", (python(code),), cores=2), Task("narrow", (python(code),))
    Stages(tmp_path, cores=2).run_all([wide, narrow])
    assert log.read_text().split() == ["in", "out", "in", "out"]


def test_a_task_of_two_cores_is_not_overtaken(tmp_path: Path) -> None:
    """Narrow tasks, of which a study always has one more, would keep it waiting for hours."""
    log = tmp_path / "log.txt"
    tasks = [
        Task("first", (python("import time; time.sleep(0.5)"),)),
        Task("wide", (note(log, "wide"),), cores=2),
        Task("narrow", (note(log, "narrow"),)),
    ]
    Stages(tmp_path, cores=2).run_all(tasks)
    assert log.read_text().split() == ["wide", "narrow"]


def test_a_failed_task_costs_only_what_needs_it(tmp_path: Path) -> None:
    """A study of forty runs goes on without the one that broke, and says why it is missing."""
    log = tmp_path / "log.txt"
    tasks = [
        Task("at last", (note(log, "at last"),), ("after",)),
        Task("broken", (python("import sys; sys.exit(3)"),)),
        Task("after", (note(log, "after"),), ("broken",)),
        Task("judged", (note(log, "judged"),), server="dead"),
        Task("apart", (note(log, "apart"),)),
    ]
    stages = Stages(tmp_path, cores=1)
    dead = Server(python("import sys; sys.exit(1)"), tmp_path / "address")
    failures = stages.run_all(tasks, {"dead": dead}, keep_going=True)
    assert failures.keys() == {"broken", "after", "at last", "judged"}
    assert failures["after"] == "broken failed before it" and "dead did not start" in failures["judged"]
    assert "stage broken failed with exit code 3" in failures["broken"]
    assert log.read_text() == "apart\n" and list(stages.done) == ["apart"]


def test_nothing_begins_without_time_for_it(tmp_path: Path) -> None:
    """What no budget is left for is made by a later call; what needs it waits without a complaint."""
    log = tmp_path / "log.txt"
    tasks = [
        Task("long", (note(log, "long"),)),
        Task("after", (note(log, "after"),), ("long",)),
        Task("short", (note(log, "short"),)),
    ]
    assert Stages(tmp_path, cores=1).run_all(tasks, may_start=lambda task: task.name != "long") == {}
    assert log.read_text().split() == ["short"]
    Stages(tmp_path, cores=1).run_all(tasks)
    assert log.read_text().split() == ["short", "long", "after"]


def test_a_task_gets_the_address_of_its_server(tmp_path: Path) -> None:
    """In its command and its variables; the server ends with the last task that needs it, and others begin without."""
    pid, seen = tmp_path / "pid", tmp_path / "seen"
    server = Server(announce_and_sleep(pid), pid)
    show = python(f"import os, sys; open({str(seen)!r}, 'w').write(sys.argv[1] + ' ' + os.environ['JUDGE'])")
    tasks = [
        Task("ask", ([*show, f"at={ADDRESS}"],), server="judge", environment={"JUDGE": ADDRESS}),
        Task("later", (python(f"import os; assert not os.path.exists({str(pid)!r})"),), ("ask",)),
    ]
    stages = Stages(tmp_path, cores=1)
    stages.run_all(tasks, {"judge": server})
    address = seen.read_text().split()[1]
    assert seen.read_text() == f"at={address} {address}" and not is_running(int(address))
    stages.run_all(tasks, {"judge": Server(python("import sys; sys.exit('started for nothing')"), pid)})


def test_a_folder_whose_stage_was_split_continues(tmp_path: Path) -> None:
    """A former version trained both controls as one stage; another training would take ten minutes for nothing."""
    write_json(tmp_path / "stages.json", {"version": 2, "controls": {"seconds": 1.0, "core_seconds": 2.0}})
    Stages(tmp_path, cores=1).run_all([Task("controls:sft_sc", (note(tmp_path / "log.txt", "again"),))])
    assert not (tmp_path / "log.txt").exists()
