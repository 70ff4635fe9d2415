from tdmpc_opt.cli import output
from tdmpc_opt.cli.output import ConsoleProgress
from tdmpc_opt.progress import Stage


def test_a_log_file_gets_lines_with_the_time_left(capsys, monkeypatch):
    clock = iter([100.0, 160.0, 220.0])
    monkeypatch.setattr(output.time, "monotonic", lambda: next(clock))
    with ConsoleProgress("train") as console:
        console.update(0, 40, "")
        console.update(10, 40, "loss 0.5")
        console.update(40, 40, "loss 0.1")
    lines = capsys.readouterr().err.splitlines()
    assert lines[1] == "train: 10/40, 3.0 min left  loss 0.5"
    assert lines[2] == "train: 40/40  loss 0.1"


def test_lines_come_no_faster_than_one_can_read(capsys, monkeypatch):
    clock = iter([100.0, 101.0, 102.0, 104.0, 116.0])
    monkeypatch.setattr(output.time, "monotonic", lambda: next(clock))
    with ConsoleProgress("train") as console:
        for done in range(5):
            console.update(done, 40, "")
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "train: 0/40  ",
        "train: 2/40, 0.6 min left  ",  # the first estimate after two seconds
    ]


def test_a_new_stage_estimates_its_own_time(capsys, monkeypatch):
    clock = iter([100.0, 200.0, 300.0, 320.0])
    monkeypatch.setattr(output.time, "monotonic", lambda: next(clock))
    with ConsoleProgress("demo") as console:
        for name, done, total in (("a", 0, 4), ("a", 4, 4), ("b", 0, 3), ("b", 1, 3)):
            Stage(console, name).update(done, total, "")
    assert capsys.readouterr().err.splitlines()[-1] == "demo: 1/3, 0.7 min left  b"
