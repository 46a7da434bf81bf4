import numpy as np
import pytest
import torch
from scipy.special import expit
from sklearn.metrics import roc_auc_score

from blades_dist.config import PerceptronConfig
from blades_dist.detect.heads.perceptron import PerceptronHead, _folds, fit_perceptron
from blades_dist.testing.toy_detector import unit_rows


def _sides(n=300, m=60):
    real, fake = unit_rows(n, 8, seed=0), unit_rows(m, 8, seed=1)
    fake[:, 0] += 2.0
    return real, fake


CONFIG = PerceptronConfig(hidden=16, epochs=20, batch_size=64, lr=1e-2)


def test_separates_unbalanced_sides():
    real, fake = _sides()
    head, training = fit_perceptron(real, fake, np.arange(300.0), CONFIG, seed=0)
    fresh_real, fresh_fake = unit_rows(500, 8, seed=5), unit_rows(500, 8, seed=6)
    fresh_fake[:, 0] += 2.0
    assert (head.score(fresh_real) > 0).mean() > 0.9 and (head.score(fresh_fake) < 0).mean() > 0.9
    assert (training.real, training.pseudo_outliers, training.generated) == (285, 15, 60)


def test_score_is_the_log_odds_of_the_folded_network():
    real, fake = _sides()
    head, _ = fit_perceptron(real, fake, np.arange(300.0), CONFIG, seed=0)
    tensors = {name: torch.from_numpy(value) for name, value in head.tensors().items()}
    hidden = (torch.from_numpy(real).double() @ tensors["hidden_weight"].T + tensors["hidden_bias"]).clamp_min(0)
    logits = hidden @ tensors["out_weight"].T + tensors["out_bias"]
    expected = logits.log_softmax(1)
    np.testing.assert_allclose(head.score(real), (expected[:, 0] - expected[:, 1]).numpy(), rtol=1e-9, atol=1e-9)


def test_is_seeded_and_leaves_the_global_generator_alone():
    real, fake = _sides()
    torch.manual_seed(3)
    before = torch.get_rng_state()
    a, _ = fit_perceptron(real, fake, np.arange(300.0), CONFIG, seed=1)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(4)
    b, _ = fit_perceptron(real, fake, np.arange(300.0), CONFIG, seed=1)
    c, _ = fit_perceptron(real, fake, np.arange(300.0), CONFIG, seed=2)
    assert np.array_equal(a.score(fake), b.score(fake)) and not np.array_equal(a.score(fake), c.score(fake))


def test_lowest_likelihood_faces_change_sides():
    real, fake = _sides()
    # The pseudo-outliers are real faces moved far along one axis; the AI faces say nothing about that axis.
    odd = real.copy()
    odd[:60, 7] += 3
    likelihood = np.where(np.arange(300) < 60, -1.0, 1.0)
    config = CONFIG.model_copy(update={"pseudo_outliers": 0.2})
    head, training = fit_perceptron(odd, fake, likelihood, config, seed=0)
    assert training.pseudo_outliers == 60
    assert head.score(odd[:60]).mean() < 0 < head.score(odd[60:]).mean()


def test_round_trip_and_refusals():
    real, fake = _sides()
    head, _ = fit_perceptron(real, fake, np.arange(300.0), CONFIG, seed=0)
    assert np.array_equal(PerceptronHead.from_tensors(head.tensors()).score(fake), head.score(fake))
    with pytest.raises(ValueError, match="'out_bias' is missing"):
        PerceptronHead.from_tensors({k: v for k, v in head.tensors().items() if k != "out_bias"})
    with pytest.raises(ValueError, match="do not fit"):
        PerceptronHead.from_tensors(head.tensors() | {"out_bias": np.zeros(3)})
    with pytest.raises(ValueError, match="10 of each"):
        fit_perceptron(real, fake[:5], np.arange(300.0), CONFIG, seed=0)
    with pytest.raises(ValueError, match="do not fit"):
        fit_perceptron(real, fake, np.arange(3.0), CONFIG, seed=0)


def test_folds_hold_out_generators_and_disjoint_real_faces():
    names = np.array(["a"] * 30 + ["b"] * 5 + ["c"] * 12 + ["d"] * 7 + ["e"] * 9 + ["f"] * 6)
    maker = np.concatenate([np.full(50 + 4, ""), names])  # 50 real faces, then 4 pseudo-outliers
    folds = _folds(50, maker, seed=0)
    held = [fold.held.numpy() for fold in folds]
    assert len(folds) == 5
    for fold, own in zip(folds, held, strict=True):
        assert sorted([*fold.kept.tolist(), *own]) == list(range(len(maker)))
        assert not set(maker[own]) - {""} & set(maker[fold.kept.numpy()])  # a generator is on one side only
        assert (own < 50).sum() == 10 and not ((own >= 50) & (own < 54)).any()
    everything = np.concatenate(held)
    assert len(set(everything)) == len(everything) == 50 + len(names)
    sizes = sorted((own >= 54).sum() for own in held)
    assert sizes == [7, 9, 11, 12, 30]  # the two smallest generators share a fold


