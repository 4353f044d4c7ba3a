"""Predicts the time and traffic of a training step on any cluster, without running it."""

from sdp_compile.simulator.cluster import Cluster, Link
from sdp_compile.simulator.simulate import simulate
from sdp_compile.simulator.step import Prediction

__all__ = ["Cluster", "Link", "Prediction", "simulate"]
