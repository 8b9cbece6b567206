"""The classics."""

import numpy as np

from references.forms import Step, at, descent


def sgd(w, *, learning_rate, weight_decay=0.0) -> Step:
    """Gradient descent; Robbins & Monro 1951."""
    return descent(w, learning_rate, weight_decay, lambda g, t: g)


def momentum(w, *, learning_rate, momentum, weight_decay=0.0) -> Step:
    """Heavy ball, b = μ b + g; Polyak 1964, with the learning rate outside of the sum."""
    b = 0.0

    def direction(g, t):
        nonlocal b
        b = momentum * b + g
        return b

    return descent(w, learning_rate, weight_decay, direction)


def nag(w, *, learning_rate, momentum, weight_decay=0.0) -> Step:
    """Nesterov 1983 in the variables of arXiv:1212.0901: b = μ b + g, u = g + μ b."""
    b = 0.0

    def direction(g, t):
        nonlocal b
        b = momentum * b + g
        return g + momentum * b

    return descent(w, learning_rate, weight_decay, direction)


def adagrad(w, *, learning_rate, initial_accumulator_value, epsilon, weight_decay=0.0) -> Step:
    """Diagonal AdaGrad; Duchi, Hazan & Singer 2011 (JMLR 12)."""
    a = initial_accumulator_value

    def direction(g, t):
        nonlocal a
        a = a + g**2
        return g / (np.sqrt(a) + epsilon)

    return descent(w, learning_rate, weight_decay, direction)


def rowwise_adagrad(w, *, learning_rate, epsilon, weight_decay=0.0) -> Step:
    """AdaGrad with one number a row; arXiv:2104.05158, section 4.1.4."""
    n = 0.0

    def direction(g, t):
        nonlocal n
        n = n + (g**2).reshape(len(g), -1).mean(1)
        return g / (np.sqrt(n) + epsilon).reshape(-1, *[1] * (g.ndim - 1))

    return descent(w, learning_rate, weight_decay, direction)


def asgd(w, *, learning_rate, lambd, alpha, t0, weight_decay=0.0) -> Step:
    """Averaged SGD; arXiv:1107.2490, with the rate of torch's documentation; `step.average` is the average."""
    w, t = np.array(w, "float64"), 0

    def step(g):
        nonlocal w, t
        t += 1
        rate = at(learning_rate, t)
        rate = rate / (1 + lambd * rate * (t - 1)) ** alpha
        w = w - rate * (np.asarray(g, "float64") + (lambd + weight_decay) * w)
        points.append(w)
        step.average = np.mean(points[t0 + 1 :] or points[-1:], axis=0)
        return w.copy()

    points = []
    return step


def rprop(w, *, learning_rate, shrink, growth, shortest, longest, weight_decay=0.0) -> Step:
    """iRprop⁻; Igel & Hüsken 2003, doi:10.1016/S0925-2312(01)00700-7, with lengths in units of the rate."""
    length, before = np.ones(np.shape(w)), np.zeros(np.shape(w))

    def direction(g, t):
        nonlocal before
        g = g.copy()
        for i in np.ndindex(g.shape):
            if before[i] * g[i] > 0:
                length[i] = min(length[i] * growth, longest)
            elif before[i] * g[i] < 0:
                length[i] = max(length[i] * shrink, shortest)
                g[i] = 0.0
        before = g
        return length * np.sign(g)

    return descent(w, learning_rate, weight_decay, direction)


def laprop(w, *, learning_rate, beta_1, beta_2, epsilon, weight_decay=0.0) -> Step:
    """LaProp; arXiv:2002.04839, Algorithm 1."""
    m = v = 0.0

    def direction(g, t):
        nonlocal m, v
        v = beta_2 * v + (1 - beta_2) * g**2
        m = beta_1 * m + (1 - beta_1) * g / (np.sqrt(v / (1 - beta_2**t)) + epsilon)
        return m / (1 - beta_1**t)

    return descent(w, learning_rate, weight_decay, direction)


def rmsprop(w, *, learning_rate, rho, momentum, epsilon, centered, weight_decay=0.0) -> Step:
    """Tieleman & Hinton 2012, lecture 6e; centered and with momentum: arXiv:1308.0850, eq. 38 to 41.

    Unlike Graves, ε is outside of the root and the learning rate outside of the momentum.
    """
    v = a = b = 0.0

    def direction(g, t):
        nonlocal v, a, b
        v = rho * v + (1 - rho) * g**2
        a = rho * a + (1 - rho) * g
        variance = np.maximum(v - a**2, 0) if centered else v  # rounding can make a zero variance negative
        b = momentum * b + g / (np.sqrt(variance) + epsilon)  # at μ = 0 the plain direction
        return b

    return descent(w, learning_rate, weight_decay, direction)


