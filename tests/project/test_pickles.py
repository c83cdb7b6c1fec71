"""Every public object with state can be pickled under each protocol and copied, and works as before."""

import copy
import functools
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import fastvae
from fastvae import gmm, regression
from fastvae.sklearn import GaussianMixture, LinearRegression

from ..regression.problems import BACKENDS, R, problem

X, y, w = problem(targets=R)
x, x_hat = torch.rand(2, 5, 3, generator=torch.Generator().manual_seed(0))
mu = logvar = torch.zeros(5, 2)


@functools.cache
def fitted():
    return gmm.fit(X, 2, seed=0)


def begun(backend):
    return regression.Gram(backend=backend).update(X[:9], y[:9], w[:9])


def log_density(likelihood):
    return fastvae.elbo(x, x_hat, mu, logvar, likelihood=likelihood, reduction="none")


def drawn(vae):
    torch.manual_seed(0)
    return vae.sample(3)


# How each object is created, and what is computed with it and its copies. These are functions, so that collecting the
# tests compiles nothing.
OBJECTS: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "a Gram of no rows": (regression.Gram, lambda gram: copy.copy(gram).update(X, y).solve().coef),
    **{
        f"a Gram by {name}": (
            functools.partial(begun, name),
            lambda gram: copy.copy(gram).update(X[9:], y[9:], w[9:]).solve().coef,
        )
        for name in BACKENDS
    },
    "a RegressionFit": (lambda: regression.fit(X, y), lambda fit: fit.predict(X) + fit.covariance.sum()),
    "of a batch": (lambda: regression.fit(X[None], y[None])[:1], lambda fit: fit[0].predict(X)),
    "a Mixture": (lambda: fitted().mixture, lambda mixture: gmm.score_samples(X, mixture)),
    "a MixtureFit": (fitted, lambda fit: fit.lower_bounds),
    "a MixtureSweep": (lambda: gmm.sweep(X, (1, 2), seed=0), lambda sweep: sweep.bic),
    "an EStep": (lambda: gmm.e_step(X, fitted().mixture), lambda step: step[0]),
    "a LinearRegression": (lambda: LinearRegression().fit(X, y), lambda model: model.predict(X)),
    "one of chunks": (lambda: LinearRegression().partial_fit(X, y), lambda model: model.predict(X)),
    "a GaussianMixture": (lambda: GaussianMixture(2, random_state=0).fit(X), lambda model: model.score_samples(X)),
    "Gaussian": (lambda: fastvae.Gaussian(0.5, link="sigmoid"), log_density),
    "of scales": (lambda: fastvae.Gaussian(torch.tensor([0.5, 1.0, 2.0])), log_density),
    "Laplace": (lambda: fastvae.Laplace(log_scale=torch.tensor(0.5)), log_density),
    "Bernoulli": (fastvae.Bernoulli, log_density),
    "ElboTerms": (lambda: fastvae.elbo_terms(x, x_hat, mu, logvar), lambda terms: torch.stack(terms)),
    "a VAE": (lambda: fastvae.VAE.mlp(3, hidden=4, latent=2), drawn),
    "a Status": (lambda: fastvae.Status.REFINED | fastvae.Status.RESCUED, int),
}


@pytest.mark.parametrize("name", OBJECTS)
def test_it_pickles_under_every_protocol_and_can_be_copied(name):
    make, ask = OBJECTS[name]
    thing = make()
    truth = np.asarray(ask(thing))
    protocols = range(pickle.HIGHEST_PROTOCOL + 1)
    copies = [*(pickle.loads(pickle.dumps(thing, p)) for p in protocols), copy.copy(thing), copy.deepcopy(thing)]
    for other in copies:
        assert type(other) is type(thing)
        assert repr(other) == repr(thing)
        np.testing.assert_array_equal(np.asarray(ask(other)), truth)
