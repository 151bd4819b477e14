"""The denoiser of the `default` recipe: a token per class, attention over classes, any number of ways."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ltdi.errors import InvalidConfig
from ltdi.schedule import Schedule

Mix = Callable[[Tensor, Tensor, int], Tensor]


@dataclass(frozen=True)
class ClassTokensConfig:
    """Sizes of the denoiser.

    Args:
        width: of a token inside.
        heads: of attention.
        encoder_layers: layers that read the task once.
        layers: layers that run at each step of the chain, at least 1.
        dropout: in training, on the task's tokens.
    """

    width: int = 128
    heads: int = 4
    encoder_layers: int = 2
    layers: int = 1
    dropout: float = 0.1

    def __post_init__(self) -> None:
        if self.heads < 1 or self.width < 1 or self.width % self.heads:
            raise InvalidConfig(
                f"width is {self.width}; it must be a multiple of heads ({self.heads})", field="class_tokens"
            )
        if self.layers < 1:
            raise InvalidConfig(f"layers is {self.layers}; a step needs at least one", field="class_tokens")


@dataclass(frozen=True)
class Condition:
    """What the steps need of a task.

    Args:
        tokens: `[B, N, width]`, the task as the encoder read it.
        hint: `[B, N, D + 1]`, a standardised guess at x_0 that is had from the task without the chain; or None.
    """

    tokens: Tensor
    hint: Tensor | None = None


class ClassTokens(nn.Module):
    """eps_phi(x_t, t, task): permutation-equivariant over classes.

    The network answers with the waypoint x_k that step t leads to; eps_phi follows from it as for the
    minimiser of Eq. 2. The answer is affine in what the last layer holds, plus the hint times a learned gain
    of the step. At initialisation it is the hint, or 0, the baseline itself.

    Args:
        inputs: C, the size of a class's task token.
        outputs: D + 1, the weights of a class.
    """

    def __init__(self, config: ClassTokensConfig, schedule: Schedule, inputs: int, outputs: int) -> None:
        super().__init__()
        width = config.width
        self.schedule = schedule
        self.read_task = nn.Linear(inputs, width)
        self.dropout = nn.Dropout(config.dropout)
        self.encoder = nn.ModuleList(Layer(width, config.heads) for _ in range(config.encoder_layers))
        self.read_x = nn.Linear(outputs, width, bias=False)
        self.layers = nn.ModuleList(Layer(width, config.heads) for _ in range(config.layers - 1))
        self.last = Mixer(width, config.heads)
        self.shift = nn.Parameter(torch.randn(schedule.steps + 1, width) * 0.02)
        self.gain = nn.Parameter(torch.ones(schedule.steps + 1, config.layers, width))
        self.answer = nn.Linear(self.last.outputs, outputs)
        self.hint_gain = nn.Parameter(torch.ones(schedule.steps + 1))
        nn.init.zeros_(self.answer.weight)
        nn.init.zeros_(self.answer.bias)
        keep, move = torch.tensor(schedule.posterior_factors, dtype=torch.float32).unbind(1)
        self.register_buffer("keep", keep, persistent=False)
        self.register_buffer("move", move, persistent=False)
        self._fused: tuple[tuple, Tensor, Tensor] | None = None

    def condition(self, task: Tensor, hint: Tensor | None = None) -> Condition:
        """What the steps need of the task embedding `[B, N, C]` and the hint `[B, N, D + 1]`."""
        h = self.read_task(self.dropout(task))
        for layer in self.encoder:
            h = layer(h)
        return Condition(h, hint)

    def waypoint(self, x: Tensor, t: int, condition: Condition) -> Tensor:
        """The network's answer: the waypoint that step t leads to, `[B, N, D + 1]`."""
        state = F.linear(x, self.read_x.weight) + condition.tokens + self.shift[t]
        for layer, gain in zip(self.layers, self.gain[t], strict=False):
            state = layer(state, gain)
        return self._answer(self.last(state, self.gain[t, -1]), t, condition)

    def forward(self, x: Tensor, t: int, condition: Condition) -> Tensor:
        """eps_phi at x `[B, N, D + 1]` and step t, `[B, N, D + 1]`."""
        from_x, from_waypoint = self.schedule.waypoint_factors[t]
        return (x * from_x).sub_(self.waypoint(x, t, condition), alpha=from_waypoint)

    def chain(self, x: Tensor, condition: Condition) -> Tensor:
        """x_0 from x_T `[B, N, D + 1]`: `sample(self, x, ...)` with most of its arithmetic done once.

        The network sees x_t through `read_x` alone, and Eq. 1 is x_{t-1} = p_t x_t + q_t waypoint (Eq. 7), so the
        state u_t = read_x(x_t) + tokens + shift_t obeys a recursion of its own, in `width` numbers a class instead
        of D + 1: u_{t-1} = p_t u_t + q_t read_x(answer) + d_t. The last step's p is 0, so that x_0 is its answer.
        The result is that of the plain chain up to rounding.
        """
        batch, ways, size = x.shape
        fused, drift = self._fuse()
        gains, last, own_gains = self.gain.unbind(), self.last.bound(), self.gain[:, -1].unbind()
        tokens = condition.tokens.flatten(0, 1)
        drift = torch.addcmul(drift, 1 - self.keep[:, None, None], tokens)  # [T + 1, B N, width]
        if condition.hint is not None:
            seen = F.linear(condition.hint.flatten(0, 1), self.read_x.weight)
            drift = torch.addcmul(drift, (self.move * self.hint_gain)[:, None, None], seen)
        u = torch.addmm(tokens, x.flatten(0, 1), self.read_x.weight.T) + self.shift[-1]
        steps, drifts = self.schedule.posterior_factors, drift.unbind()
        for t in range(self.schedule.steps, 1, -1):
            keep, move = steps[t]
            held = last(self._inner(u, gains[t], ways), own_gains[t], ways)
            u = torch.addmm(u, held, fused, beta=keep, alpha=move).add_(drifts[t])
        held = last(self._inner(u, gains[1], ways), own_gains[1], ways)
        return self._answer(held.view(batch, ways, -1), 1, condition)

    def _inner(self, state: Tensor, gain: Tensor, ways: int) -> Tensor:
        """A state `[B N, width]` after all layers but the last."""
        if not self.layers:
            return state
        state = state.unflatten(0, (-1, ways))
        for layer, own in zip(self.layers, gain, strict=False):
            state = layer(state, own)
        return state.flatten(0, 1)

    def _answer(self, held: Tensor, t: int, condition: Condition) -> Tensor:
        answer = F.linear(held, self.answer.weight, self.answer.bias)
        return answer if condition.hint is None else torch.addcmul(answer, self.hint_gain[t], condition.hint)

    def _fuse(self) -> tuple[Tensor, Tensor]:
        """`answer` and `read_x` in one `[held, width]`, and the part of d_t that no task changes, `[T + 1, 1, width]`.

        Kept between calls as long as no parameter changes.
        """
        parameters = (self.read_x.weight, self.answer.weight, self.answer.bias, self.shift)
        frozen = not (torch.is_grad_enabled() and self.answer.weight.requires_grad)
        if any(p.is_inference() for p in parameters):  # they do not count their changes
            return self._product()
        key = tuple((p.data_ptr(), p._version) for p in parameters)
        if frozen and self._fused is not None and self._fused[0] == key:
            return self._fused[1:]
        fused, drift = self._product()
        self._fused = (key, fused, drift) if frozen else None
        return fused, drift

    def _product(self) -> tuple[Tensor, Tensor]:
        fused = (self.read_x.weight @ self.answer.weight).T.contiguous()
        drift = self.move[:, None] * F.linear(self.answer.bias, self.read_x.weight)
        drift = drift + self.shift.roll(1, 0) - self.keep[:, None] * self.shift
        return fused, drift.unsqueeze(1)


