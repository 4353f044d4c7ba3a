"""Predicts a training step for workers that this machine does not have: its time, and what each worker sends."""

from sdp_compile.simulator.cluster import Cluster, Link
from sdp_compile.simulator.simulate import simulate
from sdp_compile.simulator.step import Prediction

__all__ = ["Cluster", "Link", "Prediction", "simulate"]
