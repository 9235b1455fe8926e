"""AWS at the edge: sessions, described errors, waiters, and the lease in DynamoDB."""
