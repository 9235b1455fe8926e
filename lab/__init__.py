"""A local EC2: one process answers the AWS APIs, and every instance is a real Debian host.

The lab knows nothing of the fleets that run in it. Whoever uses it sees an endpoint, as on AWS.
"""
