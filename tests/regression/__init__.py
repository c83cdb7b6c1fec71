"""Of linear regression, on every backend."""
