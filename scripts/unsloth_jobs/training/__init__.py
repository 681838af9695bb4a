"""What a job needs and the checks share. It imports the standard library alone; other libraries inside functions."""
