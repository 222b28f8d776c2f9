"""FireWorks' own pages, as they come with it: what they lack or load from the internet is put right on the way.

Nothing is copied from them: their application is run from where it is installed, and their templates are changed while
they are read, before any value from the database is in them.
"""

from __future__ import annotations

import importlib.util
import re
import threading
import warnings
from io import BytesIO
from typing import TYPE_CHECKING, Any

from dftfactory.webgui.reader import StockReader

if TYPE_CHECKING:
    from collections.abc import Callable

    from fireworks import LaunchPad
    from flask import Flask, Response
    from jinja2 import BaseLoader, Environment

MODULE = "fireworks.flask_site.app"
# Bars of a figure, and years that a calendar has.
MOST_INTERVALS = {"minutes": 1000, "hours": 1000, "days": 1000, "months": 1000, "years": 100}
REPORTED = ("fireworks", "workflows", "launches")

_STATIC = "{{{{ url_for('dft.static', filename='{}') }}}}"
# In the texts of the templates.
_MENDS = (
    # The browser runs only what carries the number of this answer; a script that a name brought along does not.
    (r"<script(?= type=\"text/javascript\"|>)", '<script nonce="{{ csp_nonce() }}"'),
    (r"(https?:)?//code\.jquery\.com/jquery\.min\.js", _STATIC.format("jquery.min.js")),
    (r"{{ url_for\('static', filename='js/handlebars-[\w.]+\.js'\) }}", _STATIC.format("mend.js")),
    # A font that FireWorks does not bring along.
    (r"<link href=\"{{ url_for\('static', filename='font-awesome[^>]*>", ""),
    # Without it the form sends the number of the page by itself.
    (r" onsubmit=\"return gotoPage\(this\);\"", ""),
    (
        r"</title>",
        " · dftfactory {{ dftfactory_version }}</title>\n"
        f'<link rel="icon" type="image/svg+xml" href="{_STATIC.format("dft.svg")}">\n'
        f'<link rel="stylesheet" type="text/css" href="{_STATIC.format("stock.css")}">',
    ),
    (r"<body>", "<body>\n{% include 'site/bar.html' %}"),
)
_IMPORT_FROM_AWAY = re.compile(r"@import\s+url\(\s*[\"']?(https?:)?//[^)]*\)\s*;?")


def load_stock_app(launchpad: LaunchPad) -> tuple[Flask, Any]:
    """Return FireWorks' Flask application, and the module that it is in: a fresh one, FireWorks' own stays as it is."""
    spec = importlib.util.find_spec(MODULE)
    if spec is None or spec.loader is None:
        raise ModuleNotFoundError(MODULE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    app: Flask = module.app
    app.extensions["fireworks"] = module
    module.app.lp = StockReader(launchpad)
    if app.jinja_loader is not None:
        app.jinja_loader = _mended(app.jinja_loader)
    app.jinja_env.filters["datetime"] = _date
    app.view_functions["static"] = _static_files(app)
    app.view_functions["simple"] = _figures(module)
    return app, module


def mend_template(source: str) -> str:
    """Return the text of one of FireWorks' templates, mended."""
    for pattern, new in _MENDS:
        source = re.sub(pattern, lambda _, new=new: new, source)  # type: ignore[misc]  # a default of a lambda
    return source


def _mended(loader: BaseLoader) -> BaseLoader:
    from jinja2 import BaseLoader

    class MendedTemplates(BaseLoader):
        def get_source(
            self, environment: Environment, template: str
        ) -> tuple[str, str | None, Callable[[], bool] | None]:
            source, filename, uptodate = loader.get_source(environment, template)
            return mend_template(source), filename, uptodate

        def list_templates(self) -> list[str]:
            return loader.list_templates()

    return MendedTemplates()


def _date(value: Any) -> str:
    """Return the day of a date as FireWorks stores it; the stock filter fails on dates without a fraction."""
    return str(value)[:10]


def _static_files(app: Flask) -> Callable[..., Response]:
    def static(filename: str) -> Response:
        from flask import request

        response = app.send_static_file(filename)
        if filename.endswith(".css"):
            response.direct_passthrough = False
            text = response.get_data(as_text=True)
            if response.status_code == 200 and (mended := _IMPORT_FROM_AWAY.sub("", text)) != text:
                response.set_data(mended)
                response.add_etag(overwrite=True)
                response.make_conditional(request)
        return response

    return static


def _figures(module: Any) -> Callable[..., Response]:
    """Return the view of the bar charts: drawn one at a time, and again only when the numbers have changed."""
    drawn: dict[tuple[str, str, int], tuple[Any, bytes]] = {}
    # pyplot is not used, and yet fonts are shared by all figures.
    lock = threading.Lock()

    def simple(coll: str, interval: str, num_intervals: str) -> Response:
        from matplotlib.backends.backend_agg import FigureCanvasAgg

        number = int(num_intervals)
        report = module.FWReport(module.app.lp)
        numbers = report.get_stats(coll, interval, number)
        with lock:
            known, picture = drawn.get((coll, interval, number), (None, b""))
            if known != numbers:
                report.get_stats = lambda *_, **__: numbers
                png = BytesIO()
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # of an empty chart, matplotlib says that it has no legend
                    canvas = FigureCanvasAgg(report.plot_stats(coll, interval, number))
                canvas.print_png(png)  # type: ignore[no-untyped-call]
                picture = png.getvalue()
                if len(drawn) >= 100:
                    drawn.clear()
                drawn[coll, interval, number] = (numbers, picture)
        response: Response = module.app.response_class(picture, mimetype="image/png")
        return response

    return simple
