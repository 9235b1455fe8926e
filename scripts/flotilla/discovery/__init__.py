"""Follow the application tier from a load balancer: EC2 and Auto Scaling in, runtime commands out.

Runs on each load balancer by itself; needs Python, boto3 and this package.
"""
