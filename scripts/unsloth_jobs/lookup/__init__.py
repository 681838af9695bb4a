"""What the Hub and the data say of a run before it is paid for."""
