"""What a log that is no terminal says of a pass."""

import logging
import re

from diva_ray.engine import progress


def test_a_log_gets_whole_lines_with_rate_and_time_left(monkeypatch, caplog, capsys):
    monkeypatch.setattr(progress, "LOG_EVERY", 0.0)
    caplog.set_level(logging.INFO, "diva_ray")
    told = progress.Progress("fit", 3000)
    told.add(1000)
    told.add(2000)
    told.close()
    during, last = caplog.messages
    assert re.fullmatch(r"fit +33 %  [\d,]+ rows/s  \d+ s left", during)
    assert re.fullmatch(r"pass=fit rows=3000 seconds=\d+\.\d+ rows_per_second=\d+", last)
    assert capsys.readouterr().err == "", "no bar is drawn over and over"


def test_short_passes_leave_no_line_on_a_terminal(monkeypatch, caplog):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    caplog.set_level(logging.INFO, "diva_ray")
    short, long = progress.Progress("fit", 3000), progress.Progress("score", 3000)
    long.start -= 2.0
    for told in (short, long):
        told.add(3000)
        told.close(step=0)
    assert len(caplog.messages) == 1 and re.fullmatch(
        r"score +3,000 rows in 2\.\d+ s +\([\d,]+ rows/s\)", caplog.messages[0]
    )
