"""Rules that adapt a rate to each weight, or to each layer."""

import numpy as np

from references.forms import Step, at, descent
from references.layerwise import adam_moments, moving


def yogi(w, *, learning_rate, beta_1, beta_2, epsilon, initial_accumulator_value, weight_decay=0.0) -> Step:
    """Yogi; papers.nips.cc/paper/8186, Algorithm 2, with the corrections of Adam that it leaves out."""
    m, v = 0.0, initial_accumulator_value

    def direction(g, t):
        nonlocal m, v
        m = beta_1 * m + (1 - beta_1) * g
        v = np.where(v > g**2, v - (1 - beta_2) * g**2, np.where(v < g**2, v + (1 - beta_2) * g**2, v))
        return m / (1 - beta_1**t) / (np.sqrt(v / (1 - beta_2**t)) + epsilon)

    return descent(w, learning_rate, weight_decay, direction)


def trust(beta, t, threshold):
    """Returns r of arXiv:1908.03265, Algorithm 2, or None where the variance is not tractable."""
    limit = 2 / (1 - beta) - 1
    length = limit - 2 * t * beta**t / (1 - beta**t)
    if length <= threshold:
        return None
    return np.sqrt((length - 4) * (length - 2) * limit / ((limit - 4) * (limit - 2) * length))


def radam(w, *, learning_rate, beta_1, beta_2, epsilon, threshold, weight_decay=0.0) -> Step:
    """RAdam; arXiv:1908.03265, Algorithm 2."""
    moments = adam_moments(beta_1, beta_2)

    def direction(g, t):
        m, v = moments(g, t)
        r = trust(beta_2, t, threshold)
        return m if r is None else r * m / (np.sqrt(v) + epsilon)

    return descent(w, learning_rate, weight_decay, direction)


def adabelief(w, *, learning_rate, beta_1, beta_2, epsilon, rectify, weight_decay=0.0) -> Step:
    """AdaBelief; arXiv:2010.07468, Algorithm 2; rectified as its authors' code does."""
    m = v = 0.0

    def direction(g, t):
        nonlocal m, v
        m = beta_1 * m + (1 - beta_1) * g
        v = beta_2 * v + (1 - beta_2) * (g - m) ** 2 + epsilon
        belief = m / (1 - beta_1**t) / (np.sqrt(v / (1 - beta_2**t)) + epsilon)
        if not rectify:
            return belief
        r = trust(beta_2, t, 5)
        return m / (1 - beta_1**t) if r is None else r * belief

    return descent(w, learning_rate, weight_decay, direction)


def novograd(w, *, learning_rate, beta_1, beta_2, epsilon, grad_averaging, weight_decay=0.0) -> Step:
    """NovoGrad; arXiv:1905.11286, Algorithm 1."""
    m = v = None

    def move(w, g, t):
        nonlocal m, v
        norm = (g**2).sum()
        v = norm if t == 1 else beta_2 * v + (1 - beta_2) * norm
        term = g / (np.sqrt(v) + epsilon) + weight_decay * w
        m = term if t == 1 else beta_1 * m + (1 - beta_1 if grad_averaging else 1) * term
        return w - at(learning_rate, t) * m

    return moving(w, move)


def adadelta(w, *, learning_rate, rho, epsilon, weight_decay=0.0) -> Step:
    """AdaDelta; arXiv:1212.5701, Algorithm 1."""
    v = d = 0.0

    def direction(g, t):
        nonlocal v, d
        v = rho * v + (1 - rho) * g**2
        u = np.sqrt(d + epsilon) / np.sqrt(v + epsilon) * g
        d = rho * d + (1 - rho) * u**2
        return u

    return descent(w, learning_rate, weight_decay, direction)


