"""Flotilla: operate a self-managed fleet on EC2.

Rooms, and who may import whom, are listed in README.md; tests/unit/test_imports.py enforces them.
"""
