"""Mouse wheel and keys over the planes of a viewer, which plotly alone does not hear.

`Hands` listens in the browser (`hands.js`) to the whole viewer that it stands in, and sends one message at a time:

    {"kind": "slice", "axis": "x2", "steps": 3}     wheel, arrows up and down, Page, Home and End; axis: the panel's
    {"kind": "step", "steps": -1, ...}              arrows left and right
    {"kind": "window", "steps": 2, ...}             the keys 1 to 9
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, final

import anywidget
import traitlets

HOME = "mg3d-planes"  # the class of the widget that is listened to


@final
class Hands(anywidget.AnyWidget):
    """One line of help; `act(kind, axis, steps)` is called for each message, and the browser waits until it is done."""

    _esm = Path(__file__).with_name("hands.js")
    help = traitlets.Unicode().tag(sync=True)

    def __init__(self, act: Callable[[str, str, int], None], *, help: str) -> None:
        super().__init__(help=help)
        self._act = act
        self.on_msg(self._asked)

    def _asked(self, _widget: Any, message: dict[str, Any], _buffers: Any) -> None:
        try:
            self._act(message["kind"], message["axis"], int(message["steps"]))
        finally:
            self.send({"done": True})
