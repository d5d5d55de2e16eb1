"""Operations on a pair of tensors stacked along the first axis: x[0] a value, x[1] its derivative along a direction.

What is linear (residual sums, rotations, reshapes) acts on the pair as on any batch of two; here is the rest of a decoder of
the Llama family, each with the closed form of its backward pass. Differentiating a program that computes a directional
derivative gives a Hessian-vector product (reverse over forward): one backward pass, of twice the width of the usual one, and
no graph of a graph. Nothing is kept but inputs; what can be recomputed cheaply is.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F

from llm_forgetting.landscape.gauge import Factors
from llm_forgetting.models.language.packing import Layout

Context = Any  # of torch.autograd.Function
# Rows at a time of an elementwise operation on a CPU: its temporaries then stay in the cache.
ROWS = 64


class WeightTangent(Protocol):
    """The derivative V of one weight matrix along the direction, and what is collected about it."""

    def spread(self, x: torch.Tensor, y: torch.Tensor) -> Any:
        """Add V x[0] to y[1]; returns what `collect` wants to have kept."""
        ...

    def collect(self, x: torch.Tensor, grad_y: torch.Tensor, grad_x: torch.Tensor | None, kept: Any) -> None:
        """Add V^T grad_y[1] to grad_x[0], and take what is wanted of the weight's derivatives of Phi, which are

        grad_y[0]^T x[0] + grad_y[1]^T x[1] for the weight (the Hessian-vector product) and grad_y[1]^T x[0] for V (the
        gradient).
        """
        ...


class Linear(torch.autograd.Function):
    """(W + B A) x + b of frozen W, B and A; the tangent of their sum is `tangent` (none: 0)."""

    @staticmethod
    def forward(  # noqa: PLR0917 -- of a Function
        ctx: Context,
        x: torch.Tensor,
        anchor: torch.Tensor,
        weight: Callable[[], torch.Tensor],
        bias: torch.Tensor | None,
        beside: Factors | None,
        tangent: WeightTangent | None,
    ) -> torch.Tensor:
        """x (2, T, d_in) -> (2, T, d_out). `weight` gives W, in both passes, so that none that was widened is kept; `anchor`
        is any scalar that wants a gradient, so that there is a graph at all.
        """
        y = F.linear(x, weight())
        if beside is not None:
            y += F.linear(F.linear(x, beside.A), beside.B)
        if bias is not None:
            y[0] += bias
        ctx.tangent, ctx.weight, ctx.beside = tangent, weight, beside
        if tangent is not None:
            ctx.kept = tangent.spread(x, y)
            ctx.save_for_backward(x)
        return y

    @staticmethod
    def backward(ctx: Context, *grads: torch.Tensor) -> Any:
        """Gradients of Phi, the directional derivative of the objective."""
        grad = grads[0]
        grad_x = grad @ ctx.weight() if ctx.needs_input_grad[0] else None
        if grad_x is not None and ctx.beside is not None:
            grad_x += grad @ ctx.beside.B @ ctx.beside.A
        if ctx.tangent is not None:
            ctx.tangent.collect(ctx.saved_tensors[0], grad, grad_x, ctx.kept)
        return grad_x, None, None, None, None, None


class RMSNorm(torch.autograd.Function):
    """c x / sqrt(mean x^2 + eps)."""

    @staticmethod
    def forward(ctx: Context, pair: torch.Tensor, scale: torch.Tensor, eps: float) -> torch.Tensor:
        """(2, T, d) -> (2, T, d)."""
        x, dx = _precise(pair)
        r = (x.square().mean(-1, keepdim=True) + eps).rsqrt()
        m = (x * dx).mean(-1, keepdim=True)
        ctx.save_for_backward(pair, scale, r, m)
        y = torch.stack([x * r, torch.addcmul(dx * r, x, r**3 * m, value=-1)])
        return y.mul_(scale).to(pair.dtype)

    @staticmethod
    def backward(ctx: Context, *grads: torch.Tensor) -> Any:
        """Gradients of the pair, with u, w those of value and tangent times c."""
        pair, scale, r, m = ctx.saved_tensors
        x, dx = _precise(pair)
        u, w = _precise(grads[0] * scale)
        alpha, beta, gamma = ((a * b).mean(-1, keepdim=True) for a, b in ((w, x), (w, dx), (u, x)))
        r3 = r**3
        grad_dx = torch.addcmul(w * r, x, r3 * alpha, value=-1)
        grad_x = (u * r).addcmul_(w, r3 * m, value=-1).addcmul_(dx, r3 * alpha, value=-1)
        grad_x.addcmul_(x, 3 * r**5 * m * alpha - r3 * (gamma + beta))
        return torch.stack([grad_x, grad_dx]).to(pair.dtype), None, None


class SwiGLU(torch.autograd.Function):
    """silu(g) u."""

    @staticmethod
    def forward(ctx: Context, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        """Both (2, T, f) -> (2, T, f)."""
        ctx.save_for_backward(gate, up)
        out = torch.empty_like(gate)
        for rows in _chunks(gate):
            (g, dg), (u, du) = gate[:, rows], up[:, rows]
            sigma = torch.sigmoid(g)
            a = g * sigma
            torch.mul(a, u, out=out[0, rows])
            slope = torch.addcmul(sigma, a, 1 - sigma)
            torch.mul(a, du, out=out[1, rows]).addcmul_(slope.mul_(dg), u)
        return out

    @staticmethod
    def backward(ctx: Context, *grads: torch.Tensor) -> Any:
        """With a = silu(g): a' = s + a (1 - s), a'' = s (1 - s) (2 + g (1 - 2 s)), s the logistic function of g."""
        gate, up = ctx.saved_tensors
        grad_gate, grad_up = torch.empty_like(gate), torch.empty_like(up)
        for rows in _chunks(gate):
            (g, dg), (u, du), (G, dG) = gate[:, rows], up[:, rows], grads[0][:, rows]
            sigma = torch.sigmoid(g)
            a, rest = g * sigma, 1 - sigma
            slope = torch.addcmul(sigma, a, rest)
            bend = (rest - sigma).mul_(g).add_(2).mul_(sigma).mul_(rest)
            slope_dG = slope * dG
            torch.mul(dG, a, out=grad_up[1, rows])
            torch.mul(slope_dG, u, out=grad_gate[1, rows])
            torch.mul(G, a, out=grad_up[0, rows]).addcmul_(slope_dG, dg)
            torch.mul(G, slope, out=grad_gate[0, rows]).mul_(u)
            grad_gate[0, rows].addcmul_(slope_dG, du).addcmul_(bend.mul_(dg).mul_(dG), u)
        return grad_gate, grad_up


