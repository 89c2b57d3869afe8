"""A posterior is found again after any change of what it depends on, and not after anything else."""

from __future__ import annotations

import copy
import pickle
import threading
import types
import weakref
from dataclasses import dataclass
from functools import partial

import gpytorch
import numpy as np
import pytest
import torch
from gpytorch.kernels import Kernel, MaternKernel, PolynomialKernel, RBFKernel, ScaleKernel
from gpytorch.likelihoods import FixedNoiseGaussianLikelihood
from gpytorch.means import Mean
from helpers import SimpleGP, assert_close, make_binary, make_inputs, make_model, make_reals
from torch.distributions import Bernoulli

import itergp
from itergp.errors import InputError
from itergp.likelihoods import BernoulliLikelihood, SingleLatentLikelihood
from itergp.models import held_tensors
from itergp.models.identity import identity_of
from itergp.parallel import RowPartition
from itergp.persistence.description import describe
from itergp.persistence.digest import digest
from itergp.solvers import DenseNewton, IterNCGP, SubspaceNewton

ROWS = 40


# ----------------------------------------------------------- parts of a user's
@dataclass
class Shape:
    """A setting with parts."""

    power: float = 1.5
    scales: tuple[float, ...] = (1.0, 2.0)


class UserKernel(Kernel):
    """A kernel with attributes of every kind."""

    has_lengthscale = True
    factor = 1.0

    def __init__(self):
        super().__init__()
        self.power = 1.5
        self.shape = Shape()
        self.options = {"weights": [1.0, 2.0], "array": np.array([1.0, 1.0])}
        self.table = torch.tensor([1.0, 1.0], dtype=torch.float64)
        self.transform = lambda distance: distance * 1.0
        self.register_buffer("offset", torch.tensor(0.5, dtype=torch.float64), persistent=False)

    def forward(self, x1, x2, diag=False, **params):
        scale = self.factor * self.shape.scales[0] * self.options["weights"][0] * float(self.options["array"][0])
        distance = self.covar_dist(x1 / self.lengthscale, x2 / self.lengthscale, diag=diag, **params)
        return self.offset + self.table[0] * torch.exp(-self.transform(scale * distance).pow(self.power))


class UserMean(Mean):
    """A mean with an attribute."""

    def __init__(self):
        super().__init__()
        self.slope = 0.5

    def forward(self, x):
        return self.slope * x[..., 0]


class UserLikelihood(SingleLatentLikelihood):
    """Labels with a temperature."""

    def __init__(self):
        super().__init__()
        self.temperature = 1.0

    def _log_density(self, latent, y):
        return -torch.nn.functional.softplus((1.0 - 2.0 * y) * latent / self.temperature)

    def _derivatives(self, latent, y):
        p = torch.sigmoid(latent / self.temperature)
        return (y - p) / self.temperature, p * (1.0 - p) / self.temperature**2

    def _conditional(self, latent):
        return Bernoulli(logits=latent / self.temperature, validate_args=False)

    def validate_targets(self, targets):
        return targets.double()


