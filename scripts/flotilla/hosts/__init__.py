"""Hosts at the edge: SSH through the bastion, and the services that answer there."""