def test_folds_of_few_generators_and_of_one():
    two = np.concatenate([np.full(50, ""), np.array(["a"] * 8 + ["b"] * 8)])
    held = [fold.held.numpy() for fold in _folds(50, two, seed=0)]
    assert [len(own) for own in held] == [18, 18] and not set(held[0]) & set(held[1])
    one = np.concatenate([np.full(50, ""), np.full(20, "a")])
    held = [fold.held.numpy() for fold in _folds(50, one, seed=0)]
    assert [((own < 50).sum(), (own >= 50).sum()) for own in held] == [(10, 4)] * 5
    assert len(set(np.concatenate(held))) == 70


def _three_generators(alike):
    random = np.random.default_rng(0)
    real, fake = random.normal(size=(300, 8)), random.normal(size=(150, 8))
    names = np.repeat(["x", "y", "z"], 50)
    for i, name in enumerate("xyz"):
        fake[names == name, 0 if alike else i] += 4
    return real.astype(np.float32), fake.astype(np.float32), names


def test_what_a_new_generator_would_meet_is_told():
    config = CONFIG.model_copy(update={"pseudo_outliers": 0.0})
    found = {}
    for alike in (True, False):
        real, fake, names = _three_generators(alike)
        head, training = fit_perceptron(real, fake, np.arange(300.0), config, seed=0, generators=names.tolist())
        assert (training.held_out, training.folds) == ("generators", 3)
        assert set(training.generators) == {"x", "y", "z"} and head.temperature == training.temperature
        assert {own.n for own in training.generators.values()} == {50}
        found[alike] = training
        # The head itself has seen all three.
        seen = roc_auc_score(np.repeat([1, 0], [300, 150]), head.score(np.concatenate([real, fake])))
        assert seen > max(own.auc for own in training.generators.values()) - 0.02
    same, other = found[True], found[False]
    assert min(own.auc for own in same.generators.values()) > 0.97
    assert max(own.auc for own in other.generators.values()) < 0.9
    assert other.held_out_loss > 3 * same.held_out_loss and other.temperature > same.temperature
    assert other.best_epoch <= other.epochs <= config.epochs
    figures = other.figures()
    assert figures["held_out_auc_x"] == other.generators["x"].auc and figures["temperature"] == other.temperature


def test_the_epoch_of_the_lowest_held_out_loss_is_taken():
    real, fake, names = _three_generators(alike=False)
    seen = []
    config = CONFIG.model_copy(update={"patience": 4, "epochs": 40})
    _, training = fit_perceptron(
        real, fake, np.arange(300.0), config, 0, lambda done, total: seen.append((done, total)), names.tolist()
    )
    assert seen == [(epoch, 40) for epoch in range(1, training.epochs + 1)]
    assert training.epochs == training.best_epoch + 4 < 40
    shorter = config.model_copy(update={"epochs": training.best_epoch})
    _, again = fit_perceptron(real, fake, np.arange(300.0), shorter, 0, generators=names.tolist())
    assert (again.best_epoch, again.held_out_loss) == (training.best_epoch, training.held_out_loss)
    assert "raise bc.epochs" in again.notes[-1]


def test_one_generator_falls_back_to_faces_and_says_so():
    real, fake = _sides()
    for names in (None, ["only"] * 60):
        _, training = fit_perceptron(real, fake, np.arange(300.0), CONFIG, seed=0, generators=names)
        assert training.held_out == "faces" and training.folds == 5 and "one generator only" in training.notes[0]
        assert list(training.generators) == (["generated"] if names is None else ["only"])
        assert training.generators[names[0] if names else "generated"].n == 60
    with pytest.raises(ValueError, match="60 AI faces, 3 names"):
        fit_perceptron(real, fake, np.arange(300.0), CONFIG, seed=0, generators=["a", "b", "c"])


def test_probability_and_its_temperature():
    real, fake = _sides()
    head, _ = fit_perceptron(real, fake, np.arange(300.0), CONFIG, seed=0)
    scores = head.score(fake)
    np.testing.assert_allclose(head.probability(scores), expit(-scores / head.temperature), rtol=1e-15)
    older = {name: value for name, value in head.tensors().items() if name != "temperature"}
    assert PerceptronHead.from_tensors(older).temperature == 1.0
    assert PerceptronHead.from_tensors(head.tensors()).temperature == head.temperature
    assert head.tensors()["temperature"].shape == (1,)
    with pytest.raises(ValueError, match="one positive number"):
        PerceptronHead.from_tensors(head.tensors() | {"temperature": np.zeros(1)})


def test_diverging_training_is_an_error():
    real, fake = _sides()
    with pytest.raises(ValueError, match=r"not finite .* lower bc\.lr"):
        fit_perceptron(real, fake, np.arange(300.0), CONFIG.model_copy(update={"lr": 1e30}), seed=0)