def proximal_adagrad(w, *, learning_rate, initial_accumulator_value, l1, l2, weight_decay=0.0) -> Step:
    """AdaGrad's composite step in closed form; Duchi, Hazan & Singer 2011 (JMLR 12), with diagonal matrices."""
    a = initial_accumulator_value

    def move(w, g, t):
        nonlocal a
        a = a + g**2
        h = np.sqrt(a) / at(learning_rate, t)
        x = w - g / h - at(learning_rate, t) * weight_decay * w
        # argmin of h/2 (y - x)² + l1 |y| + l2/2 y²
        return np.where(x > l1 / h, h * x - l1, np.where(x < -l1 / h, h * x + l1, 0)) / (h + l2)

    return moving(w, move)


def ftrl(w, *, learning_rate, learning_rate_power, initial_accumulator_value, l1, l2, beta, weight_decay=0.0) -> Step:
    """FTRL-Proximal; doi:10.1145/2487575.2488200, Algorithm 1, with z as there, begun where w minimizes without l1.

    Where the learning rate changes, the terms of the past change with it.
    """
    n, rate = initial_accumulator_value, at(learning_rate, 1)
    z = -((beta + n**-learning_rate_power) / rate + l2) * w

    def move(w, g, t):
        nonlocal n, z, rate
        root = n**-learning_rate_power
        old = (beta + root) / rate + l2
        rate = at(learning_rate, t)
        z = z / old * ((beta + root) / rate + l2)
        n = n + g**2
        sigma = (n**-learning_rate_power - root) / rate
        z = z + g - sigma * w
        q = (beta + n**-learning_rate_power) / rate + l2
        z = z + q * rate * weight_decay * w
        return np.where(np.abs(z) <= l1, 0.0, -(z - np.sign(z) * l1) / q)

    return moving(w, move)


def adan(w, *, learning_rate, beta_1, beta_2, beta_3, epsilon, weight_decay=0.0) -> Step:
    """Adan; arXiv:2208.06677, Algorithm 1, whose β are 1 minus these, with corrections for the start at zero."""
    m = e = v = 0.0
    last = None

    def move(w, g, t):
        nonlocal m, e, v, last
        d = np.zeros_like(g) if last is None else g - last
        last = g
        m = beta_1 * m + (1 - beta_1) * g
        e = beta_2 * e + (1 - beta_2) * d
        v = beta_3 * v + (1 - beta_3) * (g + beta_2 * d) ** 2
        rate = at(learning_rate, t) / (np.sqrt(v / (1 - beta_3**t)) + epsilon)
        step = rate * (m / (1 - beta_1**t) + beta_2 * e / (1 - beta_2**t))
        return (w - step) / (1 + at(learning_rate, t) * weight_decay)

    return moving(w, move)


def ademamix(
    w,
    *,
    learning_rate,
    beta_1,
    beta_2,
    beta_3,
    alpha,
    alpha_warmup,
    beta_3_warmup,
    epsilon,
    weight_decay=0.0,
) -> Step:
    """AdEMAMix; arXiv:2409.03137, Algorithm 1 and the schedulers of its equations 3 and 4."""
    moments = adam_moments(beta_1, beta_2)
    slow = 0.0

    def direction(g, t):
        nonlocal slow
        m, v = moments(g, t)
        beta = beta_3
        if beta_3_warmup:
            x, a, b = t / beta_3_warmup, np.log(beta_1 or 1e-300), np.log(beta_3)
            beta = min(np.exp(a * b / ((1 - x) * b + x * a)), beta_3) if x < 1 else beta_3
        slow = beta * slow + (1 - beta) * g
        weight = min(t * alpha / alpha_warmup, alpha) if alpha_warmup else alpha
        return (m + weight * slow) / (np.sqrt(v) + epsilon)

    return descent(w, learning_rate, weight_decay, direction)


