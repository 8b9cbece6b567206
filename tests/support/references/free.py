"""Rules that find their own learning rate."""

import numpy as np

from references.forms import Step, at


def _arrays(xs):
    return [np.array(x, "float64") for x in xs]


def _total(xs):
    return sum(float(np.sum(x)) for x in xs)


def cocob(w, *, learning_rate, alpha, epsilon, weight_decay=0.0) -> Step:
    """arXiv:1705.07795, Algorithm 2, in units of the learning rate, with the decay in the gradient."""
    w = np.array(w, "float64")
    bet = total = reward = theta = np.zeros_like(w)
    largest, t = np.full_like(w, epsilon), 0

    def step(g):
        nonlocal w, bet, total, reward, theta, largest, t
        t += 1
        outcome = -(np.asarray(g, "float64") + weight_decay * w)  # of the coin
        largest = np.maximum(largest, np.abs(outcome))
        total = total + np.abs(outcome)
        reward = np.maximum(reward + bet * outcome, 0)
        theta = theta + outcome
        fraction = theta / (largest * np.maximum(total + largest, alpha * largest))
        previous, bet = bet, fraction * (largest + reward)
        w = w + at(learning_rate, t) * (bet - previous)
        return w.copy()

    return step


def prodigy(
    weights, *, learning_rate, beta_1, beta_2, beta_3, epsilon, d0, d_coef, growth_rate, use_bias_correction,
    safeguard_warmup, weight_decay=0.0,
):  # fmt: skip
    """arXiv:2306.06101, Algorithm 4; the options, which the paper does not have, are those of the authors' code."""
    x, first, k = _arrays(weights), _arrays(weights), 0
    m, v, s = ([np.zeros_like(w) for w in x] for _ in range(3))
    d = best = d0
    r = 0.0
    memory = np.sqrt(beta_2) if beta_3 is None else beta_3

    def step(gs):
        nonlocal k, d, best, r
        k, gs = k + 1, _arrays(gs)
        gamma = at(learning_rate, k)
        if use_bias_correction:
            gamma *= np.sqrt(1 - beta_2**k) / (1 - beta_1**k)
        r = memory * r + (1 - memory) * gamma * d**2 * _total(g * (a - b) for g, a, b in zip(gs, first, x, strict=True))
        for i, g in enumerate(gs):
            m[i] = beta_1 * m[i] + (1 - beta_1) * d * g
            v[i] = beta_2 * v[i] + (1 - beta_2) * d**2 * g**2
            s[i] = memory * s[i] + (1 - memory) * (1 if safeguard_warmup else gamma) * d**2 * g
            x[i] = x[i] - gamma * d * (m[i] / (np.sqrt(v[i]) + d * epsilon) + weight_decay * x[i])
        size = _total(map(np.abs, s))
        estimate = d_coef * r / size if size else 0.0
        if d == d0:
            d = max(d, estimate)
        best = max(best, estimate)
        d = best if growth_rate is None else min(best, d * growth_rate)
        return _arrays(x)

    return step


def _grown(d, estimate, growth_rate):
    return max(d, estimate if growth_rate is None else min(estimate, d * growth_rate))


def dadapt_adam(
    weights, *, learning_rate, beta_1, beta_2, epsilon, d0, growth_rate, use_bias_correction, weight_decay=0.0
):
    """arXiv:2301.07733, the Adam variant, with decay as in arXiv:1711.05101; the options are of the authors' code."""
    x, k, d, r = _arrays(weights), 0, d0, 0.0
    m, v, s = ([np.zeros_like(w) for w in x] for _ in range(3))
    memory = np.sqrt(beta_2)

    def step(gs):
        nonlocal k, d, r
        k, gs = k + 1, _arrays(gs)
        rate = d * at(learning_rate, k)
        if use_bias_correction:
            rate *= np.sqrt(1 - beta_2**k) / (1 - beta_1**k)
        inner = _total(g * a / (np.sqrt(b) + epsilon) for g, a, b in zip(gs, s, v, strict=True))
        r = memory * r + (1 - memory) * rate * inner
        for i, g in enumerate(gs):
            m[i] = beta_1 * m[i] + (1 - beta_1) * rate * g
            v[i] = beta_2 * v[i] + (1 - beta_2) * g**2
            s[i] = memory * s[i] + (1 - memory) * rate * g
            x[i] = (1 - rate * weight_decay) * x[i] - m[i] / (np.sqrt(v[i]) + epsilon)
        size = (1 - memory) * _total(map(np.abs, s))
        d = _grown(d, r / size if size else 0.0, growth_rate)
        return _arrays(x)

    return step


