"""A campaign of faults against checkpoints: workers are killed, stopped, and lose their disk, and every one resumes."""
