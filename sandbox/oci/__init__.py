"""OCI documents."""
