"""What gunicorn loads."""

from guestbook.web import create

app = create()
