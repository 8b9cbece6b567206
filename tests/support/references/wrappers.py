"""Wrappers, around AdamW or Momentum."""

import numpy as np

from kopt.optimizers.engine import noise
from references.classic import adam, momentum, sgd
from references.forms import Step, at
from references.matrices import lengths, matrix_of, polynomials


def _direction(optimizer):
    """Returns `direction(g, t)` of the optimizer within, from a step of length one with the references' own rule."""
    config = optimizer["config"]
    if optimizer["class_name"] == "Momentum":
        step = momentum(0.0, learning_rate=1.0, momentum=config["momentum"])
    elif optimizer["class_name"] == "SGD":
        step = sgd(0.0, learning_rate=1.0)
    else:
        names = ("beta_1", "beta_2", "epsilon", "amsgrad")
        step = adam(0.0, learning_rate=1.0, **{name: config[name] for name in names})
    last = 0.0

    def direction(g, t):
        nonlocal last
        now = step(g)
        u, last = last - now, now
        return u

    return direction


def _wrapped(w, optimizer, learning_rate, weight_decay, *, before=None, after=None, decaying=None) -> Step:
    """Steps along the direction within.

    `before(g, w)` changes the gradient, `after(u, g, w)` the direction; `decaying(u, w)` is what decays of the weight.
    """
    w, t, direction = np.array(w, "float64"), 0, _direction(optimizer)

    def step(g):
        nonlocal w, t
        t += 1
        g = np.asarray(g, "float64")
        g = before(g, w) if before else g
        u = direction(g, t)
        u = after(u, g, w) if after else u
        w = w - at(learning_rate, t) * (u + weight_decay * (decaying(u, w) if decaying else w))
        return w.copy()

    return step


def lookahead(w, *, optimizer, k, alpha, learning_rate, weight_decay) -> Step:
    """arXiv:1907.08610, Algorithm 1."""
    fast, slow, t, direction = np.array(w, "float64"), np.array(w, "float64"), 0, _direction(optimizer)

    def step(g):
        nonlocal fast, slow, t
        t += 1
        fast = fast - at(learning_rate, t) * (direction(g, t) + weight_decay * fast)
        if t % k == 0:
            slow = slow + alpha * (fast - slow)
            fast = slow.copy()
        return fast.copy()

    return step


def cautious(w, *, optimizer, floor, learning_rate, weight_decay) -> Step:
    """arXiv:2411.16085, Algorithm 1, with the factor of the authors' code."""

    def mask(u, g, w):
        agree = u * g > 0
        return u * agree / max(agree.mean(), floor)

    return _wrapped(w, optimizer, learning_rate, weight_decay, after=mask)


def cautious_decay(w, *, optimizer, learning_rate, weight_decay) -> Step:
    """arXiv:2510.12402."""
    keep = lambda u, w: np.where(u * w >= 0, w, 0.0)  # noqa: E731
    return _wrapped(w, optimizer, learning_rate, weight_decay, decaying=keep)


def update_floor(w, *, optimizer, others, floor, by, learning_rate, weight_decay, inputs=None) -> Step:
    """Pull requests 269 (the whole matrix) and 328 (each output) of modded-nanogpt, for kernels [in, out]."""
    axes = tuple(range(np.ndim(w)))[: inputs or -1] if by == "output" else None

    def norm(x):
        return np.sqrt((x**2).sum(axes, keepdims=True))

    def lengthen(u, g, w):
        return u * np.maximum(1, floor * norm(w) / norm(u))

    after = None if np.ndim(w) < 2 or others else lengthen
    return _wrapped(w, optimizer, learning_rate, weight_decay, after=after)


def orthogonalized(
    w, *, optimizer, others, scale, ns_steps, coefficients, learning_rate, weight_decay, inputs=None
) -> Step:
    """kellerjordan.github.io/posts/muon, of the direction within in place of momentum."""

    def turn(u, g, w):
        there, back = matrix_of(u, inputs)
        x = there(u)
        return back(lengths(*x.shape)[scale] * polynomials(x, coefficients, ns_steps))

    after = None if np.ndim(w) < 2 or others else turn
    return _wrapped(w, optimizer, learning_rate, weight_decay, after=after)


