"""Other frameworks' training loops: each file extends one of them on its own extension point."""
