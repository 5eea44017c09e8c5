"""Events, their writers, and logging, on either Detectron2."""

import json
import logging
from pathlib import Path

import pytest
import torch

from detectron2.utils.events import (
    CommonMetricPrinter,
    EventStorage,
    JSONWriter,
    TensorboardXWriter,
    get_event_storage,
    has_event_storage,
)
from detectron2.utils.logger import (
    create_small_table,
    log_every_n,
    log_every_n_seconds,
    log_first_n,
    setup_logger,
)

# Events


def test_storage_smooths_what_was_put_with_the_hint():
    with EventStorage(start_iter=10) as storage:
        for value in (1.0, 2.0, 9.0, 4.0):
            storage.put_scalar("loss", value)
            storage.put_scalar("lr", torch.tensor(value), smoothing_hint=False)
            storage.step()
        assert storage.iter == storage.iteration == 14
        assert storage.latest() == {"loss": (4.0, 13), "lr": (4.0, 13)}
        assert storage.latest_with_smoothing_hint(3) == {"loss": (4.0, 13), "lr": (4.0, 13)}
        assert storage.latest_with_smoothing_hint(4) == {"loss": (3.0, 13), "lr": (4.0, 13)}
        assert storage.smoothing_hints() == {"loss": True, "lr": False}
        assert storage.history("loss").values() == [(1.0, 10), (2.0, 11), (9.0, 12), (4.0, 13)]
        assert set(storage.histories()) == {"loss", "lr"}


def test_window_counts_iterations_and_not_values():
    with EventStorage() as storage:
        for iteration in range(10):
            if iteration % 3 == 0:  # 0, 3, 6, 9
                storage.put_scalar("rare", iteration)
            storage.step()
        assert storage.count_samples("rare", 4) == 2
        assert storage.latest_with_smoothing_hint(4)["rare"] == (7.5, 9)


def test_scalars_of_another_iteration_and_of_a_scope():
    with EventStorage() as storage:
        storage.step()
        with storage.name_scope("rpn"):
            storage.put_scalars(a=1, b=2, cur_iter=0)
        storage.put_scalar("a", 3)
        assert storage.latest() == {"rpn/a": (1.0, 0), "rpn/b": (2.0, 0), "a": (3.0, 1)}


def test_storages_nest():
    assert not has_event_storage()
    with pytest.raises(AssertionError, match="get_event_storage"):
        get_event_storage()
    with EventStorage() as outer:
        with EventStorage() as inner:
            assert get_event_storage() is inner
        assert get_event_storage() is outer
    assert not has_event_storage()


def test_storage_errors():
    with EventStorage() as storage:
        with pytest.raises(KeyError, match="nothing"):
            storage.history("nothing")
        storage.put_scalar("x", 1)
        with pytest.raises(AssertionError, match="x"):
            storage.put_scalar("x", 1, smoothing_hint=False)


def _run(writer, iterations: range, period: int = 2) -> None:
    with EventStorage(iterations.start) as storage:
        for iteration in iterations:
            storage.put_scalar("loss", iteration)
            storage.put_scalar("lr", 0.5, smoothing_hint=False)
            if iteration == 2:
                storage.put_scalar("AP", 40.0, smoothing_hint=False)
            if (iteration + 1) % period == 0:
                writer.write()
            storage.step()
        writer.close()


def _json_lines(path: str) -> list[dict]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def test_json_writer_appends_a_line_per_iteration():
    _run(JSONWriter("metrics.json", window_size=2), range(4))
    _run(JSONWriter("metrics.json", window_size=2), range(4, 6))
    assert _json_lines("metrics.json") == [
        {"iteration": 1, "loss": 0.5, "lr": 0.5},
        {"iteration": 3, "loss": 2.5, "lr": 0.5},
        {"iteration": 2, "AP": 40.0},
        {"iteration": 5, "loss": 4.5, "lr": 0.5},
    ]


class _Lines(logging.Handler):
    """Keeps the messages of a logger, whatever was set up for its parents."""

    def __init__(self) -> None:
        super().__init__()
        self.lines = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(" ".join(record.getMessage().split()))


