"""The captured model as data: programs, their graphs, and facts about a graph that need no run."""
