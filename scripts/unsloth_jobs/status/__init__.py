"""How a job is doing, and what went wrong."""
