import numpy as np
import pytest
import torch
from toy_detector import unit_rows

from blades_dist.config import BinaryConfig
from blades_dist.detect.binary import BinaryHead, fit_binary


def _sides(n=300, m=60):
    real, fake = unit_rows(n, 8, seed=0), unit_rows(m, 8, seed=1)
    fake[:, 0] += 2.0
    return real, fake


CONFIG = BinaryConfig(hidden=16, epochs=20, batch_size=64, lr=1e-2)


def test_separates_unbalanced_sides():
    real, fake = _sides()
    head, training = fit_binary(real, fake, np.arange(300.0), CONFIG, seed=0)
    fresh_real, fresh_fake = unit_rows(500, 8, seed=5), unit_rows(500, 8, seed=6)
    fresh_fake[:, 0] += 2.0
    assert (head.score(fresh_real) > 0).mean() > 0.9 and (head.score(fresh_fake) < 0).mean() > 0.9
    assert (training.real, training.pseudo_outliers, training.generated) == (285, 15, 60)


def test_score_is_the_log_odds_of_the_folded_network():
    real, fake = _sides()
    head, _ = fit_binary(real, fake, np.arange(300.0), CONFIG, seed=0)
    tensors = {name: torch.from_numpy(value) for name, value in head.tensors().items()}
    hidden = (torch.from_numpy(real).double() @ tensors["hidden_weight"].T + tensors["hidden_bias"]).clamp_min(0)
    logits = hidden @ tensors["out_weight"].T + tensors["out_bias"]
    expected = logits.log_softmax(1)
    np.testing.assert_allclose(head.score(real), (expected[:, 0] - expected[:, 1]).numpy(), rtol=1e-9, atol=1e-9)


def test_is_seeded_and_leaves_the_global_generator_alone():
    real, fake = _sides()
    torch.manual_seed(3)
    before = torch.get_rng_state()
    a, _ = fit_binary(real, fake, np.arange(300.0), CONFIG, seed=1)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(4)
    b, _ = fit_binary(real, fake, np.arange(300.0), CONFIG, seed=1)
    c, _ = fit_binary(real, fake, np.arange(300.0), CONFIG, seed=2)
    assert np.array_equal(a.score(fake), b.score(fake)) and not np.array_equal(a.score(fake), c.score(fake))


def test_lowest_likelihood_faces_change_sides():
    real, fake = _sides()
    # The pseudo-outliers are real faces moved far along one axis; the AI faces say nothing about that axis.
    odd = real.copy()
    odd[:60, 7] += 3
    likelihood = np.where(np.arange(300) < 60, -1.0, 1.0)
    config = CONFIG.model_copy(update={"pseudo_outliers": 0.2})
    head, training = fit_binary(odd, fake, likelihood, config, seed=0)
    assert training.pseudo_outliers == 60
    assert head.score(odd[:60]).mean() < 0 < head.score(odd[60:]).mean()


def test_round_trip_and_refusals():
    real, fake = _sides()
    head, _ = fit_binary(real, fake, np.arange(300.0), CONFIG, seed=0)
    assert np.array_equal(BinaryHead.from_tensors(head.tensors()).score(fake), head.score(fake))
    with pytest.raises(ValueError, match="'out_bias' is missing"):
        BinaryHead.from_tensors({k: v for k, v in head.tensors().items() if k != "out_bias"})
    with pytest.raises(ValueError, match="do not fit"):
        BinaryHead.from_tensors(head.tensors() | {"out_bias": np.zeros(3)})
    with pytest.raises(ValueError, match="10 of each"):
        fit_binary(real, fake[:5], np.arange(300.0), CONFIG, seed=0)
    with pytest.raises(ValueError, match="do not fit"):
        fit_binary(real, fake, np.arange(3.0), CONFIG, seed=0)
