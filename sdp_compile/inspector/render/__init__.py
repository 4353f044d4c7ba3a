"""The views as rich shows them; user data only ever stands in `rich.text.Text`."""
