"""The pictograph set: emoji in up to eleven styles, asked in M-BEIR's eight task shapes.

`build` makes it from packages; `check` proves that nothing held out is in training.
"""

from retrv_r1.data.pictographs.build import build
from retrv_r1.data.pictographs.check import LeakError, check
from retrv_r1.data.pictographs.manifest import Manifest

__all__ = ["LeakError", "Manifest", "build", "check"]
