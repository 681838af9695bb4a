"""What a run takes and costs on each flavor."""