class SegmentAttention(torch.autograd.Function):
    """softmax(scale q k^T) v within the segments of a packed row of tokens (see `packing`)."""

    @staticmethod
    def forward(  # noqa: PLR0917 -- of a Function
        ctx: Context, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layout: Layout, scale: float
    ) -> torch.Tensor:
        """query (2, heads, T, d), key and value (2, groups, T, d) -> (2, T, heads, d)."""
        ctx.save_for_backward(query, key, value)
        ctx.layout, ctx.scale = layout, scale
        _, heads, tokens, d = query.shape
        out = query.new_empty(2, tokens, heads, d)
        for part in _parts(layout):
            q, k, v = part.queries_of(query, key.shape[1]), part.keys_of(key), part.keys_of(value)
            p, ds, rho = _probabilities(q, k, part.mask, scale, q.shape[3] // part.mask.shape[-2])
            dp = (ds - rho).mul_(p)
            y = torch.stack([p @ v[0], dp @ v[0] + p @ v[1]])
            part.scatter(y, out)
        return out

    @staticmethod
    def backward(ctx: Context, *grads: torch.Tensor) -> Any:
        """Probabilities and their tangents are computed again."""
        query, key, value = ctx.saved_tensors
        scale, groups = ctx.scale, key.shape[1]
        grad_q, grad_k, grad_v = (
            torch.zeros_like(t, memory_format=torch.contiguous_format) for t in (query, key, value)
        )
        for part in _parts(ctx.layout):
            q, k, v = part.queries_of(query, groups), part.keys_of(key), part.keys_of(value)
            p, ds, rho = _probabilities(q, k, part.mask, scale, q.shape[3] // part.mask.shape[-2])
            centred = ds - rho
            dp = centred * p
            G = part.gather(grads[0], groups)
            from_tangent = G[1] @ v[0].mT  # of dP
            kappa = (p * from_tangent).sum(-1, keepdim=True)
            grad_ds = (from_tangent - kappa).mul_(p)
            grad_p = (G[0] @ v[0].mT).add_(G[1] @ v[1].mT).addcmul_(from_tangent, centred).addcmul_(kappa, ds, value=-1)
            grad_s = (grad_p - (p * grad_p).sum(-1, keepdim=True)).mul_(p)
            grad_s.mul_(scale)
            grad_ds.mul_(scale)
            part.put_queries(torch.stack([grad_s @ k[0] + grad_ds @ k[1], grad_ds @ k[0]]), grad_q)
            part.add_keys(torch.stack([grad_s.mT @ q[0] + grad_ds.mT @ q[1], grad_ds.mT @ q[0]]), grad_k)
            part.add_keys(torch.stack([p.mT @ G[0] + dp.mT @ G[1], p.mT @ G[1]]), grad_v)
        return grad_q, grad_k, grad_v, None, None


@dataclass(frozen=True)
class _Part:
    """Segments of one length: `queries` (n, L) and `keys` (n, K) are places in the row, `own` (n, L) those that are real;
    `item`, `offset` and `places` (m,) as in `Layout`.

    The heads of a group share their keys, so their queries stand below one another: (2, groups, n, heads / groups x L, d).
    """

    queries: torch.Tensor
    keys: torch.Tensor
    mask: torch.Tensor
    own: torch.Tensor
    item: torch.Tensor
    offset: torch.Tensor
    places: torch.Tensor

    def queries_of(self, tensor: torch.Tensor, groups: int) -> torch.Tensor:
        two, heads, _, d = tensor.shape
        n, length = self.queries.shape
        queries = tensor[:, :, self.queries].view(two, groups, heads // groups, n, length, d)
        return queries.transpose(2, 3).reshape(two, groups, n, -1, d)

    def keys_of(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor[:, :, self.keys]

    def _by_token(self, tensor: torch.Tensor) -> torch.Tensor:
        """(2, groups, n, heads / groups x L, d) -> (2, real tokens, heads, d)."""
        two, groups, n, _, d = tensor.shape
        length = self.queries.shape[1]
        spread = tensor.view(two, groups, n, -1, length, d).permute(0, 2, 4, 1, 3, 5)
        return spread[:, self.item, self.offset].flatten(2, 3)

    def scatter(self, y: torch.Tensor, out: torch.Tensor) -> None:
        out[:, self.places] = self._by_token(y)

    def gather(self, grad: torch.Tensor, groups: int) -> torch.Tensor:
        """Of (2, T, heads, d); 0 in places that are not real."""
        gathered = grad[:, self.queries] * self.own[None, :, :, None, None]  # (2, n, L, heads, d)
        two, n, length, heads, d = gathered.shape
        gathered = gathered.view(two, n, length, groups, heads // groups, d).permute(0, 3, 1, 4, 2, 5)
        return gathered.reshape(two, groups, n, -1, d)

    def put_queries(self, grad: torch.Tensor, out: torch.Tensor) -> None:
        out.transpose(1, 2)[:, self.places] = self._by_token(grad)

    def add_keys(self, grad: torch.Tensor, out: torch.Tensor) -> None:
        out.index_add_(2, self.keys.reshape(-1), grad.flatten(2, 3))


_PARTS: WeakKeyDictionary[Layout, list[_Part]] = WeakKeyDictionary()


def _parts(layout: Layout) -> list[_Part]:
    """The items' own segments and the shared prefixes, the same for all layers and passes."""
    if layout not in _PARTS:
        item, offset, places = layout.item, layout.offset, layout.places
        own = _Part(layout.queries, layout.keys, layout.mask[:, 0], layout.own, item, offset, places)
        _PARTS[layout] = [own, *(_prefix_part(prefix, places.device) for prefix in layout.prefixes)]
    return _PARTS[layout]


def _prefix_part(prefix: slice, device: torch.device) -> _Part:
    places = torch.arange(prefix.start, prefix.stop, device=device)
    own = torch.ones_like(places, dtype=torch.bool)
    causal = own.expand(len(places), -1).tril()
    return _Part(
        places[None], places[None], causal[None], own[None], torch.zeros_like(places), places - prefix.start, places
    )


def _probabilities(
    q: torch.Tensor, k: torch.Tensor, mask: torch.Tensor, scale: float, repeats: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """P, the tangent of the scores, and its mean under P (per query)."""
    hidden = ~mask.repeat(1, repeats, 1)
    s = (q[0] @ k[0].mT).mul_(scale).masked_fill_(hidden, -torch.inf)
    ds = (q[1] @ k[0].mT).add_(q[0] @ k[1].mT).mul_(scale).masked_fill_(hidden, 0.0)
    p = torch.softmax(s, dim=-1)
    return p, ds, (p * ds).sum(-1, keepdim=True)


def _precise(pair: torch.Tensor) -> torch.Tensor:
    return pair.float() if pair.dtype in (torch.bfloat16, torch.float16) else pair


def _chunks(pair: torch.Tensor) -> list[slice]:
    """All rows at once on a GPU, whose launches cost more than its cache saves."""
    rows = pair.shape[1]
    size = ROWS if pair.device.type == "cpu" else max(1, rows)
    return [slice(start, start + size) for start in range(0, rows, size)]
