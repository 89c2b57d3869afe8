"""``NetworkGP``: a trained network, linearised in its weights, with the uncertainty that belongs to it."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import gpytorch
import torch
from gpytorch.distributions import MultitaskMultivariateNormal, MultivariateNormal
from linear_operator import to_linear_operator
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.utils._pytree import tree_leaves

from itergp.checks import require_positive
from itergp.diagnostics import Eigenspace
from itergp.errors import InputError
from itergp.likelihoods import Likelihood, Observations, as_likelihood
from itergp.likelihoods.base import node_offsets
from itergp.likelihoods.predictive import CategoricalPredictive
from itergp.models.network_data import NetworkData, as_rows
from itergp.models.network_evidence import Bound, EvidenceTerms
from itergp.models.network_sampling import FunctionSamples, sampled_parts
from itergp.models.network_saving import load_network, save_network
from itergp.models.streaming import check_prediction, predictive_of
from itergp.models.validation import refuse_to_empty, require_values_of
from itergp.numerics.blocks import psd_root
from itergp.numerics.krylov import leading_eigenspace
from itergp.operators import default_memory_budget, slices
from itergp.operators.layer_gradients import LayerGradients
from itergp.operators.linearisation import Chosen, FinalLayer, Linearisation, Rows, linearise, num_rows, take
from itergp.operators.row_gradients import RowGradients
from itergp.posterior.gauss_newton import MANY_LATENTS, Curvatures, GaussNewton, Overview, leading_actions, look_over
from itergp.posterior.row_information import RowInformation
from itergp.posterior.softmax_information import SoftmaxInformation, SoftmaxRows
from itergp.posterior.tempering import EXPONENTS, share_power, tempered, variance_share
from itergp.posterior.weights import (
    DenseInformation,
    Information,
    LowRankInformation,
    WeightPosterior,
    gram_matrix,
    remaining_covariance,
    remaining_variance,
)

_COVERAGE, _PASSES = 0.999, 1
_SINGLE, _GRAMS = 4096, 8  # directions of rows looked at one by one, and matrices of that size that there is memory for
_MOST_WORK = 2**40  # products, a minute, for rows of a softmax's last layer
_RANK, _LEAST_RANK, _SHARE = 300, 20, 32  # of the memory budget, for directions, by "auto"
_SAME = 1e-4  # relative difference of two passes over the same rows that is rounding
_MOST_JOINT = 4096  # latent values of a joint distribution
_MOST_ROWS, _MOST_BYTES = 1024, 2**27  # of predictions at a time
_MOST_GROUPED = 512  # directions by which the evidence of several groups of weights is known
_PAYS = 4  # times as many weights as numbers of a gradient by layers, for these to be used
_PRODUCTS = 24  # bytes for each product of a prediction's gradient with one of the data's
_OVERSAMPLED = 4  # columns beyond half of the rank that a pass of the search for an eigenspace has
_STEPS, _FEW_EVALUATIONS = 50, 8  # of prior precisions, within a round, and where each costs a factorisation

_TEMPERED_ROWS, _TEMPERED_LOSS = 128, 0.01  # training rows that choose the tempering of many classes, and its cost
TEMPERINGS = (*EXPONENTS, math.inf)

Prior = float | Tensor | Mapping[str, float]


@dataclass(frozen=True)
class ConditionedNetwork:
    """A posterior of the weights, and what it was found from.

    Attributes:
        weights: w* ``(P,)``.
        information: What the data say about whitened weights.
        scale: Prior standard deviations ``(P,)``.
        state: Fingerprint of all that the posterior depends on beside w*.
        overview: Of the data; None of a posterior that was read from a file.
        actions: D and U of ``leading_actions``; None of an exact posterior, and of one from a file.
        matrix: H ``(P, P)`` of an exact posterior of few weights.
        terms: Of the evidence, once they were asked for.
    """

    weights: Tensor
    information: Information
    scale: Tensor
    state: tuple[Any, ...]
    overview: Overview | None = None
    actions: tuple[Tensor, Tensor] | None = None
    matrix: Tensor | None = None
    terms: EvidenceTerms | None = None

    @property
    def exact(self) -> bool:
        """Whether all that the data say was computed."""
        return self.actions is None


class NetworkGP(nn.Module):
    """The linearised Laplace posterior of a trained network: ``f(x) = f(x; w*) + J(x) (w - w*)``, ``w ~ N(0, 1 / precision)``.

    A Gaussian process with covariance ``J P^{-1} J^T`` whose mean is the network's output. The covariance is conditioned on the
    directions of weights that the data say most about; in all others it is the prior's, so that it is never below the exact one
    (of the generalised Gauss-Newton matrix) and shrinks towards it with the rank. The posterior is found on demand, and again
    when weights, precision, likelihood or data have changed. The network is called in evaluation mode and never changed.

    The Jacobian is never there as a whole. Where ``rank`` is None, or reaches the number of weights P or that of informative
    directions of latent values, the exact posterior is found, by the Gauss-Newton matrix ``(P, P)`` in float64 or by the
    gradients of these directions, whichever are fewer: that is for thousands of either, not more.

    Args:
        network: Any module with outputs ``(n, C)``, or ``(n,)`` for C = 1: the likelihood's latent values, such as logits.
        x: Training inputs: a tensor, or a tuple or dictionary of tensors, which the network takes as arguments. Or, with
            ``y`` None, a ``DataLoader`` of pairs of inputs and targets, the same ones in every epoch in whatever order. None
            of a model that is to be loaded.
        y: Training targets ``(N,)``, as the likelihood wants them.
        likelihood: One of ``itergp.likelihoods``, or any of GPyTorch's as it is.
        parameters: Which parameters are uncertain: names of parameters or modules, or a predicate of name and parameter;
            default those that require a gradient, such as the adapters of a network that is frozen otherwise.
        prior_precision: Of the weights: a number, a tensor with one for each chosen parameter tensor, or a dictionary from
            names of parameters or modules to numbers. Weight decay ``wd`` of a loss that averages over N rows is ``N wd``.
        prior_mean: Prior means by parameter name, such as those before fine-tuning; default 0. They change the evidence alone.
        rank: Directions of the weights that are computed: ``"auto"`` for 300, or as many as there is memory for; None for all.
        row_directions: Directions of rows' latent values, those of most curvature, that are looked at one by one, without loss:
            ``"auto"`` for 4,096, or as many as there is memory for; 0 for none. The rank is for what is left of the coverage.
            Where there are more of them, or more than 64 classes, they are rows of a softmax's last layer, with all directions.
        coverage: Share of the curvature of the training rows that is looked at. Rows that the network is certain of have next
            to none, and cost nothing; leaving them out can only widen the covariance. 1 where the likelihood is to be learned.
        passes: Products with the Gauss-Newton matrix in the search for directions; more make a low rank tighter.
        memory_budget: Bytes for gradients of rows; default a quarter of the free memory.
        sample_weight: Weights ``(N,)`` that multiply the rows' log-densities; default 1.
        missing_targets: Whether targets may be missing.

    Attributes:
        log_prior_precision: Logarithm of the precision of each group of weights ``(G,)``, a parameter.
        tempering: Exponent of ``predict`` by default, as in ``NonConjugateGP``. None, the default, is 0, but of more than 64
            classes what the training rows allow: ``default_tempering``.

    Raises:
        InputError: If network, data, likelihood and prior do not fit each other.

    Examples:
        >>> import torch, itergp
        >>> _ = torch.manual_seed(0)
        >>> x = torch.linspace(-2, 2, 40).unsqueeze(-1)
        >>> y = (x[:, 0] > 0).long()
        >>> network = torch.nn.Sequential(torch.nn.Linear(1, 16), torch.nn.Tanh(), torch.nn.Linear(16, 2))
        >>> optimiser = torch.optim.Adam(network.parameters(), lr=0.05)
        >>> for _ in range(100):
        ...     optimiser.zero_grad()
        ...     torch.nn.functional.cross_entropy(network(x), y).backward()
        ...     _ = optimiser.step()
        >>> model = itergp.models.NetworkGP(network, x, y, itergp.likelihoods.CategoricalLikelihood(num_classes=2))
        >>> bool(model.predict(torch.tensor([[1.5]])).probs[0, 1] > 0.9)
        True
    """

    _group: Tensor

    def __init__(
        self,
        network: nn.Module,
        x: Any,
        y: Any,
        likelihood: gpytorch.likelihoods.Likelihood,
        *,
        parameters: Chosen = None,
        prior_precision: Prior = 1.0,
        prior_mean: Mapping[str, Tensor] | None = None,
        rank: int | Literal["auto"] | None = "auto",
        row_directions: int | Literal["auto"] = "auto",
        coverage: float = _COVERAGE,
        passes: int = _PASSES,
        memory_budget: int | None = None,
        sample_weight: Any = None,
        missing_targets: bool = False,
    ) -> None:
        super().__init__()
        if not isinstance(network, nn.Module):
            raise InputError(
                f"`network` must be a torch module. Got {type(network).__name__}. Wrap the function in one."
            )
        counts: tuple[tuple[str, Any], ...] = (
            ("rank", None if rank == "auto" else rank),
            ("passes", passes),
            ("memory_budget", memory_budget),
            ("row_directions", None if row_directions in ("auto", 0) else row_directions),
        )
        for name, value in counts:
            require_positive(name, value, integer=True)
        if not 0.0 < coverage <= 1.0:
            raise InputError(f"`coverage` must be a share, above 0 and at most 1. Got {coverage!r}.")
        self.network, self.likelihood, self.chosen = network, likelihood, parameters
        self.rank, self.row_directions, self.coverage = rank, row_directions, coverage
        self.passes, self.memory_budget = passes, memory_budget
        self.tempering: float | None = None
        self.calculus  # noqa: B018 - a likelihood that cannot be used is refused now
        self._prior, self._prior_mean = prior_precision, prior_mean
        self._known: ConditionedNetwork | None = None
        self._drawn: tuple[ConditionedNetwork, FunctionSamples] | None = None
        self._tempered: tuple[ConditionedNetwork, float] | None = None
        self._linearisation: Linearisation | None = None
        self._layers: LayerGradients | None = None
        data = NetworkData.of(x, y, sample_weight, missing_targets=missing_targets)
        self.data = data
        if not data.empty:
            self._look_at(data.probe())

    def _look_at(self, probe: Rows) -> None:
        """Takes the network as a function of its weights, as rows show it."""
        like = next(value for value in self.network.parameters() if value.is_floating_point())
        self._probe = probe = as_rows(probe, "x", like.detach())
        self._linearisation = linearise(self.network, self.chosen, probe, self.calculus.num_latents)
        self._layers = LayerGradients(self._linearisation, probe)
        values, group = prior_groups(self._linearisation.names, self._prior)
        self.register_buffer("_group", group.to(like.device), persistent=False)
        self.log_prior_precision = nn.Parameter(values.log().to(like.device))
        if self._prior_mean is not None:
            self._mean_of_prior()

    # ------------------------------------------------------------------ the posterior
    @property
    def calculus(self) -> Likelihood:
        """The likelihood as log-densities and their derivatives."""
        return as_likelihood(self.likelihood, ())

    @property
    def linearisation(self) -> Linearisation:
        """The network as a function of the chosen weights.

        Raises:
            InputError: If the model has seen neither data nor a file.
        """
        if self._linearisation is None:
            raise InputError(
                "The model must have data or a saved posterior. Got neither. Pass x and y, or call load(path)."
            )
        return self._linearisation

    @property
    def layers(self) -> LayerGradients:
        """Gradients of rows, by layers."""
        self.linearisation  # noqa: B018 - the error is its
        assert self._layers is not None
        return self._layers

    @property
    def prior_precision(self) -> Tensor:
        """Prior precision of each group of weights ``(G,)``."""
        return self.log_prior_precision.exp()

    @property
    def conditioned(self) -> ConditionedNetwork:
        """The posterior at the present state; found now if something changed since it was last found."""
        weights, state = self.linearisation.weights(), self._state()
        known = self._known
        if known is None or not torch.equal(known.weights, weights):
            self._known = known = self._find(weights, state)
        elif known.state != state:
            scaled = self._differs_in_precision(known, state)
            self._known = known = self._rescaled(known, state) if scaled else self._find(weights, state)
        return known

    def _differs_in_precision(self, known: ConditionedNetwork, state: tuple[Any, ...]) -> bool:
        """Whether all that changed is the one precision of all weights, by which H is only multiplied."""
        if known.overview is None or self._learns_likelihood() or len(self.log_prior_precision) > 1:
            return False
        return known.state[:-1] == state[:-1]

    def condition(self) -> WeightPosterior:
        """Finds the posterior now, and returns that of the weights."""
        self._known = None
        return self.weight_posterior()

    def weight_posterior(self) -> WeightPosterior:
        """The posterior of the chosen weights: samples, log-densities, marginal variances, and the next task's penalty."""
        fit = self.conditioned
        return WeightPosterior(self.linearisation, fit.weights, fit.scale, fit.information)

    @torch.no_grad()
    def eigenspace(
        self, rank: int = 20, *, posterior: bool = False, coverage: float | None = None, passes: int = 5, seed: int = 0
    ) -> Eigenspace:
        """Leading eigenspace of what the data say about the weights, ``J^T W J``: directions in which they are known best.

        Its overlap with a choice of weights, such as the largest, says whether that choice is one of what matters.

        Args:
            rank: Eigenvectors.
            posterior: Whether the prior precision is added: the posterior's precision.
            coverage: Share of the curvature that is looked at; default the model's.
            passes: Products in the search; more resolve values that are close to one another.
            seed: Of the search.

        Returns:
            Eigenvalues, eigenvectors in the order of ``weight_posterior().mean``, and residuals.

        Raises:
            InputError: If there are no data, or not so many directions.
        """
        if self.data.empty:
            raise InputError(
                "An eigenspace needs the training data. Got a model without. Pass x and y to the one that loads."
            )
        require_positive("rank", rank, integer=True)
        share = self.coverage if coverage is None else coverage
        curvatures: Curvatures | None = [] if self.data.loader is None else None
        overview = look_over(self.linearisation, self._parts, share, 0, curvatures)
        ones = torch.ones_like(self._scale())
        most = min(len(ones), overview.num_kept)
        if rank > most:
            raise InputError(
                f"`rank` must be at most {most}, the directions that the data say something about. Got {rank}."
            )
        problem = GaussNewton(self.linearisation, self._parts, ones, overview, self.layers, curvatures=curvatures)
        precision = self._scale().square().reciprocal().unsqueeze(-1) if posterior else None

        def product(block: Tensor) -> Tensor:
            found = problem.product(block)
            return found if precision is None else found + precision * block

        width = min(most, max(rank // 2 + _OVERSAMPLED, -(-rank // passes)))
        start = problem.sketch(width, torch.Generator().manual_seed(seed))
        return Eigenspace(*leading_eigenspace(product, start, rank, passes))

    @torch.no_grad()
    def _find(self, weights: Tensor, state: tuple[Any, ...]) -> ConditionedNetwork:
        if self.data.empty:
            raise InputError(
                "The state must be the saved one where there are no data. Got a network, likelihood or prior precision that "
                "has changed. Pass x and y, or load again."
            )
        size, learns = len(weights), self._learns_likelihood()
        rank, single = self._rank(size), self._single()
        coverage = 1.0 if rank is None or learns else self.coverage
        curvatures: Curvatures | None = [] if self.data.loader is None else None  # whose batches may be others
        overview = look_over(self.linearisation, self._parts, coverage, single, curvatures)
        # The evidence knows the derivative of actions alone.
        if learns and overview.num_single < overview.num_directions:
            overview = replace(overview, num_single=0, split=math.inf)
        self._require_same_rows(overview)
        scale = self._scale()
        problem = GaussNewton(self.linearisation, self._parts, scale, overview, self.layers, curvatures=curvatures)
        if (found := self._with_softmax_rows(problem, weights, state)) is not None:
            return found
        if rank is None or rank >= min(size, overview.num_directions):
            problem.overview = overview = replace(overview, least=0.0, num_kept=overview.num_directions)
            found = ConditionedNetwork(weights, self._none(), problem.scale, state, overview)
            if size <= overview.num_directions:
                matrix = problem.matrix()
                return replace(found, information=DenseInformation.from_matrix(matrix), matrix=matrix)
            return replace(found, information=LowRankInformation.from_products(problem.root()))
        if overview.num_single:
            return self._with_single_rows(problem, rank, weights, state)
        actions = leading_actions(problem, rank, self.passes)
        information = LowRankInformation.from_products(actions[1])
        return ConditionedNetwork(weights, information, problem.scale, state, overview, actions)

    @torch.no_grad()
    def _rescaled(self, known: ConditionedNetwork, state: tuple[Any, ...]) -> ConditionedNetwork:
        """At another precision of all weights: the same directions, which know a multiple of what they did."""
        scale = self._scale()
        ratio = float((scale[0].double() / known.scale[0].double()).square())
        information = known.information.rescaled(ratio)
        actions, matrix = known.actions, known.matrix
        if actions is not None:
            actions = (actions[0] / math.sqrt(ratio), actions[1] * math.sqrt(ratio))
        matrix = None if matrix is None else matrix * ratio
        return replace(known, information=information, scale=scale, state=state, actions=actions, matrix=matrix)

    def _with_single_rows(
        self, problem: GaussNewton, rank: int, weights: Tensor, state: tuple[Any, ...]
    ) -> ConditionedNetwork:
        """What the rows of most curvature say, and, of the others, actions."""
        overview, rest = problem.overview, problem.scale.new_zeros(len(weights), 0)
        if overview.num_kept > overview.num_single:
            others = replace(problem, single=False)
            rest = leading_actions(others, rank, self.passes)[1]
            others.release()
        information = RowInformation.of(problem.single_gradients(), rest)
        complete = overview.num_single == overview.num_directions
        actions = None if complete else (rest[:, :0], rest)
        return ConditionedNetwork(weights, information, problem.scale, state, overview, actions)

    def _with_softmax_rows(
        self, problem: GaussNewton, weights: Tensor, state: tuple[Any, ...]
    ) -> ConditionedNetwork | None:
        """What rows say about a softmax's last layer, where directions one by one are not all, or None.

        For a rank of None all rows, or none.
        """
        overview, linearisation = problem.overview, self.linearisation
        covered = overview.num_single >= overview.num_kept or (self.rank is None and not self._many_latents)
        if covered or self.row_directions == 0 or not isinstance(linearisation, FinalLayer):
            return None
        most = self._most_softmax_rows(linearisation, overview.num_rows)
        least = 1 if self._many_latents and self.rank is not None else overview.num_rows  # else there are directions
        if not self.calculus.plain_softmax or most < least:
            return None
        rows = SoftmaxRows.of(linearisation, self._parts(), problem.scale, most)
        information = SoftmaxInformation.of(linearisation.layer, rows.features, rows.probs, rows.row_weights)
        if information is None:
            return None
        none = problem.scale.new_zeros(len(weights), 0)
        kept = len(rows.probs) * (linearisation.num_latents - 1)
        overview = replace(overview, num_kept=kept, num_single=kept)
        actions = None if rows.complete else (none, none)
        return ConditionedNetwork(weights, information, problem.scale, state, overview, actions)

    def _most_softmax_rows(self, linearisation: FinalLayer, size: int) -> int:
        """Rows of a softmax's last layer that there is memory for, at most; 0 where factors of the classes take too much."""
        budget = self.memory_budget or default_memory_budget(self._group.device)
        latents, width = linearisation.num_latents, linearisation.layer.width
        cheap = max(1, math.isqrt(_MOST_WORK // (latents * width)))
        wanted = min(size, _SINGLE, cheap) if self.row_directions == "auto" else min(size, self.row_directions)
        if self.rank is None:
            wanted = size
        while wanted and SoftmaxInformation.num_bytes(wanted, latents, width) > budget:
            wanted //= 2
        return wanted

    @property
    def _many_latents(self) -> bool:
        return self.linearisation.num_latents > MANY_LATENTS

    def _single(self) -> int:
        """Directions of rows that may be looked at one by one."""
        if self._many_latents:
            return 0
        if self.row_directions != "auto":
            return self.row_directions
        budget = self.memory_budget or default_memory_budget(self._group.device)
        own = self.layers.layout.width * self.linearisation.parameters()[0].element_size()
        return min(_SINGLE, budget // (2 * own), math.isqrt(budget // (_GRAMS * 8)))

    def _rank(self, size: int) -> int | None:
        """Directions of so many weights; None for all."""
        if self.rank != "auto":
            return self.rank
        budget = self.memory_budget or default_memory_budget(self._group.device)
        itemsize = self.linearisation.parameters()[0].element_size()
        return max(_LEAST_RANK, min(_RANK, budget // (_SHARE * size * itemsize)))

    def _require_same_rows(self, overview: Overview) -> None:
        """A loader must give the same rows again.

        Raises:
            InputError: If it does not.
        """
        if self.data.loader is None:
            return
        again = look_over(self.linearisation, self._parts, 1.0)
        difference = abs(again.log_density - overview.log_density)
        if again.num_rows != overview.num_rows or difference > _SAME * (1.0 + abs(overview.log_density)):
            raise InputError(
                "`x` must be a loader that gives the same rows whenever it is gone through. Got others: "
                f"{overview.num_rows} of log-density {overview.log_density:.6g}, then {again.num_rows} of "
                f"{again.log_density:.6g}. Leave out random augmentation, `drop_last`, and samplers that choose."
            )

    def _none(self) -> Information:
        scale = self._scale()
        return LowRankInformation(scale.new_zeros(len(scale), 0), scale.new_zeros(0).double())

    # ---------------------------------------------------------------------- predictions
    def predict(self, x: Any, *, tempering: float | None = None, **observation: Any) -> Distribution:
        """Predictive distribution of observations at new inputs, row by row, within the memory budget.

        Args:
            x: Inputs, as the network takes them.
            tempering: As in ``NonConjugateGP.predict``: 0 integrates the posterior, infinity plugs in the network's output.
                Default ``self.tempering``.
            **observation: What the likelihood wants to know about new rows, a number or ``(M,)``.

        Returns:
            A distribution with batch shape ``(M,)``, as that of ``NonConjugateGP.predict``.

        Raises:
            InputError: If the inputs are not those of the network, or the likelihood does not know a keyword.
        """
        calculus = self.calculus
        exponent = check_prediction(calculus, self._exponent() if tempering is None else tempering, observation)
        integrated = exponent < math.inf
        if integrated and self.draws_functions:
            return self._predict_by_samples(x, exponent)
        batches = (
            (which, mean, tempered(covariance, variance, exponent) if integrated else covariance)
            for which, mean, covariance, variance in self._marginals(x, integrated=integrated)
        )
        return predictive_of(calculus, batches, observation)

    @property
    def draws_functions(self) -> bool:
        """Whether predictions are averages over functions: of so many classes that covariances between them are too large."""
        return self._many_latents and self.calculus.plain_softmax

    @torch.no_grad()
    def default_tempering(self) -> float:
        """Of more than 64 classes the least exponent that costs training rows at most 1 % of their log-density, else 0.

        Of many classes each is all but excluded everywhere, has little curvature and keeps most of its prior variance: that one
        of them exceeds the right one is then all but sure, and the posterior as it is may be worse than chance. The rows are
        128, spread evenly over the data: of a loader that shuffles, others every time the posterior is found. Rows that the
        network was not trained on choose better: ``itergp.learning.calibrate_network``.
        """
        if not self.draws_functions or self.data.empty:
            return 0.0
        fit = self.conditioned
        if self._tempered is None or self._tempered[0] is not fit:
            rows = self.data.spread(self.calculus, self.linearisation.parameters()[0], _TEMPERED_ROWS)
            if not rows:
                return 0.0
            found = [self.tempered_log_densities(x, labels.long(), TEMPERINGS)[0] for x, labels in rows]
            means = torch.cat(found, 1).mean(-1)
            allowed = means >= means.max() - _TEMPERED_LOSS * means.max().abs()
            self._tempered = (fit, TEMPERINGS[int(allowed.nonzero()[0])])
        return self._tempered[1]

    def _exponent(self) -> float:
        return self.default_tempering() if self.tempering is None else self.tempering

    @torch.no_grad()
    def _predict_by_samples(self, x: Any, exponent: float) -> CategoricalPredictive:
        samples, found = self._samples(), []
        for _, part in sampled_parts(self._rows(x), self.linearisation.num_latents):
            share = None if exponent == 0.0 else share_power(self._remaining(part), exponent)
            found.append(samples.probabilities(part, share))
        probs, errors = (torch.cat(own) for own in zip(*found, strict=True))
        return CategoricalPredictive(probs, errors)

    @torch.no_grad()
    def tempered_log_densities(self, x: Any, labels: Tensor, exponents: Sequence[float]) -> tuple[Tensor, Tensor]:
        """Log-densities of labels ``(len(exponents), M)``, and the share of prior variance that is left ``(M,)``, float64.

        Of a model that ``draws_functions``: by the same ones for all exponents.

        Args:
            x: Inputs, as the network takes them.
            labels: Theirs ``(M,)``.
            exponents: Of the tempering; infinity plugs in the network's output.
        """
        samples, densities, left = self._samples(), [], []
        for i, part in sampled_parts(self._rows(x), self.linearisation.num_latents):
            share = self._remaining(part)
            powers = [share_power(share, p) for p in exponents]
            densities.append(samples.log_densities(part, labels[i], powers))
            left.append(share.double())
        return torch.cat(densities, 1), torch.cat(left)

    def _samples(self) -> FunctionSamples:
        """Functions of the posterior as it is, drawn once."""
        fit = self.conditioned
        if self._drawn is None or self._drawn[0] is not fit:
            budget = self.memory_budget or default_memory_budget(self._group.device)
            self._drawn = (fit, FunctionSamples.of(self.weight_posterior(), budget // 4))
        return self._drawn[1]

    def _remaining(self, rows: Rows) -> Tensor:
        """The share of the prior variance of a row's latent functions that is left ``(m,)``."""
        left, prior = self._variances(rows, self.conditioned)
        return variance_share(left, prior)

    def _variances(self, rows: Rows, fit: ConditionedNetwork) -> tuple[Tensor, Tensor]:
        """Posterior and prior variances ``(m, C)``."""
        lin, information = self.linearisation, fit.information
        if not isinstance(lin, FinalLayer) or isinstance(information, (DenseInformation, RowInformation)):
            found = [self._covariance(take(rows, i), fit) for i in slices(num_rows(rows), self._rows_at_once())]
            own = [(covariance.diagonal(dim1=-2, dim2=-1), prior) for covariance, prior in found]
            left, prior = (torch.cat(several) for several in zip(*own, strict=True))
            return left, prior
        prior = lin.prior_variances(rows, fit.scale)
        if isinstance(information, SoftmaxInformation):
            return information.function_variances(lin.design(rows, fit.scale)).to(prior), prior
        assert isinstance(information, LowRankInformation)
        known = self._known_part(rows, fit, information).double()
        return remaining_variance(prior, known.square().sum(-1)), prior

    def _known_part(self, rows: Rows, fit: ConditionedNetwork, information: LowRankInformation) -> Tensor:
        """V ``(m, C, r)`` with covariances ``K - V V^T``."""
        shrunk = (information.values / (1.0 + information.values)).sqrt().to(fit.scale)
        return self.linearisation.push(rows, information.basis * (fit.scale.unsqueeze(-1) * shrunk))

    def latent_marginals(self, x: Any) -> tuple[Tensor, Tensor]:
        """Latent means ``(M, C)`` and covariances ``(M, C, C)`` at inputs.

        Args:
            x: Inputs, as the network takes them.
        """
        return self.latent_moments(x)[:2]

    def latent_moments(self, x: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Latent means ``(M, C)``, covariances ``(M, C, C)`` and prior variances ``(M, C)`` at inputs.

        Args:
            x: Inputs, as the network takes them.
        """
        found = [moments for _, *moments in self._marginals(x)]
        means, covariances, variances = (torch.cat(own) for own in zip(*found, strict=True))
        return means, covariances, variances

    @torch.no_grad()
    def forward(self, x: Any) -> MultivariateNormal:
        """The joint latent posterior at few inputs, as GPyTorch knows it.

        Args:
            x: Inputs of at most 4,096 latent values.

        Raises:
            InputError: If there are more.
        """
        rows = self._rows(x)
        size, latents = num_rows(rows), self.linearisation.num_latents
        if size * latents > _MOST_JOINT:
            raise InputError(
                f"A joint distribution must be one of at most {_MOST_JOINT} latent values. Got {size * latents}. Call predict "
                "or latent_marginals, which go row by row, or sample, which is joint over all rows."
            )
        fit = self.conditioned
        if isinstance(fit.information, RowInformation):
            covariance = fit.information.joint_covariance(self._row_gradients(rows, fit).flatten())
        elif isinstance(fit.information, SoftmaxInformation) and isinstance(self.linearisation, FinalLayer):
            joint = fit.information.function_covariance(self.linearisation.design(rows, fit.scale))
            covariance = joint.flatten(2).flatten(0, 1).to(fit.scale)
        else:
            covariance = fit.information.covariance(self._gradients(rows, fit).flatten(0, 1))
        mean = self.linearisation.outputs(rows)
        if latents == 1:
            return MultivariateNormal(mean.squeeze(-1), to_linear_operator(covariance))
        return MultitaskMultivariateNormal(mean, to_linear_operator(covariance), interleaved=True)

    @torch.no_grad()
    def sample(self, x: Any, num_samples: int = 1, *, seed: int | None = None) -> Tensor:
        """Latent functions ``(num_samples, M, C)`` of weights that are drawn once for all rows.

        Args:
            x: Inputs, as the network takes them.
            num_samples: How many.
            seed: For the same functions every time, whatever the rows; default PyTorch's generator.
        """
        rows, deviations = self._rows(x), self.weight_posterior().deviations(num_samples, seed=seed)
        parts = []
        for i in slices(num_rows(rows), self._rows_at_once()):
            part = take(rows, i)
            values = self.linearisation.outputs(part).unsqueeze(-1) + self.linearisation.push(part, deviations)
            parts.append(values.movedim(-1, 0))
        return torch.cat(parts, 1)

    @torch.no_grad()
    def _marginals(self, x: Any, *, integrated: bool = True) -> Iterator[tuple[slice, Tensor, Tensor, Tensor]]:
        """Slices of rows, means ``(m, C)``, covariances ``(m, C, C)`` and prior variances ``(m, C)``."""
        rows = self._rows(x)
        for i in slices(num_rows(rows), self._rows_at_once()):
            part = take(rows, i)
            mean = self.linearisation.outputs(part)
            covariance, variance = mean.new_zeros(*mean.shape, mean.shape[-1]), torch.zeros_like(mean)
            if integrated:
                covariance, variance = self._covariance(part, self.conditioned)
            yield i, mean, covariance, variance

    def _covariance(self, rows: Rows, fit: ConditionedNetwork) -> tuple[Tensor, Tensor]:
        """Posterior covariances ``(m, C, C)`` and prior variances ``(m, C)``."""
        information = fit.information
        if isinstance(information, RowInformation):
            return information.row_covariance(self._row_gradients(rows, fit))
        if isinstance(information, SoftmaxInformation) and isinstance(self.linearisation, FinalLayer):
            covariance = information.row_covariance(self.linearisation.design(rows, fit.scale))
            return covariance.to(fit.scale), self.linearisation.prior_variances(rows, fit.scale)
        if self.linearisation.structured and isinstance(information, LowRankInformation):
            prior = self.linearisation.prior_blocks(rows, fit.scale)
            known = self._known_part(rows, fit, information).double()
            return remaining_covariance(prior, known), prior.diagonal(dim1=-2, dim2=-1)
        if isinstance(information, LowRankInformation) and self._layers_pay:
            return information.row_covariance(self._row_gradients(rows, fit))
        gradients = self._gradients(rows, fit)
        return information.covariance(gradients), gradients.square().sum(-1)

    @property
    def _layers_pay(self) -> bool:
        """Whether gradients by layers are much smaller than those of all weights."""
        return _PAYS * self.layers.layout.width < self.linearisation.num_weights

    def _gradients(self, rows: Rows, fit: ConditionedNetwork) -> Tensor:
        """Whitened gradients ``(m, C, P)``."""
        return self._row_gradients(rows, fit).dense()

    def _row_gradients(self, rows: Rows, fit: ConditionedNetwork) -> RowGradients:
        units = torch.eye(self.linearisation.num_latents).to(fit.scale).expand(num_rows(rows), -1, -1)
        return self.layers.at(rows, units, fit.scale)

    # -------------------------------------------------------------------------- evidence
    def evidence(self, bound: Bound = "lower") -> Tensor:
        """Laplace's log marginal likelihood, nats; differentiable in the prior precision and the likelihood's parameters.

        The log-determinant is known within the rank; for the rest of it there are bounds, between which the exact value lies.
        The first call at a state costs a pass over the gradients of all rows.

        Args:
            bound: ``"lower"``, which pays for what was not computed, or ``"upper"``. They agree at full rank.

        Raises:
            InputError: If ``bound`` is neither.
        """
        if bound not in ("lower", "upper"):
            raise InputError(f"`bound` must be 'lower' or 'upper'. Got {bound!r}.")
        terms, overview = self._terms()
        value = terms.evidence(self.log_prior_precision, bound)
        if torch.is_grad_enabled() and self._learns_likelihood():
            return value + self._of_likelihood(terms, bound)
        return value + overview.log_density

    def learn_prior(
        self, *, rounds: int = 5, bound: Bound = "lower", likelihood: bool = True, tolerance: float = 1e-3
    ) -> list[float]:
        """Learns the prior precision, and the likelihood's parameters, by Laplace's evidence.

        Each round finds directions anew, maximises the evidence within them over the precision, and the expected log-density
        over the likelihood's parameters. The best state is kept.

        Args:
            rounds: At most.
            bound: Which bound on the evidence.
            likelihood: Whether its parameters are learned.
            tolerance: Gain of the evidence, nats per row, at which it ends.

        Returns:
            The evidence at the start and after every round.
        """
        require_positive("rounds", rounds, integer=True)
        history, best = [], (-math.inf, self._learned())
        for step in range(rounds + 1):
            with torch.no_grad():
                history.append(float(self.evidence(bound)))
            if history[-1] > best[0]:
                best = (history[-1], self._learned())
            overview = self._terms()[1]
            if step == rounds or (step and history[-1] - history[-2] < tolerance * overview.num_rows):
                break
            self._learn_precision(bound)
            if likelihood and self._learns_likelihood():
                self._learn_likelihood()
        with torch.no_grad():
            for parameter, value in zip(self._learnable(), best[1], strict=True):
                parameter.copy_(value)
        return history

    def _learn_precision(self, bound: Bound) -> None:
        terms, _ = self._terms()
        options: dict[str, Any] = {"max_iter": _STEPS, "line_search_fn": "strong_wolfe"}
        if terms.rows is not None:
            options["max_eval"] = _FEW_EVALUATIONS
        optimiser = torch.optim.LBFGS([self.log_prior_precision], **options)

        def closure() -> Tensor:
            optimiser.zero_grad()
            loss = -terms.evidence(self.log_prior_precision, bound)
            loss.backward()
            return loss

        optimiser.step(closure)
        self.log_prior_precision.grad = None

    def _learn_likelihood(self) -> None:
        """Maximises the expected log-density under the posterior: what EM does."""
        fit, parts = self.conditioned, []
        with torch.no_grad():
            for rows, observed in self._parts():
                for i in slices(num_rows(rows), self._rows_at_once()):
                    part, own = take(rows, i), observed.part(i.start, i.stop - i.start)
                    mean = self.linearisation.outputs(part)
                    nodes, weights = own.standard_nodes(mean)
                    parts.append((own, mean, node_offsets(psd_root(self._covariance(part, fit)[0]), nodes), weights))
        own_parameters = [p for p in self.likelihood.parameters() if p.requires_grad]
        optimiser = torch.optim.LBFGS(own_parameters, max_iter=_STEPS, line_search_fn="strong_wolfe")

        def closure() -> Tensor:
            optimiser.zero_grad()
            terms = [own.expected_log_density(*moments).sum() for own, *moments in parts]
            loss = -torch.stack(terms).sum()
            loss.backward()
            return loss

        optimiser.step(closure)
        optimiser.zero_grad()

    @torch.no_grad()
    def _terms(self) -> tuple[EvidenceTerms, Overview]:
        """Of the evidence at this state or, where only the one precision differs, at another: they hold at any."""
        fit = self._known
        if fit is None or fit.terms is None or not self._holds_at_any_precision(fit):
            fit = self.conditioned
        if fit.terms is None:
            fit = self._known = replace(fit, terms=self._find_terms(fit))
        assert fit.terms is not None
        assert fit.overview is not None
        return fit.terms, fit.overview

    def _holds_at_any_precision(self, fit: ConditionedNetwork) -> bool:
        return torch.equal(fit.weights, self.linearisation.weights()) and self._differs_in_precision(fit, self._state())

    def _find_terms(self, fit: ConditionedNetwork) -> EvidenceTerms:
        group, count = self._groups(), len(self.log_prior_precision)
        overview = fit.overview
        if overview is None:
            raise InputError(
                "The evidence needs the training data. Got a model without. Pass x and y to the one that loads."
            )
        masks = [group == g for g in range(count)]
        squares = (fit.weights - self._mean_of_prior()).double().square()
        distances = torch.stack([squares[mask].sum() for mask in masks])
        log_precision = self.log_prior_precision.detach().double().clone()
        zeros = torch.zeros_like(log_precision)
        if fit.matrix is not None:
            return EvidenceTerms(log_precision, distances, None, zeros, 0, fit.matrix, group)
        if isinstance(fit.information, SoftmaxInformation):
            return self._terms_of_softmax(fit, fit.information, log_precision, distances, masks)
        if isinstance(fit.information, RowInformation):
            return self._terms_of_rows(fit, fit.information, log_precision, distances, masks)
        if fit.actions is None:
            assert isinstance(fit.information, LowRankInformation)
            products = fit.information.basis * fit.information.values.sqrt().to(fit.scale)
            grams = torch.stack([gram_matrix(own, own) for own in (products[mask] for mask in masks)])
            return EvidenceTerms(log_precision, distances, grams, zeros, 0, None, group)
        grams = torch.stack([gram_matrix(own, own) for own in (fit.actions[1][mask] for mask in masks)])
        problem = GaussNewton(self.linearisation, self._parts, fit.scale, overview, self.layers)
        left_out = overview.rank_left(len(fit.weights), 0, grams.shape[-1])
        return EvidenceTerms(log_precision, distances, grams, problem.traces(masks), left_out, None, group)

    def _terms_of_rows(
        self,
        fit: ConditionedNetwork,
        information: RowInformation,
        log_precision: Tensor,
        distances: Tensor,
        masks: list[Tensor],
    ) -> EvidenceTerms:
        """With one group the spectrum says it all; with several, the Gram matrices of so many leading actions as fit."""
        overview = fit.overview
        assert overview is not None
        if len(masks) == 1:
            grams = torch.linalg.eigvalsh(information.gram()).clamp_min(0.0).unsqueeze(0)
        else:
            grams = information.group_grams(masks, _MOST_GROUPED)
        if fit.exact and grams.shape[-1] == information.rank:
            return EvidenceTerms(
                log_precision, distances, grams, torch.zeros_like(log_precision), 0, None, self._groups()
            )
        problem = GaussNewton(self.linearisation, self._parts, fit.scale, overview, self.layers)
        size, actions = len(fit.weights), information.actions.shape[1]
        left = overview.rank_left(size, information.rank - actions, actions)
        left_out = min(size, information.rank - grams.shape[-1] + left)
        return EvidenceTerms(log_precision, distances, grams, problem.traces(masks), left_out, None, self._groups())

    def _terms_of_softmax(
        self,
        fit: ConditionedNetwork,
        information: SoftmaxInformation,
        log_precision: Tensor,
        distances: Tensor,
        masks: list[Tensor],
    ) -> EvidenceTerms:
        """Its rows, which say what they do at any precision."""
        overview, lin = fit.overview, self.linearisation
        assert overview is not None
        assert isinstance(lin, FinalLayer)
        places = [lin.layer.matrix] * lin.layer.inputs + [lin.layer.bias] * (lin.layer.bias >= 0)
        columns, traces, left_out = self._groups()[places], torch.zeros_like(log_precision), 0
        if not fit.exact:
            problem = GaussNewton(lin, self._parts, fit.scale, overview, self.layers)
            traces = problem.traces(masks)
            left_out = overview.rank_left(len(fit.weights), information.num_directions, 0)
        group = self._groups()
        return EvidenceTerms(log_precision, distances, None, traces, left_out, None, group, information, columns)

    def _of_likelihood(self, terms: EvidenceTerms, bound: Bound) -> Tensor:
        """``log p(y | f*)``, with the derivative of the log-determinant in the curvature, which the likelihood changes."""
        fit, total = self.conditioned, torch.zeros((), dtype=torch.float64, device=self._group.device)
        for rows, observed in self._parts():
            for i in slices(num_rows(rows), self._rows_at_once()):
                part, own = take(rows, i), observed.part(i.start, i.stop - i.start)
                latents = self.linearisation.outputs(part)
                curvature = own.covariance_curvature(latents)
                slope = self._curvature_slope(part, fit, terms, bound)
                change = (slope * (curvature - curvature.detach())).sum(dtype=torch.float64)
                total = total + own.log_density(latents).sum(dtype=torch.float64) - 0.5 * change
        return total

    @torch.no_grad()
    def _curvature_slope(self, rows: Rows, fit: ConditionedNetwork, terms: EvidenceTerms, bound: Bound) -> Tensor:
        """Derivative of the log-determinant in the curvature of each row ``(m, C, C)``, the actions' directions D held."""
        if fit.exact:
            return self._covariance(rows, fit)[0]
        assert fit.actions is not None
        gradients = self._gradients(rows, fit)
        along, products = (gradients @ columns for columns in fit.actions)  # D^T and U^T of each row
        gram = gram_matrix(fit.actions[1], fit.actions[1])
        inverse = torch.linalg.inv(gram + torch.eye(len(gram)).to(gram)).to(along)
        cross = products @ inverse @ along.mT
        slope = cross + cross.mT + along @ (inverse @ along.mT) - along @ along.mT
        if bound == "lower" and terms.left_out:
            cross = products @ along.mT
            rest = gradients @ gradients.mT - cross - cross.mT + along @ (gram.to(along) @ along.mT)
            slope = slope + rest / (1.0 + terms.rest() / terms.left_out)
        return slope

    # ---------------------------------------------------------------------------- saving
    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes weights, likelihood, prior and posterior to one safetensors file, which holds no code and no training data.

        Args:
            path: Where to.

        Raises:
            InputError: If the file cannot be written.
        """
        fit = self.conditioned
        state = (self.log_prior_precision, fit.information, self._probe, self._exponent())
        save_network(path, self.network, self.likelihood, *state)

    def load(self, path: str | os.PathLike[str]) -> NetworkGP:
        """Restores what ``save`` wrote into a model of the same network and likelihood, perhaps built without data.

        The network takes the saved weights, and the model the saved tempering. Predictions are the saved model's; the
        evidence needs data.

        Args:
            path: The file.

        Returns:
            The model itself.

        Raises:
            InputError: If the file is missing or damaged, or network, parameters or likelihood are others.
        """
        saved = load_network(path, self.network, self.likelihood)
        self._look_at(saved.probe)
        if self.log_prior_precision.shape != saved.log_prior_precision.shape:
            raise InputError(
                f"The prior must have the saved one's {len(saved.log_prior_precision)} precisions. Got "
                f"{len(self.log_prior_precision)}. Pass `parameters` and `prior_precision` of the same form."
            )
        with torch.no_grad():
            self.log_prior_precision.copy_(saved.log_prior_precision)
        self.tempering = saved.tempering
        weights = self.linearisation.weights()
        self._known = ConditionedNetwork(weights, saved.information.to(weights), self._scale(), self._state())
        return self

    def to_empty(self, *, device: Any, recurse: bool = True) -> NetworkGP:
        """Refused: data and parameters would be whatever memory holds.

        Raises:
            InputError: Always.
        """
        refuse_to_empty()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> NetworkGP:
        """Moves data and posterior along; another dtype asks for another posterior."""
        known = self._known
        require_values_of(fn(next(self.parameters())), "training data and parameters")
        super()._apply(fn, recurse=recurse)
        self.data = self.data.to(fn)
        self._known = None
        if known is not None:
            weights = self.linearisation.weights()
            if weights.dtype == known.weights.dtype:
                information = known.information.to(weights)
                self._known = ConditionedNetwork(
                    weights, information, known.scale.to(weights), self._state(), known.overview
                )
        return self

    # ---------------------------------------------------------------------------- inside
    def _parts(self) -> Iterator[tuple[Rows, Observations]]:
        """Batches of the training data, in the dtype and on the device of the weights."""
        yield from self.data.parts(self.calculus, self.linearisation.parameters()[0])

    def _rows(self, x: Any) -> Rows:
        return as_rows(x, "x", self.linearisation.parameters()[0])

    def _rows_at_once(self) -> int:
        lin, known = self.linearisation, self._known
        budget = self.memory_budget or default_memory_budget(self._group.device)
        most = min(_MOST_BYTES, budget // 4)
        squares = max(1, budget // (64 * lin.num_latents**2))
        if known is not None and isinstance(known.information, RowInformation):
            products = max(1, most // (_PRODUCTS * lin.num_latents * known.information.rank))
            return min(_MOST_ROWS, squares, products, self.layers.rows_at_once(lin.num_latents, most))
        count = 0 if lin.structured else lin.num_latents
        if known is not None and isinstance(known.information, LowRankInformation) and self._layers_pay and count:
            width = max((layer.outputs for layer in self.layers.layout.layers), default=1)
            products = max(1, most // (_PRODUCTS * max(width, count) * max(1, known.information.rank)))
            return min(_MOST_ROWS, squares, products, self.layers.rows_at_once(count, most))
        return min(_MOST_ROWS, squares, lin.rows_at_once(count, most))

    def _groups(self) -> Tensor:
        """Group of each weight ``(P,)``."""
        sizes = torch.tensor(self.linearisation.sizes)
        return self._group.cpu().repeat_interleave(sizes).to(self._group.device)

    @torch.no_grad()
    def _scale(self) -> Tensor:
        """Prior standard deviations ``(P,)``."""
        like = self.linearisation.parameters()[0]
        return (-0.5 * self.log_prior_precision.double()).exp().to(like)[self._groups()]

    def _mean_of_prior(self) -> Tensor:
        """Prior mean ``(P,)``."""
        lin, given = self.linearisation, self._prior_mean or {}
        found = dict(zip(lin.names, lin.parameters(), strict=True))
        for name, value in given.items():
            if name not in found or value.shape != found[name].shape:
                raise InputError(
                    f"`prior_mean` must be tensors like the chosen parameters, by their names. Got {name!r} of shape "
                    f"{tuple(value.shape)}. The parameters are {lin.names}."
                )
        means = [given[name].to(own) if name in given else torch.zeros_like(own) for name, own in found.items()]
        return torch.cat([mean.detach().reshape(-1) for mean in means])

    def _learns_likelihood(self) -> bool:
        return any(parameter.requires_grad for parameter in self.likelihood.parameters())

    def _learnable(self) -> list[Tensor]:
        return [self.log_prior_precision, *self.likelihood.parameters()]

    def _learned(self) -> list[Tensor]:
        return [parameter.detach().clone() for parameter in self._learnable()]

    @torch.no_grad()
    def _state(self) -> tuple[Any, ...]:
        """A fingerprint of everything but the chosen weights that the posterior depends on."""
        tensors = [
            *self.network.state_dict().values(),
            *self.likelihood.state_dict().values(),
        ]
        data = [
            x for x in tree_leaves((self.data.inputs, self.data.targets, self.data.sample_weight)) if torch.is_tensor(x)
        ]
        sums = tuple((float(x.double().sum()), float(x.double().norm())) for x in tensors)
        versions = tuple((x.data_ptr(), 0 if x.is_inference() else x._version) for x in data)
        options = (self.rank, self.row_directions, self.coverage, self.passes)
        return (sums, versions, id(self.data.loader), options, tuple(self.log_prior_precision.tolist()))


def prior_groups(names: list[str], prior: Prior) -> tuple[Tensor, Tensor]:
    """Precisions of groups of weights ``(G,)``, and the group of each parameter tensor ``(len(names),)``.

    Args:
        names: Of the parameter tensors.
        prior: As the user gives it.

    Raises:
        InputError: If a precision is not positive, or one is missing or too many.
    """
    if isinstance(prior, Mapping):
        keys = [_longest(name, prior) for name in names]
        unused = [key for key in prior if key not in keys]
        if unused or None in keys:
            missing = [name for name, key in zip(names, keys, strict=True) if key is None]
            raise InputError(
                "`prior_precision` must name parameters or modules that cover all chosen parameters. Got none for "
                f"{missing}, and names of nothing {unused}. The parameters are {names}."
            )
        order = list(prior)
        values = torch.as_tensor([float(prior[key]) for key in order], dtype=torch.float64)
        group = torch.tensor([order.index(key) for key in keys if key is not None])
    else:
        values = torch.as_tensor(prior, dtype=torch.float64).detach().clone()
        if values.dim() == 1 and len(values) not in (1, len(names)):
            raise InputError(
                f"`prior_precision` must be a number, or one for each of the {len(names)} chosen tensors. Got {len(values)}. "
                f"They are {names}."
            )
        values = values.reshape(-1)
        group = torch.arange(len(names)) if len(values) > 1 else torch.zeros(len(names), dtype=torch.long)
    if not bool((values > 0.0).all()) or not bool(torch.isfinite(values).all()):
        raise InputError(f"`prior_precision` must be positive. Got {values.tolist()}. Freeze what is known instead.")
    return values, group


def _longest(name: str, keys: Mapping[str, float]) -> str | None:
    """The key that names the smallest part that a parameter belongs to."""
    fitting = [key for key in keys if name == key or name.startswith(f"{key}.")]
    return max(fitting, key=len, default=None)