def adam(w, *, learning_rate, beta_1, beta_2, epsilon, amsgrad, weight_decay=0.0) -> Step:
    """Adam and AdamW; arXiv:1412.6980, Algorithm 1; decay: arXiv:1711.05101, Algorithm 2.

    AMSGrad is arXiv:1904.09237, Algorithm 2, with bias correction after the maximum.
    """
    m = v = largest = 0.0

    def direction(g, t):
        nonlocal m, v, largest
        m = beta_1 * m + (1 - beta_1) * g
        v = beta_2 * v + (1 - beta_2) * g**2
        largest = np.maximum(largest, v)
        m_hat = m / (1 - beta_1**t)
        v_hat = (largest if amsgrad else v) / (1 - beta_2**t)
        return m_hat / (np.sqrt(v_hat) + epsilon)

    return descent(w, learning_rate, weight_decay, direction)


def nadam(w, *, learning_rate, beta_1, beta_2, epsilon, momentum_decay, weight_decay=0.0) -> Step:
    """Dozat 2016 (ICLR workshop), with the schedule μ_t of the momentum; `momentum_decay` is his 1/250."""
    m = v = 0.0
    product = 1.0  # of μ_1 ... μ_t

    def mu(t):
        return beta_1 * (1 - 0.5 * 0.96 ** (t * momentum_decay))

    def direction(g, t):
        nonlocal m, v, product
        product *= mu(t)
        m = beta_1 * m + (1 - beta_1) * g
        v = beta_2 * v + (1 - beta_2) * g**2
        m_hat = mu(t + 1) * m / (1 - product * mu(t + 1)) + (1 - mu(t)) * g / (1 - product)
        v_hat = v / (1 - beta_2**t)
        return m_hat / (np.sqrt(v_hat) + epsilon)

    return descent(w, learning_rate, weight_decay, direction)


def adamax(w, *, learning_rate, beta_1, beta_2, epsilon, weight_decay=0.0) -> Step:
    """Adam with the infinity norm; arXiv:1412.6980, Algorithm 2, with ε in the denominator."""
    m = n = 0.0

    def direction(g, t):
        nonlocal m, n
        m = beta_1 * m + (1 - beta_1) * g
        n = np.maximum(beta_2 * n, np.abs(g))
        return m / (1 - beta_1**t) / (n + epsilon)

    return descent(w, learning_rate, weight_decay, direction)


def _bounded(*, learning_rate, beta_1, beta_2, epsilon, final_lr, gamma, ams_bound, base_learning_rate):
    """Returns the map from g to (lr, lr / base, η m): arXiv:1902.09843, Algorithms 2 and 3.

    Bias correction and bounds are those of the authors' code. The bounds follow the learning rate relative to
    `base_learning_rate`; None stands for a constant learning rate.
    """
    t, m, v, largest = 0, 0.0, 0.0, 0.0

    def change(g):
        nonlocal t, m, v, largest
        t, lr = t + 1, at(learning_rate, t + 1)
        m = beta_1 * m + (1 - beta_1) * g
        v = beta_2 * v + (1 - beta_2) * g**2
        largest = np.maximum(largest, v)
        relative = lr / (learning_rate if base_learning_rate is None else base_learning_rate)
        final = final_lr * relative
        low, high = final * (1 - 1 / (gamma * t + 1)), final * (1 + 1 / (gamma * t))
        adam_rate = lr * np.sqrt(1 - beta_2**t) / (1 - beta_1**t)
        eta = np.clip(adam_rate / (np.sqrt(largest if ams_bound else v) + epsilon), low, high)
        return lr, relative, eta * m

    return change


def _descent_within_bounds(w, weight_decay, decay_is_relative, hyper) -> Step:
    w, change = np.array(w, "float64"), _bounded(**hyper)

    def step(g):
        nonlocal w
        lr, relative, bounded = change(np.asarray(g, "float64"))
        w = w - bounded - (relative if decay_is_relative else lr) * weight_decay * w
        return w.copy()

    return step


def adabound(w, *, weight_decay=0.0, **hyper) -> Step:
    """AdaBound and AMSBound (`ams_bound`); hyperparameters and source: see `_bounded`."""
    return _descent_within_bounds(w, weight_decay, False, hyper)


def adaboundw(w, *, weight_decay=0.0, **hyper) -> Step:
    """AdaBound with the decay of its authors' code at the base rate, following the schedule as in arXiv:1711.05101."""
    return _descent_within_bounds(w, weight_decay, True, hyper)


def lion(w, *, learning_rate, beta_1, beta_2, weight_decay=0.0) -> Step:
    """Lion; arXiv:2302.06675, Algorithm 2."""
    m = 0.0

    def direction(g, t):
        nonlocal m
        u = np.sign(beta_1 * m + (1 - beta_1) * g)
        m = beta_2 * m + (1 - beta_2) * g
        return u

    return descent(w, learning_rate, weight_decay, direction)


RULES = {
    "SGD": sgd,
    "Momentum": momentum,
    "NAG": nag,
    "AdaGrad": adagrad,
    "RowwiseAdaGrad": rowwise_adagrad,
    "ASGD": asgd,
    "Rprop": rprop,
    "LaProp": laprop,
    "RMSprop": rmsprop,
    "Adam": adam,
    "AdamW": adam,
    "Nadam": nadam,
    "AdaMax": adamax,
    "AdaBound": adabound,
    "AdaBoundW": adaboundw,
    "Lion": lion,
}