def test_printer_line(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    handler = _Lines()
    with EventStorage(3) as storage:
        printer = CommonMetricPrinter(max_iter=65, window_size=2)
        monkeypatch.setattr(printer.logger, "handlers", [handler])
        monkeypatch.setattr(printer.logger, "propagate", False)
        printer.logger.setLevel(logging.INFO)
        for value in (1.0, 2.0):
            storage.put_scalars(total_loss=value, time=value, data_time=value / 4)
            storage.put_scalar("[metric]acc", 0.12345)
            storage.put_scalar("other", 7)
            storage.put_scalar("lr", 1e-5, smoothing_hint=False)
            printer.write()
            storage.step()
        storage.iter = 65
        printer.write()  # the end was reported before
        assert storage.latest()["eta_seconds"] == (90.0, 4)
    assert handler.lines == [
        "eta: 0:01:01 iter: 3 total_loss: 1 [metric]acc: 0.1235 time: 1.0000 last_time: 1.0000 "
        "data_time: 0.2500 last_data_time: 0.2500 lr: 1e-05",
        "eta: 0:01:30 iter: 4 total_loss: 1.5 [metric]acc: 0.1235 time: 1.5000 last_time: 2.0000 "
        "data_time: 0.3750 last_data_time: 0.5000 lr: 1e-05",
    ]


def test_tensorboard_file_appears_with_the_first_write(tmp_path):
    event_accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator"
    )
    TensorboardXWriter(str(tmp_path / "empty")).close()
    assert not (tmp_path / "empty").exists()

    writer = TensorboardXWriter(str(tmp_path / "full"), window_size=2)
    with EventStorage() as storage:
        storage.put_image("picture", torch.zeros(3, 4, 4))
        storage.put_histogram("h", torch.arange(4.0), bins=2)
        writer.write()
    _run(writer, range(1, 5))
    events = event_accumulator.EventAccumulator(str(tmp_path / "full"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(1, 1.0), (3, 2.5)]
    assert [e.value for e in events.Scalars("AP")] == [40.0]
    assert [e.step for e in events.Images("picture")] == [0]
    assert events.Histograms("h")[0].histogram_value.sum == 6.0


# Logging


def test_log_files_by_rank(capsys, tmp_path):
    folder = str(tmp_path)
    main = setup_logger(folder, name="test_log_main", color=False)
    other = setup_logger(folder, distributed_rank=2, name="test_log_other")
    named = setup_logger(f"{folder}/named.log", name="test_log_named")
    assert setup_logger(folder, name="test_log_main", color=False) is main
    assert len(main.handlers) == 2
    for logger in (main, other, named):
        logger.debug("hello")
        for handler in logger.handlers:
            handler.flush()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "log.txt",
        "log.txt.rank2",
        "named.log",
    ]
    assert (tmp_path / "log.txt").read_text().endswith("] test_log_main DEBUG: hello\n")
    assert (tmp_path / "log.txt.rank2").read_text().endswith("] test_log_other DEBUG: hello\n")
    console = capsys.readouterr().out
    assert "test_log_main" in console
    assert "test_log_other" not in console


def test_console_abbreviates_names_and_marks_warnings(capsys):
    setup_logger(name="test_console", abbrev_name="tc")
    logging.getLogger("test_console.engine").warning("careful")
    line = capsys.readouterr().out
    assert "WARNING" in line
    assert "tc.engine]: " in line
    assert "test_console" not in line


def test_rate_limited_logging(caplog):
    def at_one_line(message: str) -> None:
        log_first_n(logging.INFO, message, 2, name="limited")

    with caplog.at_level(logging.INFO):
        for number in range(5):
            at_one_line(f"first {number}")
            log_first_n(logging.INFO, f"kind {number % 2}", name="limited", key="message")
            log_every_n(logging.INFO, f"every {number}", 3, name="limited")
            log_every_n_seconds(logging.INFO, f"seconds {number}", 100, name="limited")
    assert sorted(record.getMessage() for record in caplog.records) == sorted(
        ["first 0", "first 1", "kind 0", "kind 1", "every 0", "every 3", "seconds 0"]
    )


def test_small_table():
    header, _, row = create_small_table({"AP": 1.23456, "name": "x"}).splitlines()
    assert [cell.strip() for cell in header.strip("|").split("|")] == ["AP", "name"]
    assert [cell.strip() for cell in row.strip("|").split("|")] == ["1.235", "x"]
