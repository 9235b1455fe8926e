"""Make AWS look like fleet.yml says, and take it away again: compare, show, change, compare once
more.
"""
