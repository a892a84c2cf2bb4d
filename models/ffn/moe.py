"""Several feed-forwards, a few of which a router picks for each token: a mixture of experts.

    p = softmax(x @ router)                          in float32
    y = Σ over the top_k experts e of  g_e · expert_e(x)

With one expert a token, g_e = p_e (Switch: Fedus et al. 2021, arXiv:2101.03961), which is how the
router learns. With more, the gates of those that were picked are divided by their sum (GShard:
Lepikhin et al. 2020, arXiv:2006.16668), before any of them is passed by.

In training an expert takes at most ceil(capacity_factor · N · top_k / experts) of N tokens. Further
ones are passed by: that expert adds 0 for them, and the residual carries them on. Places go to
tokens in their order, all choices of a token together, so that no token's output depends on a later
one. (GShard serves all first choices first, which tells a token about its successors.) In eval mode
there is no limit: a token's output then depends on that token alone, whatever the batch around it.

Shape legend: B batch, T time, D hidden_size, M hidden units of an expert, E experts, K top_k, N = B
times T tokens, S = N times K slots (a token's choices side by side).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import paddle
from paddle import Tensor, nn
from paddle.nn import functional

from models.ffn.base import FFN, Cost, Shape
from models.ffn.dense import DenseFFN

ROUTER_SCALE = 0.1  # spread of the router's start over other weights': all experts are tried first


@dataclass(frozen=True)
class MoEOptions:
    """Options of `Model.ffn` for kind `moe`; `expert_size` None is F hidden units an expert."""

    experts: int = 8
    top_k: int = 1
    expert_size: int | None = None
    capacity_factor: float = 1.25
    balance_weight: float = 0.01


class MoEFFN(FFN):
    """`experts` dense feed-forwards of M hidden units; a token passes through `top_k` of them.

    Raises `ValueError` for a `top_k` outside 1..experts, and for an `expert_size` or a
    `capacity_factor` that is not positive.
    """

    kind = "moe"
    why_not_mergeable = "a router picks other weights for each token"
    Options = MoEOptions

    def __init__(self, shape: Shape, options: MoEOptions) -> None:
        super().__init__(shape, options)
        _check(options)
        self.options = options
        expert = replace(shape, ffn_hidden_size=_expert_size(shape, options))
        normal = nn.initializer.Normal(0.0, ROUTER_SCALE * shape.init_std)
        self.router = nn.Linear(
            shape.hidden_size,
            options.experts,
            weight_attr=paddle.ParamAttr(initializer=normal),
            bias_attr=False,
        )
        self.experts = nn.LayerList([DenseFFN(expert) for _ in range(options.experts)])
        self._auxiliary_loss: Tensor | None = None

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Map [B, T, D] to [B, T, D]."""
        x_ND = x_BTD.reshape([-1, x_BTD.shape[-1]])
        top_k = self.options.top_k
        probabilities_NE = self._probabilities(x_ND)
        gates_NK, experts_NK = paddle.topk(probabilities_NE, top_k)
        if top_k > 1:
            gates_NK = gates_NK / gates_NK.sum(axis=-1, keepdim=True)
        experts_S = experts_NK.reshape([-1])
        counts_E = paddle.bincount(experts_S, minlength=self.options.experts)
        self._auxiliary_loss = self._balance(probabilities_NE, counts_E)
        outputs_SD = self._run_experts(x_ND, experts_S, counts_E.tolist())
        outputs_NKD = outputs_SD.reshape([-1, top_k, x_ND.shape[-1]])
        gated_NKD = outputs_NKD * gates_NK.astype(outputs_NKD.dtype).unsqueeze(-1)
        return gated_NKD.sum(axis=1).reshape(x_BTD.shape)

    def _probabilities(self, x_ND: Tensor) -> Tensor:
        """Softmax over the experts, [N, E], in float32 whatever the precision of the model."""
        exact = paddle.float64 if x_ND.dtype == paddle.float64 else paddle.float32
        with paddle.amp.auto_cast(enable=False):
            logits_NE = paddle.matmul(x_ND.astype(exact), self.router.weight.astype(exact))
            return functional.softmax(logits_NE, axis=-1)

    def _balance(self, probabilities_NE: Tensor, counts_E: Tensor) -> Tensor | None:
        """Fedus et al.'s experts · Σ_e fraction_e · mean p_e, weighted; the sum is 1 when even.

        `fraction_e` is e's share of all choices, before any is passed by; it has no gradient.
        """
        if not (self.training and self.options.balance_weight):
            return None
        counts_E = counts_E.astype(probabilities_NE.dtype)
        fractions_E = counts_E / counts_E.sum()
        spread = (fractions_E * probabilities_NE.mean(axis=0)).sum()
        return self.options.balance_weight * self.options.experts * spread

    def _run_experts(self, x_ND: Tensor, experts_S: Tensor, counts: list[int]) -> Tensor:
        """Return each slot's output of its expert [S, D], 0 where it was passed by."""
        slots = experts_S.shape[0]
        limit = self._capacity(slots) if self.training else slots
        order_S = paddle.argsort(experts_S, stable=True)
        taken, outputs, idle = [], [], []
        start = 0
        for expert, count in zip(self.experts, counts, strict=True):
            if count:
                chosen = order_S[start : start + min(count, limit)]
                tokens = chosen // self.options.top_k
                outputs.append(expert(paddle.index_select(x_ND, tokens, axis=0)))
                taken.append(chosen)
                start += count
            elif self.training:
                idle.append(expert(x_ND[:1]))
        rows, places = paddle.concat(outputs), paddle.concat(taken)
        # Every place is written once, so the result does not depend on the order of writing.
        empty_SD = paddle.zeros([slots, x_ND.shape[-1]], rows.dtype)
        outputs_SD = paddle.scatter(empty_SD, places, rows, overwrite=True)
        # An expert that nobody chose gets a gradient of 0 instead of none: the optimizer treats
        # its weights as it treats all others.
        for output in idle:
            outputs_SD = outputs_SD + 0.0 * output
        return outputs_SD

    def _capacity(self, slots: int) -> int:
        return math.ceil(self.options.capacity_factor * slots / self.options.experts)

    @classmethod
    def cost(cls, shape: Shape, options: MoEOptions) -> Cost:
        """Parameters E(2DM + M + D) + DE, forward FLOPs 4KDM + 2DE a token.

        Tokens that are passed by for lack of capacity are counted as if they were not. Kept are, of
        each choice, the input and output rows and the hidden units before and after GELU, and the
        probabilities.
        """
        _check(options)
        d, m = shape.hidden_size, _expert_size(shape, options)
        experts, top_k = options.experts, options.top_k
        return Cost(
            parameters=experts * (2 * d * m + m + d) + d * experts,
            flops_per_token=4 * top_k * d * m + 2 * d * experts,
            kept_per_token=top_k * (2 * m + 2 * d) + experts,
            kept_fused=top_k * (m + 2 * d) + experts,
        )

    def auxiliary_loss(self) -> Tensor | None:
        """Return the weighted balance loss of the last forward pass; None in eval mode."""
        return self._auxiliary_loss


def _check(options: MoEOptions) -> None:
    if not 1 <= options.top_k <= options.experts:
        raise ValueError(f"top_k {options.top_k} is outside 1..{options.experts}, the experts")
    if options.capacity_factor <= 0:
        raise ValueError(f"capacity_factor {options.capacity_factor} is not above 0")
    if options.expert_size is not None and options.expert_size < 1:
        raise ValueError(f"expert_size {options.expert_size} is below 1")


def _expert_size(shape: Shape, options: MoEOptions) -> int:
    return shape.ffn_hidden_size if options.expert_size is None else options.expert_size
