"""Stock models give the numbers that a real Detectron2 gave; see parity.py for the procedure."""

import json
import runpy
from pathlib import Path

import pytest

HERE = Path(__file__).parent
PARITY = runpy.run_path(str(HERE / "parity.py"))
# Rounding differs between CPUs and thread counts; on one machine both agree to 1e-5.
TOLERANCE = 1e-4


@pytest.mark.parametrize("name", sorted(PARITY["MODELS"]))
def test_losses_gradients_and_detections_are_those_of_detectron2(name):
    golden = json.loads((HERE / "golden" / f"{name}.json").read_text())
    measured = PARITY["measure"](name, golden["setting"])
    differences = PARITY["differences"](golden["result"], measured)
    wrong = {part: measured[part] for part, value in differences.items() if value > TOLERANCE}
    assert not wrong, f"relative differences {differences}; measured {json.dumps(wrong)}"


def test_differences_are_relative_and_see_every_change():
    differ = PARITY["relative_difference"]
    assert differ({"a": [1.0, 100.0]}, {"a": [1.0, 100.0]}) == 0
    assert differ([1.0, 100.0], [2.0, 100.0]) == pytest.approx(0.01)
    assert differ([{"x": 1.0}, {"x": 2.0}], [{"x": 1.0}, {"x": 2.2}]) == pytest.approx(1 / 11)
    infinite = [(1.0, "1"), ([1.0], [1.0, 2.0]), ({"a": 1.0}, {"b": 1.0}), ("a", "b")]
    assert all(differ(a, b) == float("inf") for a, b in infinite)