class UserModel(SimpleGP):
    """A model with an attribute."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.stretch = 1.0

    def forward(self, x):
        return super().forward(self.stretch * x)


def make_user_model(kernel: Kernel | None = None, **kwargs) -> UserModel:
    kernel = UserKernel() if kernel is None else kernel
    solver = SubspaceNewton(tolerance=1e-8)
    model = UserModel(*make_binary(ROWS), UserLikelihood(), kernel=kernel, solver=solver, **kwargs).double().eval()
    model.mean_module = UserMean()
    return model


# ----------------------------------------------------------------- every change
def _order(model):
    return torch.randperm(ROWS, generator=torch.Generator().manual_seed(3))


def _shuffled_targets(model):
    model.train_targets = model.train_targets[_order(model)]


def _shuffled_targets_in_place(model):
    model.train_targets.copy_(model.train_targets[_order(model)].clone())


def _shuffled_inputs(model):
    model.train_inputs = (model.train_inputs[0][_order(model)],)


def _shuffled_inputs_by_data(model):
    model.train_inputs[0].data.copy_(model.train_inputs[0][_order(model)].clone())


def _swapped_columns(model):
    model.train_inputs[0].copy_(model.train_inputs[0].flip(1).clone())


def _inputs_by_numpy(model):
    model.train_inputs[0].numpy()[:5] += 1.0


def _targets_by_data(model):
    model.train_targets.data[:10] = 1.0 - model.train_targets[:10]


def _weights(model):
    model.sample_weight = torch.linspace(0.1, 3.0, ROWS, dtype=torch.float64)


def _parameter_in_place(model):
    with torch.no_grad():
        model.covar_module.raw_lengthscale.add_(1.0)


def _parameter_by_data(model):
    model.covar_module.raw_lengthscale.data -= 1.0


def _parameter_by_numpy(model):
    model.covar_module.raw_lengthscale.detach().numpy()[:] = 1.0


def _other_parameter_data(model):
    model.covar_module.raw_lengthscale.data = torch.full((1, 1), 2.0, dtype=torch.float64)


def _buffer_in_place(model):
    model.covar_module.offset.mul_(3.0)


def _buffer_by_data(model):
    model.covar_module.offset.data.mul_(3.0)


def _kernel_of_another_class(model):
    old, model.covar_module = model.covar_module, RBFKernel().double()
    model.covar_module.raw_lengthscale = old.raw_lengthscale


def _setting(path, value):
    def change(model):
        *parts, name = path.split(".")
        for part in parts:
            model = getattr(model, part)
        setattr(model, name, value)

    return change


def _constraint(model):
    model.covar_module.raw_lengthscale_constraint = gpytorch.constraints.GreaterThan(1.0).double()


CHANGES = {
    "shuffled targets": _shuffled_targets,
    "shuffled targets in place": _shuffled_targets_in_place,
    "shuffled inputs": _shuffled_inputs,
    "shuffled inputs by .data": _shuffled_inputs_by_data,
    "swapped columns": _swapped_columns,
    "inputs through NumPy": _inputs_by_numpy,
    "targets by .data": _targets_by_data,
    "weights": _weights,
    "a parameter in place": _parameter_in_place,
    "a parameter by .data": _parameter_by_data,
    "a parameter through NumPy": _parameter_by_numpy,
    "a parameter's .data": _other_parameter_data,
    "a buffer in place": _buffer_in_place,
    "a buffer by .data": _buffer_by_data,
    "a kernel of another class": _kernel_of_another_class,
    "a constraint": _constraint,
    "an attribute of the kernel": _setting("covar_module.power", 0.7),
    "an attribute of an attribute": _setting("covar_module.shape.scales", (2.0, 2.0)),
    "a list in a dictionary": lambda m: m.covar_module.options["weights"].__setitem__(0, 3.0),
    "an array in a dictionary": lambda m: m.covar_module.options["array"].__setitem__(0, 3.0),
    "a plain tensor": lambda m: m.covar_module.table.data.mul_(2.0),
    "a function": _setting("covar_module.transform", lambda distance: distance * 2.0),
    "an attribute of the mean": _setting("mean_module.slope", -2.0),
    "an attribute of the likelihood": _setting("likelihood.temperature", 0.3),
    "an attribute of the model": _setting("stretch", 2.0),
    "another mean": lambda m: setattr(m, "mean_module", gpytorch.means.ZeroMean()),
    "another likelihood": lambda m: setattr(m, "likelihood", BernoulliLikelihood(link="probit")),
    "the approximation": _setting("approximation", "laplace"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_any_change_is_noticed(change):
    model, x = make_user_model(), make_inputs(6, seed=9)
    first, before = model.solution, model.latent_mean(x)
    change(model)
    after = model.latent_mean(x)
    assert model.solution is not first
    assert not torch.allclose(after, before, rtol=1e-3, atol=1e-3)
    fresh = copy.deepcopy(model)
    fresh.prediction_strategy = None
    assert_close(after, fresh.latent_mean(x), "posterior", dtype=torch.float32)
    kept = model.solution
    model.predict(x)
    assert model.solution is kept


class SecondProcess(RowPartition):
    """What a first process has is remembered, and a second one compared with it."""

    def __init__(self):
        super().__init__()
        object.__setattr__(self, "first_has", {})

    def require_same(self, name, content):
        if self.first_has.setdefault(name, content) != content:
            raise InputError(f"Every process must have the same {name}.")


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_processes_must_agree_in_all_that_a_posterior_depends_on(change):
    rows, models = SecondProcess(), [make_user_model() for _ in range(3)]
    change(models[2])
    for model in models[:2]:
        identity_of(model).require_same(rows)
    with pytest.raises(InputError, match="Every process must have the same"):
        identity_of(models[2]).require_same(rows)


LIBRARY = {
    "nu": (MaternKernel(nu=0.5), _setting("covar_module.nu", 2.5)),
    "power": (PolynomialKernel(power=1), _setting("covar_module.power", 3)),
    "active_dims": (RBFKernel(active_dims=(0,)), _setting("covar_module.active_dims", torch.tensor([1]))),
    "the kernel's class": (
        ScaleKernel(MaternKernel(nu=0.5)),
        _setting("covar_module.base_kernel", MaternKernel(nu=2.5)),
    ),
}


@pytest.mark.parametrize(("kernel", "change"), LIBRARY.values(), ids=LIBRARY)
def test_settings_of_gpytorchs_kernels_are_noticed(kernel, change):
    model, x = make_user_model(copy.deepcopy(kernel)), make_inputs(6, seed=9)
    before = model.latent_mean(x)
    change(model)
    model.double()
    assert not torch.allclose(model.latent_mean(x), before, rtol=1e-3, atol=1e-3)


def test_an_attribute_of_a_class_is_noticed(monkeypatch):
    model = make_user_model()
    first = model.solution
    monkeypatch.setattr(UserKernel, "factor", 3.0)
    assert model.solution is not first


def test_code_that_was_edited_is_noticed(monkeypatch):
    model = make_user_model()
    first = model.solution
    monkeypatch.setattr(UserMean, "forward", lambda self, x: -3.0 * x[..., 1])
    assert model.solution is not first


@pytest.mark.parametrize("change", [_setting("solver", IterNCGP()), _setting("operator_kind", "blocked")])
def test_another_method_is_noticed(change):
    model = make_user_model()
    first = model.solution
    change(model)
    assert model.solution is not first


def test_known_noise_is_noticed_in_any_order():
    x, y = make_reals(ROWS)
    noise = torch.linspace(0.01, 2.0, ROWS, dtype=torch.float64)
    model = SimpleGP(x, y, FixedNoiseGaussianLikelihood(noise)).double().eval()
    first = model.solution
    noise.copy_(noise.flip(0).clone())
    assert model.solution is not first


def test_dropout_is_noticed_when_it_begins():
    class Features(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.drop = torch.nn.Dropout(0.5)

    model = make_user_model()
    model.features = Features()
    model.eval()
    first = model.solution
    model.train()
    assert identity_of(model) != model.last_conditioned.key
    model.eval()
    assert model.solution is first


# ---------------------------------------------------------------- nothing else
KEPT = {
    "modes": lambda m: m.train().eval(),
    "state_dict": lambda m: m.load_state_dict(m.state_dict()),
    "gradients": lambda m: m.covar_module(make_inputs(3)).to_dense().sum().backward(),
    "requires_grad": lambda m: m.requires_grad_(False),
    "an equal kernel": lambda m: setattr(m, "covar_module", copy.deepcopy(m.covar_module)),
    "an equal likelihood": lambda m: setattr(m, "likelihood", copy.deepcopy(m.likelihood)),
    "equal data": lambda m: setattr(m, "train_targets", m.train_targets.clone()),
    "an equal solver": lambda m: setattr(m, "solver", SubspaceNewton(tolerance=1e-8)),
    "where it is": lambda m: m.to("cpu").double(),
    "what predictions only use": lambda m: setattr(m, "tempering", 0.5),
    "the memory": lambda m: setattr(m, "memory_budget", 10**6),
    "a plan": lambda m: m.plan(),
    "predictions": lambda m: (m(make_inputs(3)), m.predict(make_inputs(3)), m.latent_mean(make_inputs(3))),
}


@pytest.mark.parametrize("act", KEPT.values(), ids=KEPT)
def test_what_changes_nothing_costs_no_pass(act):
    model = make_user_model()
    first, operator = model.solution, model.last_conditioned.operator
    passes = operator.counts.passes
    act(model)
    assert model.solution is first
    assert model.last_conditioned.operator is operator
    assert operator.counts.passes == passes


class Counting(UserLikelihood):
    """Counts its evaluations."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def log_density(self, f, targets):
        self.calls += 1
        return super().log_density(f, targets)


