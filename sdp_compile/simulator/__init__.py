"""Predicts a training step for workers that this machine does not have: its time, and what each worker sends."""

from sdp_compile.simulator.cluster import Cluster, Link
from sdp_compile.simulator.result import Prediction
from sdp_compile.simulator.simulate import simulate

__all__ = ["Cluster", "Link", "Prediction", "simulate"]
