"""What each worker waits for is known to all of them, so that a wait without end becomes an error with its cause."""