def dadapt_sgd(weights, *, learning_rate, momentum, d0, growth_rate, weight_decay=0.0):
    """arXiv:2301.07733, the SGD variant: z moves along the gradient, and the weights average it."""
    x, first, t, d, total, norm = _arrays(weights), _arrays(weights), 0, d0, 0.0, None
    s = [np.zeros_like(w) for w in x]

    def step(gs):
        nonlocal t, d, total, norm
        t, gs = t + 1, _arrays(gs)
        norm = norm or np.sqrt(_total(g**2 for g in gs))
        rate = d * at(learning_rate, t) / norm
        for i, g in enumerate(gs):
            g = g + weight_decay * x[i]
            total += rate * np.sum(g * s[i])
            s[i] = s[i] + rate * g
            x[i] = momentum * x[i] + (1 - momentum) * (first[i] - s[i])
        size = np.sqrt(_total(a**2 for a in s))
        d = _grown(d, 2 * total / size if size else 0.0, growth_rate)
        return _arrays(x)

    return step


def dadapt_adagrad(weights, *, learning_rate, initial_accumulator_value, d0, growth_rate, weight_decay=0.0):
    """arXiv:2301.07733, the AdaGrad variant, with the decay in the gradient."""
    x, first, t, d, spent = _arrays(weights), _arrays(weights), 0, d0, 0.0
    s, a = [np.zeros_like(w) for w in x], [np.full_like(w, initial_accumulator_value) for w in x]

    def step(gs):
        nonlocal t, d, spent
        t = t + 1
        rate = d * at(learning_rate, t)
        for i, g in enumerate(_arrays(gs)):
            g = g + weight_decay * x[i]
            a[i] = a[i] + g**2
            s[i] = s[i] + rate * g
            spent += rate**2 * np.sum(g**2 / np.sqrt(a[i]))
            x[i] = first[i] - s[i] / np.sqrt(a[i])
        size = _total(map(np.abs, s))
        gain = _total(b**2 / np.sqrt(c) for b, c in zip(s, a, strict=True)) - spent
        d = _grown(d, gain / size if size else 0.0, growth_rate)
        return _arrays(x)

    return step


def dog(weights, *, learning_rate, reps_rel, weight_decay=0.0):
    """arXiv:2302.12022, equations 1 and 2, with the ε of the authors' code and the decay in the gradient."""
    x, first, t, total = _arrays(weights), _arrays(weights), 0, 1e-8
    distance = reps_rel * (1 + np.sqrt(_total(w**2 for w in x)))

    def step(gs):
        nonlocal t, total, distance
        t, gs = t + 1, [g + weight_decay * w for g, w in zip(_arrays(gs), x, strict=True)]
        distance = max(distance, np.sqrt(_total((a - b) ** 2 for a, b in zip(x, first, strict=True))))
        total += _total(g**2 for g in gs)
        for i, g in enumerate(gs):
            x[i] = x[i] - at(learning_rate, t) * distance / np.sqrt(total) * g
        return _arrays(x)

    return step


def ldog(w, **hyper) -> Step:
    """DoG on one weight; arXiv:2302.12022, section 3.4."""
    step = dog([w], **hyper)
    return lambda g: step([g])[0]


def dowg(weights, *, learning_rate, initial_distance, epsilon, weight_decay=0.0):
    """arXiv:2305.16284, Algorithm 1, with the ε of the authors' code and the decay in the gradient."""
    x, first, t, total, distance = _arrays(weights), _arrays(weights), 0, 0.0, initial_distance

    def step(gs):
        nonlocal t, total, distance
        t, gs = t + 1, [g + weight_decay * w for g, w in zip(_arrays(gs), x, strict=True)]
        distance = max(distance, np.sqrt(_total((a - b) ** 2 for a, b in zip(x, first, strict=True))))
        total += distance**2 * _total(g**2 for g in gs)
        for i, g in enumerate(gs):
            x[i] = x[i] - at(learning_rate, t) * distance**2 / (np.sqrt(total) + epsilon) * g
        return _arrays(x)

    return step


RULES = {"COCOB": cocob, "LDoG": ldog}
JOINT = {
    "Prodigy": prodigy,
    "DAdaptAdam": dadapt_adam,
    "DAdaptSGD": dadapt_sgd,
    "DAdaptAdaGrad": dadapt_adagrad,
    "DoG": dog,
    "DoWG": dowg,
}
