"""What hospital and server agree on; imports neither."""