def mars(w, *, learning_rate, beta_1, beta_2, gamma, form, epsilon, weight_decay=0.0) -> Step:
    """MARS-approx with AdamW or Lion; arXiv:2411.10438, Algorithms 2 and 3, equation for f as in its code."""
    moments, last = adam_moments(beta_1, beta_2), 0.0

    def direction(g, t):
        nonlocal last
        c = g + gamma * beta_1 / (1 - beta_1) * (g - last)
        last = g
        norm = np.linalg.norm(c)
        m, v = moments(c / norm if norm > 1 else c, t)
        return np.sign(m) if form == "lion" else m / (np.sqrt(v) + epsilon)

    return descent(w, learning_rate, weight_decay, direction)


def adopt(w, *, learning_rate, beta_1, beta_2, epsilon, clip, weight_decay=0.0) -> Step:
    """ADOPT; arXiv:2411.02853, Algorithm 2, clipped at (t-1)^¼ as in its later versions."""
    m = v = 0.0

    def move(w, g, t):
        nonlocal m, v
        if t == 1:
            v = g**2
            return w
        x = g / np.maximum(np.sqrt(v), epsilon)
        bound = (t - 1) ** 0.25 if clip else np.inf
        m = beta_1 * m + (1 - beta_1) * np.clip(x, -bound, bound)
        v = beta_2 * v + (1 - beta_2) * g**2
        return w - at(learning_rate, t) * (m + weight_decay * w)

    return moving(w, move)


def adam_atan2(w, *, learning_rate, beta_1, beta_2, a, b, weight_decay=0.0) -> Step:
    """Adam-atan2; arXiv:2407.05872, section on ε, with the scales of its appendix."""
    moments = adam_moments(beta_1, beta_2)

    def direction(g, t):
        m, v = moments(g, t)
        return a * np.arctan2(m, b * np.sqrt(v))

    return descent(w, learning_rate, weight_decay, direction)


def stable_adamw(w, *, learning_rate, beta_1, beta_2, epsilon, amsgrad, weight_decay=0.0) -> Step:
    """StableAdamW; arXiv:2304.13013, Algorithm 2, with AMSGrad's maximum for the divisor alone."""
    m = v = n = 0.0

    def move(w, g, t):
        nonlocal m, v, n
        # The paper's betas, which make up for the start at zero.
        decay_1, decay_2 = (b * (1 - b ** (t - 1)) / (1 - b**t) for b in (beta_1, beta_2))
        m = decay_1 * m + (1 - decay_1) * g
        v = decay_2 * v + (1 - decay_2) * g**2
        n = np.maximum(n, v * (1 - beta_2**t))
        rate = at(learning_rate, t) / max(1, np.sqrt((g**2 / np.maximum(v, epsilon**2)).mean()))
        root = np.sqrt(n / (1 - beta_2**t) if amsgrad else v)
        return w - rate * weight_decay * w - rate * m / (root + epsilon)

    return moving(w, move)


def grams(w, *, learning_rate, beta_1, beta_2, epsilon, amsgrad, weight_decay=0.0) -> Step:
    """Grams; arXiv:2412.17107, Algorithm 1."""
    moments = adam_moments(beta_1, beta_2)
    n = 0.0

    def direction(g, t):
        nonlocal n
        m, v = moments(g, t)
        n = np.maximum(n, v * (1 - beta_2**t))
        return np.sign(g) * np.abs(m / (np.sqrt(n / (1 - beta_2**t) if amsgrad else v) + epsilon))

    return descent(w, learning_rate, weight_decay, direction)


RULES = {
    "Yogi": yogi,
    "RAdam": radam,
    "AdaBelief": adabelief,
    "NovoGrad": novograd,
    "AdaDelta": adadelta,
    "ProximalAdaGrad": proximal_adagrad,
    "FTRL": ftrl,
    "Adan": adan,
    "AdEMAMix": ademamix,
    "MARS": mars,
    "ADOPT": adopt,
    "AdamAtan2": adam_atan2,
    "StableAdamW": stable_adamw,
    "Grams": grams,
}
