"""Repairs what differs between the owners of a unit from those of them that agree."""
