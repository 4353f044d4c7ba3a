"""The captured model as data: programs, their graphs and what is known of a graph without running it."""
