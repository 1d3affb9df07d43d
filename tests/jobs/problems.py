"""Tables with planted mistakes, the test error of a weighted ridge fit by numpy alone, a module partly trained."""

import numpy as np
import torch


def flipped(y, classes, share, seed=0):
    """Return labels of which a share is replaced by another class at random."""
    generator = np.random.default_rng(seed)
    y = y.copy()
    rows = generator.permutation(len(y))[: round(share * len(y))]
    y[rows] = (y[rows] + generator.integers(1, classes, len(rows))) % classes
    return y


def digits_split(share, seed=0):
    """Return training features, noisy and true labels, test features and labels of scikit-learn's digits."""
    from sklearn.datasets import load_digits

    X, y = load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(y))
    X = X[order] - X.mean(0)
    X, y = (X / np.sqrt((X**2).sum(1).mean())).astype(np.float32), y[order]
    return X[:900], flipped(y[:900], 10, share, seed), y[:900], X[900:], y[900:]


def weighted_error(X, y, weight, ridge, X_test, y_test):
    """Return the test error rate of a ridge fit with an unpenalised intercept, from the normal equations."""
    Z, T = np.c_[np.ones(len(X)), X], np.c_[np.ones(len(X_test)), X_test]
    penalty = np.diag(np.r_[0.0, np.full(X.shape[1], ridge)])
    W = np.linalg.solve((Z.T * weight) @ Z + penalty, (Z.T * weight) @ np.eye(10)[y])
    return float(((T @ W).argmax(1) != y_test).mean())


def squared(outputs, targets):
    """Return the squared loss of classes, as a user writes it."""
    return (outputs - torch.nn.functional.one_hot(targets, outputs.shape[1]).to(outputs)).square().sum(1)


class Halves(torch.nn.Module):
    """A module of which a part takes no part in what it returns, and another is frozen."""

    def __init__(self, p, c):
        super().__init__()
        self.used, self.unused, self.frozen = torch.nn.Linear(p, c), torch.nn.Linear(p, 3), torch.nn.Linear(p, p)
        self.frozen.requires_grad_(False)

    def forward(self, x):
        return self.used(x + self.frozen(x))
