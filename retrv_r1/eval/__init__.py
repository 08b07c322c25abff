"""Evaluation: recall of both stages over a data set's tasks, with time and tokens used."""

from retrv_r1.eval.auto import AutoFit, fit_auto_threshold
from retrv_r1.eval.calibration import Calibration, calibrate
from retrv_r1.eval.cells import EvalError
from retrv_r1.eval.evaluate import run
from retrv_r1.eval.fitting import fit_temperature
from retrv_r1.eval.report import Report, render
from retrv_r1.eval.settings import EvalOptions

__all__ = [
    "AutoFit",
    "Calibration",
    "EvalError",
    "EvalOptions",
    "Report",
    "calibrate",
    "fit_auto_threshold",
    "fit_temperature",
    "render",
    "run",
]
