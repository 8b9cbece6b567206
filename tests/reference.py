"""The update rules in float64 NumPy, written from the papers: the oracle of the tests.

`REFERENCES[name](w, **hyper)` takes the first weights of one parameter and returns a function `step`. Each call of
`step(g)` is one step t = 1, 2, ... with the gradient g and returns the new weights. A learning rate is a number or a
function of t. Weight decay is decoupled (arXiv:1711.05101): with the direction u of the rule,

    w <- w - lr (u + weight_decay w)

except in AdaBoundW, whose decay does not follow the learning rate.
"""

from collections.abc import Callable

import numpy as np

Step = Callable[[np.ndarray], np.ndarray]


def _at(learning_rate, t):
    return learning_rate(t) if callable(learning_rate) else learning_rate


def _descent(w, learning_rate, weight_decay, direction) -> Step:
    """Steps against `direction(g, t)`."""
    w, t = np.array(w, "float64"), 0

    def step(g):
        nonlocal w, t
        t += 1
        w = w - _at(learning_rate, t) * (direction(np.asarray(g, "float64"), t) + weight_decay * w)
        return w.copy()

    return step


def sgd(w, *, learning_rate, weight_decay=0.0) -> Step:
    """Gradient descent; Robbins & Monro 1951."""
    return _descent(w, learning_rate, weight_decay, lambda g, t: g)


def momentum(w, *, learning_rate, momentum, weight_decay=0.0) -> Step:
    """Heavy ball, b = μ b + g; Polyak 1964, with the learning rate outside of the sum."""
    b = 0.0

    def direction(g, t):
        nonlocal b
        b = momentum * b + g
        return b

    return _descent(w, learning_rate, weight_decay, direction)


def nag(w, *, learning_rate, momentum, weight_decay=0.0) -> Step:
    """Nesterov 1983 in the variables of arXiv:1212.0901, eq. 7: b = μ b + g, u = g + μ b."""
    b = 0.0

    def direction(g, t):
        nonlocal b
        b = momentum * b + g
        return g + momentum * b

    return _descent(w, learning_rate, weight_decay, direction)


def adagrad(w, *, learning_rate, initial_accumulator_value, epsilon, weight_decay=0.0) -> Step:
    """Diagonal AdaGrad; Duchi, Hazan & Singer 2011 (JMLR 12), Figure 1."""
    a = initial_accumulator_value

    def direction(g, t):
        nonlocal a
        a = a + g**2
        return g / (np.sqrt(a) + epsilon)

    return _descent(w, learning_rate, weight_decay, direction)


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

    return _descent(w, learning_rate, weight_decay, direction)


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

    return _descent(w, learning_rate, weight_decay, direction)


def nadam(w, *, learning_rate, beta_1, beta_2, epsilon, momentum_decay, weight_decay=0.0) -> Step:
    """Dozat 2016 (ICLR workshop), Algorithm 2, with the momentum schedule of its section 3."""
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

    return _descent(w, learning_rate, weight_decay, direction)


def adamax(w, *, learning_rate, beta_1, beta_2, epsilon, weight_decay=0.0) -> Step:
    """Adam with the infinity norm; arXiv:1412.6980, Algorithm 2, with ε in the denominator."""
    m = n = 0.0

    def direction(g, t):
        nonlocal m, n
        m = beta_1 * m + (1 - beta_1) * g
        n = np.maximum(beta_2 * n, np.abs(g))
        return m / (1 - beta_1**t) / (n + epsilon)

    return _descent(w, learning_rate, weight_decay, direction)


def adabound(
    w, *, learning_rate, beta_1, beta_2, epsilon, final_lr, gamma, ams_bound, base_learning_rate, weight_decay=0.0
) -> Step:
    """arXiv:1902.09843, Algorithm 2, with bias correction and bounds as in its authors' code.

    The bounds follow the learning rate, relative to `base_learning_rate`; None means a constant learning rate.
    """
    return _bounded(weight_decay, True, **{k: x for k, x in locals().items() if k != "weight_decay"})


def adaboundw(
    w, *, learning_rate, beta_1, beta_2, epsilon, final_lr, gamma, ams_bound, base_learning_rate, weight_decay=0.0
) -> Step:
    """AdaBound with the decay of its authors' code, w <- w - η m - weight_decay w."""
    return _bounded(weight_decay, False, **{k: x for k, x in locals().items() if k != "weight_decay"})
