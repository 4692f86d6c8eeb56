"""What `listen` does: webhooks of the registry, a queue on disk, and workers that run commands."""
