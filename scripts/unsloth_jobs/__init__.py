"""What the commands in scripts/ share: one module for each question they answer."""
