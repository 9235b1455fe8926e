"""Certificates by ACME, on a load balancer: order one, and serve the one that was ordered."""
