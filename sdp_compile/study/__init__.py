"""Studies: schedules against honest baselines, over seeds and learning rates, resumable."""
