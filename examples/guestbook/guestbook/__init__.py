"""A guestbook: rows in MySQL, sessions in Redis, and the endpoints a deploy asks for."""
