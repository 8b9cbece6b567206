"""What a small model should give, in float64 NumPy: outputs, losses, and averages of its weights. Nothing of kopt."""

import numpy as np


def dense(x, kernel, bias):
    return x @ kernel + bias


def deep(x, weights):
    """Dense layers, all but the last one with tanh."""
    for i in range(0, len(weights) - 2, 2):
        x = np.tanh(dense(x, *weights[i : i + 2]))
    return dense(x, *weights[-2:])


def shared(x, weights):
    """The first layer twice."""
    return deep(x, [*weights[:2], *weights])


def norm(x, weights):
    """Batch normalization between two layers; dropout does nothing here."""
    gamma, beta, mean, variance = weights[2:6]
    hidden = gamma * (dense(x, *weights[:2]) - mean) / np.sqrt(variance + 1e-3) + beta
    return dense(hidden, *weights[6:])


FORWARD = {"plain": deep, "nested": deep, "shared": shared, "norm": norm}
STATISTICS = (4, 5)  # places of mean and variance in the weights of "norm"


def output(network, weights, x):
    return FORWARD[network](np.asarray(x, "float64"), [np.asarray(w, "float64") for w in weights])


def loss(network, weights, x, y):
    return np.mean((output(network, weights, x) - y) ** 2)


def with_statistics(weights, batches):
    """Returns the weights of "norm" with the statistics that these batches have at them."""
    hidden = [dense(np.asarray(x, "float64"), *weights[:2]) for x in batches]
    new = list(weights)
    new[STATISTICS[0]] = np.mean([h.mean(0) for h in hidden], axis=0)
    new[STATISTICS[1]] = np.mean([h.var(0) for h in hidden], axis=0)
    return new


class Average:
    """Averages by place in the weights, each with the number of looks at its weight."""

    def __init__(self):
        self.begin()

    def begin(self):
        self.kept, self.batches = {}, 0

    def look(self, weights, trained):
        for i in trained:
            now = weights[i].astype("float64")
            mean, looks = self.kept.get(i, (now, 0))
            self.kept[i] = self.updated(mean, now, looks), looks + 1

    def values(self, trained):
        return {i: self.kept[i][0] for i in trained if i in self.kept}

    def after_batch(self, weights, trained):
        self.batches += 1

    def after_epoch(self, epoch, weights, trained):
        pass


class Mean(Average):
    """The mean of the weights at the end of every so many epochs."""

    def __init__(self, start=1, every=1):
        super().__init__()
        self.start, self.every = start, every

    def updated(self, mean, now, looks):
        return (looks * mean + now) / (looks + 1)

    def after_epoch(self, epoch, weights, trained):
        if epoch + 1 >= self.start and (epoch + 1 - self.start) % self.every == 0:
            self.look(weights, trained)


class Exponential(Average):
    """The exponential average over every so many batches, which begins with the first weights it sees."""

    def __init__(self, momentum, every=1):
        super().__init__()
        self.momentum, self.every = momentum, every

    def updated(self, mean, now, looks):
        return self.momentum * mean + (1 - self.momentum) * now

    def after_batch(self, weights, trained):
        super().after_batch(weights, trained)
        if self.batches % self.every == 0:
            self.look(weights, trained)
