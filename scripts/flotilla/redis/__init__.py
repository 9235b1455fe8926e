"""Redis with Sentinel: what the group looks like."""