class Mixer(nn.Module):
    """Attention over classes and a hidden layer side by side, from one normalisation and one product."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.project = nn.Linear(width, 5 * width)
        self.outputs = 4 * width

    def forward(self, h: Tensor, gain: Tensor | None = None) -> Tensor:
        """Normalised h, attention's answer and 2 width hidden units side by side: `[B, N, 4 width]`.

        Args:
            h: `[B, N, width]`.
            gain: `[width]`, the normalisation's, instead of its own (FiLM by t).
        """
        ways = h.shape[1]
        return self.bound()(h.flatten(0, 1), self.norm.weight if gain is None else gain, ways).unflatten(0, (-1, ways))

    def bound(self) -> Mix:
        """The same as a function of h `[B N, width]`, gain and N, its parameters looked up once.

        The last layer holds what is bounded whatever h is. At these sizes calls are what costs.
        """
        bias, weight, shift, heads = self.norm.bias, self.project.weight, self.project.bias, self.heads

        def mix(h: Tensor, gain: Tensor, ways: int) -> Tensor:
            rows, width = h.shape
            normal = torch.layer_norm(h, (width,), gain, bias)
            inner = F.linear(normal, weight, shift)
            qkv = inner[:, : 3 * width].view(rows // ways, ways, 3, heads, -1)
            mixed = F.scaled_dot_product_attention(*qkv.permute(2, 0, 3, 1, 4).unbind())
            mixed = mixed.transpose(1, 2).reshape(rows, width)
            return torch.cat((normal, mixed, F.silu(inner[:, 3 * width :])), dim=1)

        return mix


class Layer(nn.Module):
    """A mixer with its way back into the tokens."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.mixer = Mixer(width, heads)
        self.back = nn.Linear(self.mixer.outputs, width)

    def forward(self, h: Tensor, gain: Tensor | None = None) -> Tensor:
        """`[B, N, width]` to the same; `gain` as for `Mixer`."""
        return h + F.linear(self.mixer(h, gain), self.back.weight, self.back.bias)
