"""What a trace is made of: records of steps, of the ends of stages, of learning, and the settings of a run."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class TraceRecord:
    """One step of a solver.

    Attributes:
        stage: ``"laplace"`` or ``"variational"``: the site that was used.
        kernel_passes: Kernel passes so far, all stages together.
        seconds: Time since the solve began.
        objective: Negative log posterior density ``Psi`` (nats, up to the prior's constant) after the step.
        objective_gap: Certified bound on ``Psi - min Psi``; None where there is none: the likelihood is not
            log-concave, or no pass over all rows has been made.
        residual: Squared prior norm of the gradient, q, before the step; a measure of distance without a guarantee.
        rank: Directions in the search space.
        newton_steps: Newton steps inside the search space.
        step_length: Smallest step length the line search took, 1 for full steps, 0 if none decreased the objective.
        event: Something worth knowing, otherwise empty.
        class_residuals: Norm over the rows of ``g - V`` after the step, one per latent function; empty if the solver does
            not say. Zero at the mode.
        kernel_seconds: Time in kernel products since the solve began.
        memory: Peak memory of the process so far in bytes: resident on the CPU, allocated on a CUDA device.
        round: Number of the site within its stage: each has an objective of its own.
    """

    stage: str
    kernel_passes: int
    seconds: float
    objective: float
    objective_gap: float | None
    residual: float
    rank: int
    newton_steps: int
    step_length: float
    event: str = ""
    class_residuals: tuple[float, ...] = ()
    kernel_seconds: float = 0.0
    memory: int = 0
    round: int = 0


@dataclass(frozen=True)
class StageRecord:
    """The end of one stage of a solve.

    Attributes:
        stage: ``"laplace"`` or ``"variational"``.
        reason: Name of the ``itergp.solvers.Reason`` why it ended.
        status: The status as a sentence, with its remedy.
        kernel_passes: Kernel passes so far.
        seconds: Time since the solve began.
        objective: ``Psi`` at the result, nats.
        objective_gap: Certified bound on ``Psi - min Psi`` there; None when there is none.
        resolution: Changes of the objective below this are rounding, nats.
        covariance_rank: Actions that the covariance is conditioned on.
        variance_explained: ``1 - tr(posterior variance) / tr(prior variance)`` over the training inputs.
        log_density: Mean log-density of the observations at the posterior mean (its expectation in a variational stage),
            nats per unit of weight.
        prior_deviation: Root of the mean prior variance at the training inputs.
        latent_deviation: Root mean square of ``f - m`` there.
        latent_extreme: Largest ``|f - m|`` there.
    """

    stage: str
    reason: str
    status: str
    kernel_passes: int
    seconds: float
    objective: float
    objective_gap: float | None
    resolution: float
    covariance_rank: int
    variance_explained: float
    log_density: float
    prior_deviation: float
    latent_deviation: float
    latent_extreme: float


@dataclass(frozen=True)
class RunSettings:
    """What was solved, and within which limits.

    Attributes:
        solver: Class of the solver.
        operator: Class of the kernel operator.
        likelihood: Class of the likelihood.
        approximation: ``"laplace"`` or ``"variational"``: what was asked for.
        labels: Whether the targets are labels of classes, so that their log-density cannot exceed 0.
        log_concave: Whether the likelihood is log-concave, so that gaps can be certified.
        num_rows: N.
        num_latents: C.
        num_kernels: 1 for a kernel shared by all latent functions, else C.
        dtype: Of the data: ``"float32"`` or ``"float64"``.
        device: Where it ran.
        tolerance: Certified gap at which to stop, nats per row.
        max_passes: Kernel passes, all stages together; None for the solver's own limit.
        max_rank: Directions in the search space; None for the solver's own limit.
        time_limit: Seconds, or None.
    """

    solver: str
    operator: str
    likelihood: str
    approximation: str
    labels: bool
    log_concave: bool
    num_rows: int
    num_latents: int
    num_kernels: int
    dtype: str
    device: str
    tolerance: float
    max_passes: int | None
    max_rank: int | None
    time_limit: float | None


@dataclass(frozen=True)
class FitRecord:
    """One evaluation of the objective of ``itergp.fit``.

    Attributes:
        stage: Name of the stage.
        iteration: Number of the evaluation, from 0, over all stages.
        seconds: Since the start.
        objective: Value per row; higher is better. Values of different splits or stages are not comparable.
        parameters: The optimiser's variables by name: logarithms of positive parameters.
        gradient_norm: Norm of the objective's gradient in these variables.
    """

    stage: str
    iteration: int
    seconds: float
    objective: float
    parameters: dict[str, list[float]]
    gradient_norm: float = float("nan")


@dataclass
class LearningTrace:
    """How the hyperparameters of a posterior were learned.

    Attributes:
        records: One per evaluation of the objective.
        reason: Name of the ``Stop`` that ended learning.
        seconds: Time by stage: ``"learn"``, ``"calibrate"``, ``"condition"``.
        logarithmic: Names of the parameters that are recorded as logarithms.
    """

    records: list[FitRecord] = field(default_factory=list)
    reason: str = ""
    seconds: dict[str, float] = field(default_factory=dict)
    logarithmic: list[str] = field(default_factory=list)


Record = TraceRecord | FitRecord
