"""The load balancer pair: who has the address, and move it."""
