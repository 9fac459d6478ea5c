"""The network in ONNX Runtime: a step as a graph of its LSTM and GRU operators, and NumPy for the draw."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.suite.peers import TOP_K, refuse_more
from melodia.model import Model
from melodia.model.layers import PairLevel, RecurrentLayer

ORDER = {"lstm": (0, 3, 1, 2), "gru": (1, 0, 2)}
"""ONNX's order of the gates (i, o, f, c; z, r, h), as places in torch's (i, f, g, o; r, z, n)."""


def missing() -> str | None:
    """Why the peer cannot be run; None if it can."""
    for name in ("onnx", "onnxruntime"):
        try:
            __import__(name)
        except ImportError:
            return f"{name} is not installed (pip install 'melodia[bench]')"
    return None


class Onnx:
    """ONNX Runtime on the CPU.

    Args:
        model: the network.
        B: streams.
        threads: of the runtime.
    """

    def __init__(self, model: Model, B: int, threads: int) -> None:
        import onnxruntime

        refuse_more(model)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        self._session = onnxruntime.InferenceSession(
            graph(model, B).SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        names = [entry.name for entry in self._session.get_inputs()][1:]
        zero = np.zeros((1, B, model.config.hidden_size), np.float32)
        self._inputs: dict[str, Any] = dict.fromkeys(names, zero)
        self._states = names
        self._inputs["token"] = np.zeros(B, np.int64)
        self._random = np.random.default_rng(1)

    def step(self) -> None:
        """See `Peer`."""
        logits = self._run()
        k = min(TOP_K, logits.shape[1])
        ids = np.argpartition(logits, -k, axis=1)[:, -k:]
        values = np.take_along_axis(logits, ids, axis=1)
        weights = np.exp(values - values.max(axis=1, keepdims=True))
        bounds = weights.cumsum(axis=1)
        thrown = self._random.random((len(ids), 1)) * bounds[:, -1:]
        chosen = (bounds < thrown).sum(axis=1, keepdims=True)
        self._inputs["token"] = np.take_along_axis(ids, chosen, axis=1)[:, 0]

    def logits(self, token: int) -> np.ndarray:
        """See `Peer`."""
        self._inputs["token"] = np.full_like(self._inputs["token"], token)
        return self._run()

    def _run(self) -> np.ndarray:
        logits, *states = self._session.run(None, self._inputs)
        self._inputs.update(zip(self._states, states, strict=True))
        return logits


def graph(model: Model, B: int) -> Any:
    """One step: token [B], a state [1, B, H] for each layer and of an LSTM another -> logits [B, V], the states."""
    from onnx import TensorProto, helper, numpy_helper

    H, V = model.config.hidden_size, model.config.vocab_size
    nodes, constants, inputs, outputs = [], [], [], []

    def constant(name: str, value: np.ndarray) -> str:
        constants.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def node(operator: str, takes: list[str], gives: list[str], **attributes: Any) -> None:
        nodes.append(helper.make_node(operator, takes, gives, **attributes))

    def weight(tensor: Any) -> np.ndarray:
        return tensor.detach().numpy()

    def recur(layer: RecurrentLayer, name: str, x: str) -> str:
        """Add a layer over x [1, B, D]; gives the name of its output [1, B, H]."""

        def ordered(tensor: Any) -> np.ndarray:
            gates = np.split(weight(tensor), len(ORDER[layer.cell]))
            return np.concatenate([gates[k] for k in ORDER[layer.cell]])[None]

        bias = np.concatenate([ordered(layer.bias_ih), ordered(layer.bias_hh)], axis=1)
        takes = [
            x,
            constant(f"{name}.W", ordered(layer.weight_ih)),
            constant(f"{name}.R", ordered(layer.weight_hh)),
        ]
        takes += [constant(f"{name}.B", bias), "", f"{name}.h"]
        parts = ["h"]
        attributes: dict[str, Any] = {"hidden_size": H}
        if layer.cell == "lstm":
            takes.append(f"{name}.c")
            parts.append("c")
        else:
            attributes["linear_before_reset"] = 1
        for part in parts:
            shape = [1, B, H]
            inputs.append(helper.make_tensor_value_info(f"{name}.{part}", TensorProto.FLOAT, shape))
            outputs.append(helper.make_tensor_value_info(f"{name}.{part}.new", TensorProto.FLOAT, shape))
        node(layer.cell.upper(), takes, ["", *(f"{name}.{part}.new" for part in parts)], **attributes)
        return f"{name}.h.new"

    node("Gather", [constant("E", weight(model.input.weight)), "token"], ["row"])
    node("Unsqueeze", ["row", constant("first", np.array([0]))], ["x"])
    x = "x"
    for index, level in enumerate(model.stack.levels):
        made = [recur(layer, f"{layer.cell}{index}", x) for layer in level.cells]
        x = made[0]
        if isinstance(level, PairLevel):
            assert level.projection is not None
            node("Concat", made, [f"both{index}"], axis=2)
            node(
                "MatMul",
                [f"both{index}", constant(f"P{index}", weight(level.projection.weight).T)],
                [f"p{index}"],
            )
            node("Add", [f"p{index}", constant(f"b{index}", weight(level.projection.bias))], [f"x{index}"])
            x = f"x{index}"
    node("Squeeze", [x, "first"], ["top"])
    assert model.head.weight is not None
    node(
        "Gemm",
        ["top", constant("W", weight(model.head.weight)), constant("b", weight(model.head.bias))],
        ["logits"],
        transB=1,
    )
    token = helper.make_tensor_value_info("token", TensorProto.INT64, [B])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, [B, V])
    made_graph = helper.make_graph(nodes, "step", [token, *inputs], [logits, *outputs], constants)
    made_model = helper.make_model(made_graph, opset_imports=[helper.make_opsetid("", 17)])
    made_model.ir_version = 8
    return made_model
