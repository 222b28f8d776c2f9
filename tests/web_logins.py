"""A password for tests of the web GUI, and the headers that a browser sends."""

from __future__ import annotations

import base64

PASSWORD = "correct horse battery staple: Ångström"  # noqa: S105  (of these tests)
RIGHT = {"Authorization": "Basic " + base64.b64encode(f"dftfactory:{PASSWORD}".encode()).decode()}
WRONG = {"Authorization": "Basic " + base64.b64encode(b"dftfactory:wrong").decode()}