class CountingModel(UserModel):
    """Counts its calls."""

    calls = 0

    def forward(self, x):
        self.calls += 1
        return super().forward(x)


def test_counting_evaluations_changes_nothing():
    model = CountingModel(*make_binary(ROWS), Counting()).double().eval()
    first, x = model.solution, make_inputs(3)
    for _ in range(2):
        model.predict(x)
        model(x)
        model.likelihood.log_density(x[:, :1], torch.ones(3))
    assert model.calls > 4
    assert model.solution is first
    assert model.solution.certificate.latent_error(x).shape == (3, 1)
    model.likelihood.temperature = 0.5
    assert model.solution is not first


def test_what_a_callback_changes_is_no_counter():
    model = make_user_model(PolynomialKernel(power=1))
    model.condition(callback=lambda _: _setting("covar_module.power", 2)(model))
    assert model.current_solution is None
    first = model.condition()
    assert model.solution is first
    model.covar_module.power = 3
    assert model.solution is not first


class Plain:
    """Neither a module nor a dataclass; it holds what cannot be copied by value."""

    __slots__ = ("size",)

    def __init__(self, size=3):
        self.size = size


class Extended(Plain):
    """With attributes of both sorts."""


def test_copies_keep_the_posterior_whatever_they_hold():
    model = make_user_model()
    del model.covar_module.transform  # pickle does not know lambdas
    model.covar_module.transform = torch.abs
    model.names, model.plain, model.itself = {"b", "a"}, Plain(), [model]
    expected = model.latent_mean(make_inputs(3))
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), copy.deepcopy(model).to(torch.float64)):
        assert other.current_solution is not None
        assert torch.equal(other.latent_mean(make_inputs(3)), expected)
        other.plain.size = 4
        assert other.current_solution is None
    assert model.current_solution is not None


