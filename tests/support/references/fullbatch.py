"""Rules for the whole of the data, written with ordinary control flow on one flat vector.

They take the loss beside the gradients, if `needs_loss` says so. Weight decay λ is a penalty here, λ/2 ‖w‖², of loss
and gradient.
"""

import numpy as np

from references.forms import at

SUFFICIENT = 1e-4


class Flat:
    """Lists of arrays as one vector and back."""

    def __init__(self, weights):
        self.shapes = [np.shape(w) for w in weights]

    def join(self, arrays):
        return np.concatenate([np.ravel(np.asarray(a, "float64")) for a in arrays])

    def split(self, vector):
        ends = np.cumsum([int(np.prod(s)) for s in self.shapes])
        return [v.reshape(s) for v, s in zip(np.split(vector, ends[:-1]), self.shapes, strict=True)]


def descends(start, step, value, slope, trial_slope, noise):
    """Armijo's condition, or by slopes where rounding hides it: Hager & Zhang 2005, (1.3) and (4.1)."""
    if value <= start + SUFFICIENT * step * slope:
        return True
    return value <= start + noise and trial_slope <= (2 * SUFFICIENT - 1) * slope


def rounding(value, g, w, unit):
    """The error of a loss."""
    return 2 * unit * (abs(value) + np.linalg.norm(g * w))


def bgd(weights, *, learning_rate, step, weight_decay=0.0, unit=2.0**-23):
    """Cauchy's descent with a fixed step, halved and doubled (Armijo 1966), or Barzilai & Borwein 1988, (5)."""
    flat, t = Flat(weights), 0
    w = flat.join(weights)
    x, old, start, length, halvings = w, None, None, None, 0

    def advance(gs, loss=None):
        nonlocal w, x, old, start, length, halvings, t
        t += 1
        g = flat.join(gs) + weight_decay * w
        length = at(learning_rate, t) if length is None or step == "fixed" else length
        if step == "barzilai_borwein" and old is not None and (w - x) @ (g - old) > 0:
            length = (w - x) @ (g - old) / ((g - old) @ (g - old))
        if step == "armijo":
            value = loss + weight_decay / 2 * w @ w
            noise = 0 if start is None else rounding(start, g, w, unit)
            if start is not None and not descends(start, length, value, -old @ old, -g @ old, noise):
                length, halvings, w, g = length / 2, halvings + 1, x, old
                if halvings > 20:
                    start, halvings = None, 0
                    return flat.split(w)
            else:
                length, halvings, start = (length if start is None else 2 * length), 0, value
        x, old = w, g
        w = w - length * g
        return flat.split(w)

    advance.needs_loss = step == "armijo"
    return advance


def cubic(near, far, noise):
    """Share of the way to the minimum of the cubic, or of the parabola through the slopes: Nocedal & Wright, (3.59)."""
    width = far[0] - near[0]
    first, last, rise = near[2] * width, far[2] * width, far[1] - near[1]
    if abs(rise) <= noise:
        rise = (first + last) / 2
    a, b = first + last - 2 * rise, 3 * rise - 2 * first - last
    root = b + np.sqrt(max(b * b - 3 * a * first, 0))
    return -first / root if root > 0 else np.inf


def line_search(start, slope, step, flatness):
    """Yields steps, is sent (value, slope, noise) at each, and returns whether the last one is good.

    Bracketing and zoom of Nocedal & Wright, Algorithms 3.5 and 3.6, as one loop.
    """
    low, high = (0.0, start, slope), None
    for count in range(1, 22):
        value, now, noise = yield step
        finite = np.isfinite(value) and np.isfinite(now)
        enough = finite and descends(start, step, value, slope, now, noise)
        if enough and (abs(now) <= flatness * abs(slope) or count >= 20 or (high is None and count >= 4)):
            return True
        before, trial = low, (step, value, now)
        if not enough or value > low[1] + noise:
            high = trial
        else:
            if now * ((np.inf if high is None else high[0]) - low[0]) >= 0:
                high = low
            low = trial
        if count >= 20:
            if low[0] <= 0 or count > 20:
                return False
            step = low[0]
            continue
        near, far = (before, trial) if high is None else (low, high)
        if not np.isfinite(far[1]):
            share = 0.1
        elif high is None:
            share = np.clip(cubic(near, far, noise), 2, 5)
        elif count > 4 and count % 2:
            share = 0.5
        else:
            share = np.clip(cubic(near, far, noise), 0.05, 0.95)
        step = near[0] + share * (far[0] - near[0])
    return False


def two_loops(g, history, gamma):
    """H g; Nocedal & Wright, Algorithm 7.4."""
    q, alphas = g.copy(), []
    for s, y in reversed(history):
        alphas.append(s @ q / (s @ y))
        q = q - alphas[-1] * y
    r = gamma * q
    for (s, y), alpha in zip(history, reversed(alphas), strict=True):
        r = r + s * (alpha - y @ r / (s @ y))
    return r


def lbfgs(weights, *, learning_rate, history, line_search, pairs, weight_decay=0.0, unit=2.0**-23):
    """Liu & Nocedal 1989; damped: Powell 1978 with B₀ = I/γ; cautious: Li & Fukushima 2001."""
    flat, t = Flat(weights), 0
    w = flat.join(weights)
    x, old, start, gamma, d, search, step, memory = w, None, None, None, None, None, None, []

    def direction(value, g):
        nonlocal d, search, step, x, old, start, gamma
        if gamma is None:
            gamma = 1 / np.linalg.norm(g) if g.any() else 1.0
        d = -two_loops(g, memory, gamma)
        if not g @ d < 0:
            d = -gamma * g
        x, old, start = w, g, value
        step = at(learning_rate, t)
        if line_search != "fixed":
            search = globals()["line_search"](value, g @ d, step, {"strong_wolfe": 0.9, "armijo": np.inf}[line_search])
            step = next(search)

    def judge(value, g, s):
        """Whether the trial is accepted; None if the search goes on."""
        nonlocal step
        if not s.any():
            return False
        if line_search == "fixed":
            return bool(np.isfinite(value) and np.isfinite(g).all())
        try:
            step = search.send((value, s @ g / step, rounding(start, g, w, unit)))
        except StopIteration as end:
            return end.value
        return None

    def remember(s, y):
        nonlocal gamma
        if pairs == "damped" and s @ y < 0.2 * s @ s / gamma:
            theta = 0.8 * (s @ s / gamma) / (s @ s / gamma - s @ y)
            y = theta * y + (1 - theta) / gamma * s
        least = {"cautious": 0.1 * np.sqrt(s @ s * y @ y), "damped": 0.0, "curved": -0.01 * s @ old}[pairs]
        if s @ y > least:
            memory.append((s, y))
            del memory[:-history]
            gamma = s @ y / (y @ y)

    def advance(gs, loss=None):
        nonlocal w, t, start
        t += 1
        g = flat.join(gs) + weight_decay * w
        value = loss + weight_decay / 2 * w @ w
        if start is None:
            if not (np.isfinite(value) and np.isfinite(g).all()):
                return flat.split(w)
            direction(value, g)
        else:
            verdict = judge(value, g, w - x)
            if verdict:
                remember(w - x, g - old)
                direction(value, g)
            elif verdict is not None:
                memory.clear()
                w, start = x, None
                return flat.split(w)
        w = x + step * d
        return flat.split(w)

    advance.needs_loss = True
    return advance


JOINT = {"BGD": bgd, "LBFGS": lbfgs}
