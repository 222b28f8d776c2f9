"""FireWorks' own Flask application, mended, locked and with our pages in it: what `dftfactory webgui` serves."""

from __future__ import annotations

import contextlib
import threading
import time
from typing import TYPE_CHECKING

import dftfactory
from dftfactory.errors import LaunchPadError
from dftfactory.webgui.login import Login, check_username
from dftfactory.webgui.safety import FILES, guard_requests, secure_answers

if TYPE_CHECKING:
    from fireworks import LaunchPad
    from flask import Flask, Response

# No request works longer on the database, whatever is asked; the first load of all records is the longest of ours.
REQUEST_SECONDS = 20.0
# Requests that work at once: a dashboard asks for eight figures, and somebody may have twenty tabs open.
AT_ONCE = 64
# Name of the table of all records among the extensions of the application.
RECORDS = "dftfactory_records"
# How long a database that is away is waited for, and how long an answer of it is good for.
_ANSWER_SECONDS = 3.0


def make_app(
    launchpad: LaunchPad, *, username: str = "dftfactory", password: str | None = None, host: str = "127.0.0.1"
) -> Flask:
    """Return FireWorks' web application with our pages below /dft; each call makes a fresh one.

    Parameters
    ----------
    launchpad
        What is shown; nothing is written to it.
    username, password
        The login, for every address there is; none without a password.
    host
        Where it will listen. On loopback only names of this machine are answered to.

    Raises
    ------
    ConfigError
        The user name is none, or the password is empty.
    """
    from dftfactory.monitor.record_table import RecordTable
    from dftfactory.webgui.addresses import check_addresses
    from dftfactory.webgui.pages import make_pages
    from dftfactory.webgui.stock import load_stock_app

    app, module = load_stock_app(launchpad)
    app.jinja_env.globals["dftfactory_version"] = dftfactory.__version__
    secure_answers(app)
    # In this order: who asks comes before what is asked for.
    guard_requests(app, host)
    if password is not None:
        _require_login(app, Login(check_username(username), password))
    # Who guesses a password waits elsewhere, and takes nobody's turn.
    _take_turns(app)
    _require_database(app, launchpad)
    check_addresses(app, module)
    app.extensions[RECORDS] = table = RecordTable(launchpad)
    app.register_blueprint(make_pages(launchpad, table))
    _explain_errors(app)
    return app


def _require_login(app: Flask, login: Login) -> None:
    """Ask for the login before anything else is looked at: pages, pictures, files and addresses that are none."""
    from flask import request, session

    @app.before_request
    def check_login() -> Response | None:
        if login.accepts(request, known=bool(session.get("known"))):
            if not session.get("known"):
                session["known"] = True
            return None
        response = app.make_response(("This page needs a user name and a password.\n", 401))
        response.mimetype = "text/plain"
        response.headers["WWW-Authenticate"] = 'Basic realm="dftfactory", charset="UTF-8"'
        return response


def _take_turns(app: Flask) -> None:
    """Let so many requests work at once, each with so many seconds of the database.

    What comes before does not count, the wait of a login above all; nor does an answer that is on its way.
    """
    import pymongo
    from flask import g

    turns = threading.BoundedSemaphore(AT_ONCE)

    @app.before_request
    def begin() -> None:
        with contextlib.ExitStack() as stack:
            stack.enter_context(turns)
            stack.enter_context(pymongo.timeout(REQUEST_SECONDS))
            g.turn = stack.pop_all()

    @app.teardown_request
    def end(error: BaseException | None) -> None:
        if "turn" in g:
            g.pop("turn").close()


def _require_database(app: Flask, launchpad: LaunchPad) -> None:
    """Find out soon when the database is away: its own settings may make a rocket wait for it for minutes."""
    import pymongo
    from flask import request

    answered = float("-inf")

    @app.before_request
    def ask_database() -> None:
        nonlocal answered
        if request.endpoint in FILES or time.monotonic() - answered < _ANSWER_SECONDS:
            return
        with pymongo.timeout(_ANSWER_SECONDS):
            launchpad.connection.admin.command("ping")
        answered = time.monotonic()


def _explain_errors(app: Flask) -> None:
    """Answer with a page that says what is wrong and what to do, in the look of the site."""
    from flask import render_template, session
    from pymongo.errors import ConnectionFailure, ExecutionTimeout, NetworkTimeout, PyMongoError
    from werkzeug.exceptions import HTTPException

    def page(code: int, title: str, message: str) -> Response:
        text = render_template("site/error.html", title=title, message=message)
        return app.make_response((text, code))

    @app.errorhandler(HTTPException)
    def explain(error: HTTPException) -> Response:
        if error.code is None or error.code < 400:  # a redirection
            return error.get_response()  # type: ignore[return-value]  # of Flask's own kind in an application
        titles = {404: "Not found", 500: "This page failed"}
        message = error.description or ""
        if error.code == 500:
            original = getattr(error, "original_exception", None) or error
            message = (
                f"It is a fault of ours or of FireWorks ({type(original).__name__}); the server's log has the rest."
            )
        response = page(error.code, titles.get(error.code, error.name), message)
        for name, value in error.get_headers():
            if name in ("Allow", "Retry-After"):
                response.headers[name] = value
        return response

    @app.errorhandler(PyMongoError)
    @app.errorhandler(LaunchPadError)
    def explain_database(error: Exception) -> Response:
        cause: BaseException | None = error if isinstance(error, PyMongoError) else error.__cause__
        filters = [session.pop(name, None) for name in ("fw_filt", "wf_filt")]
        if isinstance(cause, (ExecutionTimeout, NetworkTimeout)) and any(filters):
            return page(
                503,
                "The query takes too long",
                f"The database was not done with it after {REQUEST_SECONDS:.0f} s. It is dropped: ask for less, or for "
                "something that has an index, such as state, name or fw_id.",
            )
        app.logger.warning("the LaunchPad failed: %s", " ".join(str(error).split())[:300])
        away = cause is None or isinstance(cause, ConnectionFailure)
        said = "does not answer" if away else f"refused what this page needs ({type(cause).__name__})"
        response = page(
            503,
            f"The LaunchPad {said}",
            "What runs goes on, and this page comes back with the database: load it again. `dftfactory check` says "
            "what is wrong with the connection; a local LaunchPad is started by `dftfactory launchpad start`.",
        )
        response.headers["Retry-After"] = "10"
        return response
