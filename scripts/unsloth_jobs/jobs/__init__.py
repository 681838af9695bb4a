"""Plans, and the jobs that approved plans become."""
