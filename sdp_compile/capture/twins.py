"""Finds numbers in a graph by their marks in a twin of it, and makes them its inputs."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from sdp_compile.capture.traced import Tape, bits
from sdp_compile.ir.schema import functional_name, functional_variant, operator_name

_KEEP_SHAPE = frozenset(
    "add addbmm addmm addmv addr alpha_dropout baddbmm batch_norm bernoulli binary_cross_entropy cdist "
    "constant_pad_nd cosine_embedding_loss cosine_similarity cross_entropy_loss div dropout embedding_renorm "
    "exponential feature_alpha_dropout feature_dropout fill full full_like group_norm gru hinge_embedding_loss "
    "huber_loss index_add index_fill instance_norm kl_div layer_norm linalg_vector_norm log_normal lstm "
    "margin_ranking_loss masked_fill mul multi_margin_loss multilabel_soft_margin_loss native_batch_norm "
    "native_dropout native_group_norm native_layer_norm new_full norm normal pad pairwise_distance pdist "
    "poisson_nll_loss renorm rms_norm rnn_relu rnn_tanh rrelu rsub scalar_tensor scaled_dot_product_attention "
    "scatter smooth_l1_loss soft_margin_loss sub threshold triplet_margin_loss uniform where".split()
)
"""Operators other than elementwise ones in which a number does not change the shape of the result."""


class _Different(Exception):
    """The two graphs differ."""


class Replacement:
    """Replaces the numbers of one graph by inputs where its twin has their marks."""

    def __init__(self, graph: fx.Graph, twin: fx.Graph, tape: Tape) -> None:
        self._graph, self._twin, self._tape = graph, twin, tape
        self._found = {bits(mark): index for index, mark in enumerate(tape.marks)}
        self._twins: dict[fx.Node, fx.Node] = {}
        self._inputs: dict[int, fx.Node] = {}

    def run(self) -> list[int] | None:
        """Returns the numbers that became inputs; None if the graphs differ."""
        nodes, twins = list(self._graph.nodes), list(self._twin.nodes)
        try:
            if len(nodes) != len(twins):
                raise _Different
            for node, twin in zip(nodes, twins, strict=True):
                if (node.op, node.target, node.name) != (twin.op, twin.target, twin.name):
                    raise _Different
                args, kwargs = self._pair(node, node.args, twin.args), self._pair(node, node.kwargs, twin.kwargs)
                if args is not None:
                    node.args = args
                if kwargs is not None:
                    node.kwargs = kwargs
                self._twins[twin] = node
        except _Different:
            return None
        return list(self._inputs)

    def _pair(self, node: fx.Node, one: Any, other: Any) -> Any:
        """Returns an argument with inputs in place of numbers, None if it has no numbers."""
        if isinstance(one, fx.Node):
            if not isinstance(other, fx.Node) or self._twins.get(other) is not one:
                raise _Different
            return None
        if isinstance(one, (tuple, list, dict)):
            if len(one) != len(other) or (isinstance(one, dict) and list(one) != list(other)):
                raise _Different
            keys = list(one) if isinstance(one, dict) else range(len(one))
            items = [self._pair(node, one[key], other[key]) for key in keys]
            if all(item is None for item in items):
                return None
            filled = [one[key] if item is None else item for key, item in zip(keys, items, strict=True)]
            return dict(zip(keys, filled, strict=True)) if isinstance(one, dict) else type(one)(filled)
        if type(one) is not type(other):
            raise _Different
        if type(one) is float:
            index = self._found.get(bits(other))
            if index is None and bits(one) != bits(other):
                raise _Different
            if index is None:
                return None
            if bits(one) != bits(self._tape.true[index]) or not _keeps_shape(node):
                raise _Different
            return self._input(index)
        if isinstance(one, slice):
            self._pair(node, (one.start, one.stop, one.step), (other.start, other.stop, other.step))
        elif one != other:
            raise _Different
        return None

    def _input(self, index: int) -> fx.Node:
        if index not in self._inputs:
            places = [node for node in self._graph.nodes if node.op == "placeholder"]
            with self._graph.inserting_after(places[-1]) if places else self._graph.inserting_before():
                made = self._graph.placeholder(f"number_{index}")
            made.meta = {"val": self._tape.true[index]}
            self._inputs[index] = made
        return self._inputs[index]


def _keeps_shape(node: fx.Node) -> bool:
    """Whether the shapes of what a node computes do not depend on the numbers among its arguments."""
    target = node.target
    if not isinstance(target, torch._ops.OpOverload):
        return node.op == "output"
    if target.namespace != "aten":
        return False
    variants = (target, functional_variant(target))
    pointwise = any(torch.Tag.pointwise in one.tags for one in variants if one is not None)
    return pointwise or functional_name(operator_name(node)) in _KEEP_SHAPE
