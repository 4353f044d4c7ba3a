"""Draws the views with rich. Names from the user's model are always wrapped in `rich.text.Text`."""
