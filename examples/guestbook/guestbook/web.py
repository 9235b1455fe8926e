"""The web application: pages, a small JSON API, and the endpoints a deploy asks for."""

from __future__ import annotations

import os
import time

from flask import (
    Blueprint,
    Flask,
    current_app,
    jsonify,
    redirect,
    render_template,
    request,
    session,
)
from redis.exceptions import RedisError
from werkzeug.wrappers import Response

from guestbook import entries
from guestbook.database import Database, UnavailableError
from guestbook.sessions import Sessions, Visitor
from guestbook.settings import Settings, read

SLOW_LIMIT_SECONDS = 10.0
# Of a worker to the primary and to a replica: about as many requests are at work at the same time.
WARM_CONNECTIONS = 2
Answer = Response | str | tuple[Response | str, int]

pages = Blueprint("pages", __name__)


def create(settings: Settings | None = None) -> Flask:
    """The application, ready for a WSGI server. Raises SettingsError when a variable is missing."""
    settings = settings or read(os.environ)
    app = Flask(__name__, static_folder=None)
    app.config.update(
        SECRET_KEY=settings.secret_key,
        SESSION_COOKIE_NAME="guestbook",
        SESSION_COOKIE_SAMESITE="Lax",
        MAX_CONTENT_LENGTH=64 * 1024,
    )
    app.extensions["guestbook"] = (settings, Database(settings), Sessions(settings))
    app.register_blueprint(pages)
    # Compiled once, before workers are forked, and not by the first request of each.
    app.jinja_env.get_template("index.html")
    return app


def warm(app: Flask) -> None:
    """Open what the first requests of a process would have to wait for."""
    _, database, sessions = app.extensions["guestbook"]
    database.warm(WARM_CONNECTIONS)
    sessions.ping()


def _parts() -> tuple[Settings, Database, Sessions]:
    parts: tuple[Settings, Database, Sessions] = current_app.extensions["guestbook"]
    return parts


@pages.get("/healthz")
def healthz() -> Answer:
    """Alive: this process answers.

    Says nothing of the databases, whose failover must not empty the load balancer.
    """
    return "ok\n"


@pages.get("/readyz")
def readyz() -> Answer:
    """Can serve: the primary, a replica and the sessions all answer."""
    _, database, sessions = _parts()
    checks = {
        "database_primary": database.ping(primary=True),
        "database_replica": database.ping(primary=False),
        "sessions": sessions.ping(),
    }
    ready = not any(checks.values())
    body = {"ready": ready, "checks": {name: why or "ok" for name, why in checks.items()}}
    return jsonify(body), 200 if ready else 503


@pages.get("/version")
def version() -> Answer:
    """Which release answers, and on which host."""
    settings, _, _ = _parts()
    return jsonify(version=settings.version, host=settings.host)


@pages.get("/slow")
def slow() -> Answer:
    """A request that takes its time (`?seconds=`), as reports and uploads do."""
    settings, _, _ = _parts()
    seconds = min(max(request.args.get("seconds", 1.0, type=float), 0.0), SLOW_LIMIT_SECONDS)
    time.sleep(seconds)
    return jsonify(version=settings.version, host=settings.host, seconds=seconds)


@pages.get("/")
def index() -> Answer:
    """The page: the newest entries and a form."""
    return _page(_visitor())


@pages.post("/login")
def login() -> Answer:
    """Remember the visitor's name in the session."""
    visitor = _visitor()
    try:
        _parts()[2].rename(
            visitor.session_id, request.form.get("name", "").strip()[: entries.AUTHOR_LIMIT]
        )
    except RedisError:
        return _page(
            visitor, trouble="Your name could not be kept just now. Please try again.", status=503
        )
    return redirect("/", 303)


@pages.post("/entries")
def post_entry() -> Answer:
    """Take an entry from the form."""
    visitor = _visitor()
    try:
        entry_id, author, text = entries.clean({**request.form, "author": visitor.name})
        entries.add(_parts()[1], entry_id, author, text)
    except entries.InvalidError as error:
        return _page(visitor, trouble=str(error), status=400)
    except UnavailableError:
        trouble = "Your entry could not be saved just now. Send it again."
        return _page(visitor, trouble=trouble, status=503, retry=True)
    session["wrote"] = entry_id
    return redirect("/", 303)


@pages.post("/api/entries")
def api_post() -> Answer:
    """Take `{id, text, author?}`: 200 promises that the row is stored, once however often sent."""
    body = request.get_json(silent=True)
    try:
        entry_id, author, text = entries.clean(body if isinstance(body, dict) else {})
        stamp = entries.add(_parts()[1], entry_id, author, text)
    except entries.InvalidError as error:
        return jsonify(error=str(error)), 400
    except UnavailableError as error:
        return jsonify(
            error="not stored as far as is known; send it again with the same id", why=str(error)
        ), 503
    return jsonify(id=entry_id, acked=True, server=stamp.server, gtid_executed=stamp.gtid_executed)


@pages.get("/api/entries")
def api_get() -> Answer:
    """The entries named by `?ids=a,b,c` and which are missing; without ids, the newest."""
    ids = [part for part in request.args.get("ids", "").split(",") if part]
    if len(ids) > entries.IDS_LIMIT:
        return jsonify(error=f"{len(ids)} ids asked for; {entries.IDS_LIMIT} is the most"), 400
    try:
        rows = entries.by_ids(_parts()[1], ids) if ids else entries.latest(_parts()[1])
    except UnavailableError as error:
        return jsonify(error="no database server answers", why=str(error)), 503
    for row in rows:
        row["created"] = row["created"].isoformat()
    return jsonify(entries=rows, missing=sorted(set(ids) - {row["id"] for row in rows}))


def _visitor() -> Visitor:
    visitor = _parts()[2].visit(session.get("sid"))
    session["sid"] = visitor.session_id
    return visitor


def _page(visitor: Visitor, *, trouble: str = "", status: int = 200, retry: bool = False) -> Answer:
    settings, database, _ = _parts()
    try:
        rows = entries.latest(database, must_include=session.get("wrote"))
    except UnavailableError:
        rows, status = [], 503
        trouble = trouble or "The entries cannot be read just now. Please try again."
    page = render_template(
        "index.html",
        rows=rows,
        visitor=visitor,
        trouble=trouble,
        text=request.form.get("text", "") if trouble else "",
        entry_id=request.form.get("id") if retry else entries.new_id(),
        version=settings.version,
        host=settings.host,
    )
    return page, status
