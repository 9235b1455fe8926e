"""What runs on a database host. Needs nothing but Python, PyMySQL and this package."""
