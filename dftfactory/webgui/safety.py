"""What holds for every request and every answer, FireWorks' pages and ours alike."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flask import Flask, Response

# Names under which this machine knows itself. A browser that asks for another one was led here by somebody's name
# server, so that a page of his could read ours.
LOOPBACK = ("127.0.0.1", "localhost", "::1")

# Libraries, styles and icons: the same for everybody, and the browser may keep them. Nothing else is kept.
FILES = ("static", "dft.static", "dft.plotly")

# Only what this server has itself. Scripts: from its files, and those in a page that carry the number of this answer;
# nothing is made from text (`unsafe-eval`), and none stands in an attribute. Styles in attributes are FireWorks' own,
# and plotly makes rules while it draws; data: and blob: are pictures that plotly draws and saves.
_CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self' 'nonce-{nonce}'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a server that listens there."""
    return host in LOOPBACK or host.startswith("127.")


def guard_requests(app: Flask, host: str) -> None:
    """Answer GET and HEAD only, and on loopback only who asks for this machine by its name."""
    from flask import abort, request

    allowed = {*LOOPBACK, host.lower()}

    @app.before_request
    def refuse_other_names() -> None:
        # Without the port, which another one leads to through `ssh -L`.
        name = request.host.lower()
        name = name[1:].partition("]")[0] if name.startswith("[") else name.partition(":")[0]
        if is_loopback(host) and name not in allowed:
            abort(421, f"This server answers to {', '.join(sorted(allowed))} and not to {name[:100]}.")

    @app.before_request
    def refuse_other_methods() -> None:
        if request.method not in ("GET", "HEAD"):
            abort(405, description="These pages are only to be looked at.", valid_methods=("GET", "HEAD"))


def secure_answers(app: Flask) -> None:
    """Give every answer the headers that keep a page from doing, or telling, more than it should.

    Templates give their scripts `nonce="{{ csp_nonce() }}"`.
    """
    from flask import g, request

    app.config.update(
        SESSION_COOKIE_NAME="dftfactory_webgui", SESSION_COOKIE_HTTPONLY=True, SESSION_COOKIE_SAMESITE="Strict"
    )

    def csp_nonce() -> str:
        if "csp_nonce" not in g:
            g.csp_nonce = secrets.token_urlsafe(16)
        return str(g.csp_nonce)

    app.jinja_env.globals["csp_nonce"] = csp_nonce

    @app.after_request
    def add_headers(response: Response) -> Response:
        response.headers.update(_HEADERS)
        response.headers["Content-Security-Policy"] = _CONTENT_SECURITY_POLICY.format(nonce=csp_nonce())
        if request.endpoint in FILES:
            response.cache_control.public, response.cache_control.private = False, True
        else:
            response.headers["Cache-Control"] = "no-store"
        return response
