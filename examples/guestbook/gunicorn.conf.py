"""How gunicorn serves the application. Values may be set in the environment."""

import os

bind = f"127.0.0.1:{os.environ.get('PORT', '8000')}"
# Threads, because a request waits for MySQL or Redis most of its time; a write may wait through a
# failover.
worker_class = "gthread"
workers = int(os.environ.get("WEB_CONCURRENCY", "2"))
threads = int(os.environ.get("WEB_THREADS", "16"))
# Longer than nginx keeps an idle connection to us, if it does (60 s): nginx must close first.
keepalive = 75
graceful_timeout = 30
timeout = 60
# The workers share the loaded application's memory.
preload_app = True
worker_tmp_dir = "/dev/shm" if os.path.isdir("/dev/shm") else None  # noqa: PTH112, S108  a heartbeat file must not wait for a disk


def post_worker_init(worker):
    """Each worker opens its connections before it takes requests."""
    # Late: this file is read before the application's folder is on the path.
    from guestbook.web import warm  # noqa: PLC0415

    warm(worker.app.wsgi())