def hyperball(w, *, optimizer, others, sphere_rate, learning_rate, weight_decay, inputs=None) -> Step:
    """arXiv:2606.16899; vectors, and matrices of `others`, step as the optimizer within."""
    if np.ndim(w) < 2 or others:
        return _wrapped(w, optimizer, learning_rate, weight_decay)
    w, t, direction = np.array(w, "float64"), 0, _direction(optimizer)
    radius = np.linalg.norm(w)

    def step(g):
        nonlocal w, t
        t += 1
        u = direction(np.asarray(g, "float64"), t)
        w = w / radius - sphere_rate * at(learning_rate, t) * u / np.linalg.norm(u)
        w = radius * w / np.linalg.norm(w)
        return w.copy()

    return step


def ema_nesterov(w, *, optimizer, lookahead, momentum, start, end, learning_rate, weight_decay) -> Step:
    """arXiv:2605.25395: x is the iterate, and the gradient was taken ahead of it."""
    x, m, t, direction = np.array(w, "float64"), 0.0, 0, _direction(optimizer)

    def share(t):
        return lookahead if start < t and (end is None or t <= end) else 0.0

    def step(g):
        nonlocal x, m, t
        t += 1
        ahead = x + share(t) * m
        z = ahead - at(learning_rate, t) * (direction(np.asarray(g, "float64"), t) + weight_decay * ahead)
        m = momentum * m + (1 - momentum) * (z - x)
        x = z
        return x + share(t + 1) * m

    return step


def gradient_centralization(w, *, optimizer, learning_rate, weight_decay) -> Step:
    """arXiv:2004.01461, equation 1, for kernels [in, out]."""

    def centre(g, w):
        return g if g.ndim == 1 else g - g.reshape(-1, g.shape[-1]).mean(0)

    return _wrapped(w, optimizer, learning_rate, weight_decay, before=centre)


def adaptive_clip(w, *, optimizer, clipping, epsilon, learning_rate, weight_decay) -> Step:
    """arXiv:2102.06171, equation 3, for kernels [in, out]; a vector is one unit, as in the authors' code."""

    def clip(g, w):
        size = [np.sqrt((x.reshape(-1, x.shape[-1] if x.ndim > 1 else 1) ** 2).sum(0)) for x in (g, w)]
        bound = clipping * np.maximum(size[1], epsilon)
        return np.where(size[0] > bound, g * bound / np.maximum(size[0], 1e-300), g)

    return _wrapped(w, optimizer, learning_rate, weight_decay, before=clip)


def route(w, *, routes, learning_rate, weight_decay) -> Step:
    """One route for all weights: its rate times that of Route, its decay unless Route has one."""
    ((_, optimizer),) = routes
    own = float(np.float32(optimizer["config"]["learning_rate"]))  # kept in a float32 variable
    decay = weight_decay or optimizer["config"]["weight_decay"] or 0.0
    return _wrapped(w, optimizer, lambda t: at(learning_rate, t) * own, decay)


def switch(w, *, first, second, after, learning_rate, weight_decay) -> Step:
    """The first n steps are one rule's, the others another's."""
    w, t, directions = np.array(w, "float64"), 0, [_direction(rule) for rule in (first, second)]

    def step(g):
        nonlocal w, t
        t += 1
        late = t > after
        config = (second if late else first)["config"]
        u = directions[late](np.asarray(g, "float64"), t)
        decay = weight_decay or config["weight_decay"] or 0.0
        rate = at(learning_rate, t) * float(np.float32(config["learning_rate"]))
        w = w - rate * (u + decay * w)
        return w.copy()

    return step


def gradient_noise(weights, *, optimizer, scale, fading, seed, learning_rate, weight_decay):
    """arXiv:1511.06807, equation 1, with the numbers that kopt draws: those have a test of their own."""
    steps, t = [_wrapped(w, optimizer, learning_rate, weight_decay) for w in weights], 0

    def step(gs):
        nonlocal t
        t += 1
        moved = []
        for i, (f, g) in enumerate(zip(steps, gs, strict=True)):
            z = np.asarray(noise.normal(np.zeros(np.shape(g), "float32"), t, -1 - i - 2**16 * seed), "float64")
            moved.append(f(g + np.sqrt(scale / t**fading) * z))
        return moved

    return step


def _schedule_free(w, direction, warmth, beta_1, power, rate_power, learning_rate, weight_decay) -> Step:
    """arXiv:2405.15682, equations 3 to 5, with the weights of the average of the authors' code."""
    x, z, t = np.array(w, "float64"), np.array(w, "float64"), 0
    peak = total = 0.0

    def step(g):
        nonlocal x, z, t, peak, total
        y = (1 - beta_1) * z + beta_1 * x
        t += 1
        rate = at(learning_rate, t) * warmth(t)
        peak = max(peak, rate)
        mass = t**power * peak**rate_power
        total += mass
        z = z - rate * (direction(np.asarray(g, "float64"), t) + weight_decay * y)
        if total:
            x = x + mass / total * (z - x)
        return (1 - beta_1) * z + beta_1 * x

    return step


