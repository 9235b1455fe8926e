"""Backups of MySQL in S3: full ones, a continuous archive of its binary logs, and the way back."""