# ------------------------------------------------------------- cost, and memory
@pytest.fixture
def reads(monkeypatch):
    """Sizes of the training data that were read."""
    sizes: list[int] = []

    def counted(tensor):
        sizes.append(tensor.shape[0])
        return digest(tensor)

    monkeypatch.setattr(held_tensors, "digest", counted)
    return sizes


@pytest.mark.parametrize("solver", [SubspaceNewton(), DenseNewton(), IterNCGP()], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("kind", ["dense", "blocked"])
def test_data_that_only_the_model_has_are_not_read_again(solver, kind, reads):
    model, x = make_model("bernoulli-logit", solver=solver, operator=kind), make_inputs(3)
    model.condition()
    assert reads
    model.solution  # noqa: B018
    reads.clear()
    for ask in (model.predict, model.latent_mean, model, model.solution.certificate.latent_error):
        ask(x)
    assert model.solution is model.to(torch.float64).solution
    assert not reads


def test_loaded_and_moved_data_are_the_models_own(reads, tmp_path):
    make_model("bernoulli-logit").save(tmp_path / "model.safetensors")
    given = make_binary(ROWS)
    loaded = SimpleGP(*given, BernoulliLikelihood()).double().load(tmp_path / "model.safetensors")
    moved = SimpleGP(given[0], given[1], BernoulliLikelihood()).to(torch.float32)
    for model in (loaded, moved):
        model.solution, model.solution  # noqa: B018
        reads.clear()
        assert model.solution is model.solution
        assert not reads or model is moved  # its labels have no dtype to change, and are those that were given


def test_predictions_read_shared_data_once(reads):
    x, y = make_binary(ROWS)
    model = SimpleGP(x, y, BernoulliLikelihood()).double().eval()
    model.condition()
    for predict in (model.predict, model.latent_mean, model):
        reads.clear()
        predict(make_inputs(3))
        assert len(reads) == 2


HOLDERS = {
    "the tensor": lambda t: t,
    "a view": lambda t: t[:],
    "an alias": lambda t: t.detach(),
    "its .data": lambda t: t.data,
    "a row": lambda t: t[3:4],
    "its storage": lambda t: torch.empty(0, dtype=t.dtype).set_(t.untyped_storage()),
    "a tuple": lambda t: (t,),
    "a weak reference": weakref.ref,
    "an array": lambda t: t.numpy(),
    "DLPack": lambda t: np.from_dlpack(t) if np.lib.NumpyVersion(np.__version__) >= "2.1.0" else t.numpy(),
}


def _write(holder):
    if isinstance(holder, weakref.ref):
        holder = holder()
    if isinstance(holder, tuple):
        holder = holder[0]
    if torch.is_tensor(holder):
        holder = holder.data
    holder[...] += 1.0


@pytest.mark.parametrize("known", [False, True], ids=["before", "afterwards"])
@pytest.mark.parametrize("hold", HOLDERS.values(), ids=HOLDERS)
def test_whoever_holds_the_inputs_can_change_them(hold, known):
    """Given or taken while the posterior is known: a write without a trace is noticed."""
    x, y = make_binary(ROWS)
    if known:
        model = SimpleGP(x, y, BernoulliLikelihood()).double().eval()
        del x, y
        model.solution, model.solution  # noqa: B018
        holder = hold(model.train_inputs[0])
    else:
        holder = hold(x)
        model = SimpleGP(x, y, BernoulliLikelihood()).double().eval()
        if not isinstance(holder, weakref.ref):
            del x, y
    for _ in range(2):
        first = model.solution
        assert model.solution is first
        _write(holder)
        assert model.solution is not first
    first = model.solution
    del holder
    model.solution, model.solution  # noqa: B018
    model.train_inputs[0].data[0] += 1.0  # leaves no reference behind
    assert model.solution is not first


def test_data_in_two_places_and_in_other_memory(reads):
    array = make_inputs(ROWS).numpy().copy()
    model = SimpleGP(array, make_binary(ROWS)[1], BernoulliLikelihood()).double().eval()
    first = model.solution
    assert model.solution is model.solution is first
    array[0] += 1.0
    assert model.solution is not first
    model = make_model("bernoulli-logit")
    first = model.solution
    model.train_inputs[0].share_memory_()  # with other processes
    assert model.solution is model.solution is first
    reads.clear()
    assert model.solution is first
    assert reads


def test_a_copy_reads_its_data_once(reads):
    model = make_model("bernoulli-logit")
    first = model.solution
    assert model.solution is model.solution is first
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        reads.clear()
        assert other.solution is other.solution
        assert len(reads) == 2  # its memory is another, which pickle may share with another process


def test_a_certificate_of_other_data_is_refused():
    model, x = make_model("bernoulli-logit"), make_inputs(3)
    certificate = model.solution.certificate
    certificate.latent_error(x)
    _shuffled_targets(model)
    with pytest.raises(itergp.InputError, match=r"belongs to hyperparameters or data that have since changed"):
        certificate.latent_error(x)


def test_a_users_tensor_can_still_be_resized():
    x, y = make_binary(ROWS)
    model = SimpleGP(x, y, BernoulliLikelihood()).double()
    model.condition()
    assert x.untyped_storage().resizable()


# --------------------------------------------------------------------- the parts
def test_digests_say_order_dtype_and_shape():
    x = make_inputs(12)
    same = [x.clone(), x.mT.contiguous().mT, torch.cat([x, x])[:12], x.clone().requires_grad_(True)]
    assert {digest(other) for other in same} == {digest(x)}
    others = [x.flip(0), x.flip(1), x.float(), x.reshape(-1), x.reshape(2, 12), x[:11], -x, x.mT, x[:0], x[0, 0]]
    assert len({digest(other) for other in [x, *others]}) == len(others) + 1
    assert digest(torch.tensor([0.0])) != digest(torch.tensor([-0.0]))
    assert len({digest(torch.zeros(2, dtype=kind)) for kind in (torch.int32, torch.float32, torch.int64)}) == 3
    assert digest(torch.tensor(torch.nan)) == digest(torch.tensor(torch.nan))
    assert digest(x.to_sparse()) == digest(x)
    assert digest(x.bfloat16()) != digest(x.half())
    complex_ = torch.tensor([1.0 + 2.0j])
    assert digest(complex_.conj()) == digest(torch.tensor([1.0 - 2.0j])) != digest(complex_)


def test_large_tensors_are_read_whole():
    x = torch.zeros(3_000_001)
    before = digest(x)
    for index in (0, 262_143, 262_144, 1_500_000, 3_000_000):
        x[index] = 1.0
        assert digest(x) != before
        x[index] = 0.0
    assert digest(x) == before


def _first(x):
    return x + 1.0


def _second(x):
    return x + 2.0


UNEQUAL = {
    "numbers": (1, 1.0, True, "1", b"1", None, 1 + 0j),
    "containers": ([1], (1,), {1}, frozenset({1}), {1: 1}, [[1]], [], [1, 1]),
    "dtypes": (torch.float32, torch.float64, torch.device("cpu"), torch.device("meta")),
    "arrays": (np.array([1.0, 2.0]), np.array([2.0, 1.0]), np.array([1, 2]), np.array(["a", "b"], dtype=object)),
    "functions": (_first, _second, torch.sin, torch.cos, partial(_first), partial(_second), partial(_first, 1)),
    "objects": (
        Shape(),
        Shape(power=2.0),
        Plain(),
        Plain(4),
        Extended(),
        Extended(4),
        slice(1),
        slice(2),
        Shape,
        Plain,
    ),
    "modules": (
        torch.nn.ReLU(),
        torch.nn.Sequential(torch.nn.ReLU()),
        torch.nn.ELU(),
        torch.nn.ELU(alpha=2.0),
        torch.nn.Tanh(),
        torch.nn.Sigmoid(),
    ),
}


@pytest.mark.parametrize("values", UNEQUAL.values(), ids=UNEQUAL)
def test_different_values_are_described_differently(values):
    texts = [sorted(describe(value, "name").items()) for value in values]
    assert all(one != other for i, one in enumerate(texts) for other in texts[:i])
    assert texts == [sorted(describe(copy.deepcopy(value), "name").items()) for value in values]


def test_circles_locks_and_generators_are_described():
    circle: list = [1]
    circle.append(circle)
    assert describe(circle, "a") == describe(copy.deepcopy(circle), "a")
    generator = torch.Generator()
    before = describe(generator, "g")
    torch.rand(3, generator=generator)
    assert describe(generator, "g") == before
    assert describe(threading.Lock(), "lock") == describe(threading.Lock(), "lock")
    values = {"x": float("nan")}
    assert describe(values, "v") == describe(copy.deepcopy(values), "v")


def test_sets_and_code_say_the_same_in_every_process():
    def code(x):
        return x in {"a", "b", "c"}

    text = describe([code, {"a", "b", "c"}], "v")
    assert text["v[1]"] == "set of 3: [\"'a'\", \"'b'\", \"'c'\"]"

    def one(x):
        return x in {0, 8}

    consts = tuple(frozenset((8, 0)) if isinstance(c, frozenset) else c for c in one.__code__.co_consts)
    assert repr(consts) != repr(one.__code__.co_consts)  # equal, and in another order
    other = types.FunctionType(one.__code__.replace(co_consts=consts), globals(), "one")
    assert describe(one, "f")["the code of f"] == describe(other, "f")["the code of f"]


def test_one_module_in_two_places_is_what_two_equal_ones_are():
    part = torch.nn.Linear(2, 2)
    shared, apart = torch.nn.Sequential(part, part), torch.nn.Sequential(part, copy.deepcopy(part))
    assert describe(shared, "") == describe(apart, "")
    with torch.no_grad():
        apart[1].bias.add_(1.0)
    assert describe(shared, "") != describe(apart, "")


def test_inputs_may_be_set_without_a_tuple():
    model, x = make_model("bernoulli-logit"), make_inputs(3)
    model.condition()
    model.train_inputs = model.train_inputs[0].flip(0)
    assert model.train_inputs[0].shape == (ROWS, 2)
    assert model.predict(x).probs.shape == (3,)


# ------------------------------------------------------------------------- files
def test_a_posterior_of_another_kernel_is_not_loaded(tmp_path):
    path = tmp_path / "model.safetensors"
    saved = (
        SimpleGP(*make_binary(ROWS), BernoulliLikelihood(), kernel=ScaleKernel(MaternKernel(nu=0.5))).double().eval()
    )
    saved.condition()
    saved.save(path)
    other = (
        SimpleGP(*make_binary(ROWS), BernoulliLikelihood(), kernel=ScaleKernel(MaternKernel(nu=2.5))).double().eval()
    )
    with pytest.warns(
        itergp.ItergpWarning, match=r"covar_module\.base_kernel\.nu differs: 0\.5 in the file, 2\.5 here"
    ):
        other.load(path)
    assert other.current_solution is None
    fresh = (
        SimpleGP(*make_binary(ROWS), BernoulliLikelihood(), kernel=ScaleKernel(MaternKernel(nu=2.5))).double().eval()
    )
    x = make_inputs(5, seed=3)
    assert_close(other.latent_mean(x), fresh.latent_mean(x), "posterior", dtype=torch.float32)