def schedule_free(w, *, optimizer, beta_1, power, rate_power, learning_rate, weight_decay) -> Step:
    """See `_schedule_free`."""
    direction = _direction(optimizer)
    return _schedule_free(w, direction, lambda t: 1.0, beta_1, power, rate_power, learning_rate, weight_decay)


def schedule_free_sgd(w, **hyper) -> Step:
    """See `_schedule_free`."""
    return _schedule_free(w, lambda g, t: g, lambda t: 1.0, **hyper)


def _scaled(beta_2, epsilon):
    v = 0.0

    def direction(g, t):
        nonlocal v
        v = beta_2 * v + (1 - beta_2) * g**2
        return g / (np.sqrt(v / (1 - beta_2**t)) + epsilon)

    return direction


def schedule_free_adamw(w, *, beta_2, epsilon, **hyper) -> Step:
    """See `_schedule_free`; the scaling is that of arXiv:1412.6980 without momentum."""
    return _schedule_free(w, _scaled(beta_2, epsilon), lambda t: 1.0, **hyper)


def schedule_free_radam(w, *, beta_2, epsilon, **hyper) -> Step:
    """The rate is rectified as in arXiv:1908.03265, Algorithm 2; without a step while the variance is not tractable."""
    last = 2 / (1 - beta_2) - 1

    def warmth(t):
        rho = last - 2 * t * beta_2**t / (1 - beta_2**t)
        if rho <= 4:
            return 0.0
        return np.sqrt((rho - 4) * (rho - 2) * last / ((last - 4) * (last - 2) * rho))

    return _schedule_free(w, _scaled(beta_2, epsilon), warmth, **hyper)


def mechanic(weights, *, optimizer, start, pull, epsilon, learning_rate, weight_decay):
    """arXiv:2306.00144, Algorithm 1, with |h| and the bound on h of the authors' code."""
    first = [np.array(w, "float64") for w in weights]
    now, delta = [w.copy() for w in first], [np.zeros_like(w) for w in first]
    directions, t = [_direction(optimizer) for _ in first], 0
    betas = 1 - 0.1 ** np.arange(1, 7)
    s, m, v, r = np.full(6, start), np.zeros(6), np.zeros(6), np.zeros(6)

    def norm(arrays):
        return np.sqrt(sum((a**2).sum() for a in arrays))

    def step(gs):
        nonlocal now, delta, t, s, m, v, r
        t += 1
        factor = pull * s.sum() * norm(gs) / (norm(now) + epsilon)
        h = -sum((d * (g + factor * w)).sum() for d, g, w in zip(delta, gs, now, strict=True))
        r = betas * r + s * np.clip(h, -m, m)
        m = np.maximum(betas * m, abs(h) + epsilon)
        v = betas**2 * v + h**2
        s = (start / 6 * m + np.maximum(r, 0)) / (np.sqrt(v) + epsilon)
        moves = [f(g, t) + weight_decay * w for f, g, w in zip(directions, gs, now, strict=True)]
        delta = [d - at(learning_rate, t) * u for d, u in zip(delta, moves, strict=True)]
        now = [w + s.sum() * d for w, d in zip(first, delta, strict=True)]
        return [w.copy() for w in now]

    return step


RULES = {
    "Lookahead": lookahead,
    "Cautious": cautious,
    "CautiousDecay": cautious_decay,
    "EMANesterov": ema_nesterov,
    "Hyperball": hyperball,
    "Orthogonalized": orthogonalized,
    "UpdateFloor": update_floor,
    "GradientCentralization": gradient_centralization,
    "AdaptiveClip": adaptive_clip,
    "Route": route,
    "Switch": switch,
    "ScheduleFree": schedule_free,
    "ScheduleFreeSGD": schedule_free_sgd,
    "ScheduleFreeAdamW": schedule_free_adamw,
    "ScheduleFreeRAdam": schedule_free_radam,
}
MATRIX = {"Orthogonalized"}
UNDECAYED = {"Hyperball"}
JOINT = {"Mechanic": mechanic, "GradientNoise": gradient_noise}
