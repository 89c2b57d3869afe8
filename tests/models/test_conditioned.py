"""The one value that a model holds after conditioning, and which rows are held out of it."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from helpers import make_inputs, make_model

from itergp.learning.held_out import held_out_splits
from itergp.likelihoods import GaussianLikelihood, Observations


def test_what_is_held_is_one_value_until_something_changes():
    model = make_model("bernoulli-logit")
    held = model.conditioned
    assert model.conditioned is held is model.last_conditioned
    assert model.solution is held.solution is model.current_solution
    model.predict(make_inputs(3))
    assert model.conditioned is held
    with pytest.raises(dataclasses.FrozenInstanceError, match="solution"):
        held.solution = None
    model.covar_module.outputscale = 3.0
    assert model.current_solution is None
    assert model.last_conditioned is held
    assert model.conditioned is not held
    assert not held.key.matches(model.conditioned.key)


def test_observations_are_kept_and_share_the_memory_of_the_data():
    model = make_model("bernoulli-logit")
    kept = model.conditioned.observations
    model.predict(make_inputs(3))
    assert model.conditioned.observations is kept
    assert kept.targets.data_ptr() == model.train_targets.data_ptr()


def test_a_copy_has_the_posterior_alone_and_makes_the_rest_once():
    model = make_model("bernoulli-logit")
    expected = model.latent_mean(make_inputs(3))
    other = copy.deepcopy(model)
    assert other.last_conditioned is None
    assert other.current_solution is not None
    other.solution.certificate.latent_error(make_inputs(3))
    made = other.last_conditioned
    assert made is not None
    assert torch.equal(other.latent_mean(make_inputs(3)), expected)
    assert other.conditioned.operator.counts.passes == 0
    assert other.conditioned is made


def test_a_start_is_no_posterior():
    model = make_model("bernoulli-logit")
    solution = model.solution
    model.start_from(solution)
    assert model.last_solution is solution
    assert model.current_solution is None
    assert model.solution is not solution


def test_the_posterior_comes_back_whatever_happens_meanwhile():
    model, other = make_model("bernoulli-logit"), make_model("bernoulli-logit")
    held = model.conditioned
    with model.keeping_posterior(other.conditioned):
        assert model.last_conditioned is other.last_conditioned
        model.prediction_strategy = None
    assert model.conditioned is held
    with pytest.raises(RuntimeError, match="on the way"), model.keeping_posterior(other.conditioned):
        raise RuntimeError("on the way")
    assert model.conditioned is held


@pytest.mark.parametrize(("num_rows", "turns"), [(3, 3), (40, 4), (1000, 4), (1400, 1)])
def test_held_out_rows_are_no_others(num_rows, turns):
    weight = torch.ones(2000)
    weight[::3] = 0.0
    observations = Observations(GaussianLikelihood(), torch.zeros(2000), weight)
    splits = held_out_splits(observations, num_rows=num_rows, seed=1)
    assert len(splits) == turns
    for train, held_out in splits:
        both = torch.cat([train, held_out])
        assert both.unique().numel() == both.numel() == min(num_rows, 1333)
        assert bool((weight[both] > 0).all())
    if turns > 1:
        assert torch.cat([rows for _, rows in splits]).unique().numel() == num_rows
    again = held_out_splits(observations, num_rows=num_rows, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(splits[0], again[0], strict=True))
