"""Lines of the package broken by hand, and the tests that are to notice; ``mutants.py`` runs them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """A line of the package, broken as a person might break it.

    Attributes:
        name: What is wrong then.
        snippet: What the package says, exactly once, in whatever file.
        replacement: What it says then.
        tests: A file of tests, and the expression of ``-k`` that chooses those that guard the line.
    """

    name: str
    snippet: str
    replacement: str
    tests: tuple[str, str]


MUTANTS = (
    # -------------------------------------------------------------- the bound of few rows
    Mutant(
        "a start too low for digits taken for the posterior",
        "return current if near and math.ulp(current.bound) < enough else None",
        "return current",
        ("test_natural_gradients.py", "far_from_the_top"),
    ),
    Mutant(
        "sites that are never extrapolated",
        "near = gain < _NEAR * self.mean.shape[0]",
        "near = False",
        ("test_natural_gradients.py", "oscillate or says_nothing"),
    ),
    Mutant(
        "latent functions that share the curvature of the first",
        "kernel[c : c + 1], roots[:, c, None, None])",
        "kernel[c : c + 1], roots[:, 0, None, None])",
        ("test_natural_gradients.py", "one_by_one"),
    ),
    Mutant(
        "a stand-in for the curvature that does not move with the noise",
        "curvature = curvature + (moved - moved.detach())",
        "curvature = curvature + 0.0 * moved",
        ("test_natural_gradients.py", "stand_in"),
    ),
    Mutant(
        "actions that do not grow with the curvature that the noise moves",
        "return 1.0 + 0.5 * (logarithm - logarithm.detach())",
        "return 1.0 + 0.0 * logarithm",
        ("test_natural_gradients.py", "stand_in"),
    ),
    Mutant(
        "steps of Student-t noise by its Fisher information",
        "return precision * residual, precision",
        "return precision * residual, (dof + 1.0) / ((dof + 3.0) * noise)",
        ("test_natural_gradients.py", "far_off"),
    ),
    Mutant(
        "covariances of Student-t noise by the curvature of steps",
        "if curvature is None or f.shape[-1] > 1 or self.likelihood.majorises:",
        "if curvature is None or f.shape[-1] > 1:",
        ("test_natural_gradients.py", "dense_newton"),
    ),
    Mutant(
        "equally simple candidates in the order of the list",
        "key=lambda one: (*one.size, *_promise(one))",
        "key=lambda one: one.size",
        ("test_structures.py", "equally_simple"),
    ),
    # ------------------------------------------------------------------ what candidates are judged by
    Mutant(
        "candidates with a noise to learn judged at the mode",
        "return likelihood.bounded_density and not likelihood.quadratic and not learned",
        "return likelihood.bounded_density",
        ("test_structures.py", "candidates_learn"),
    ),
    Mutant(
        "noise that varies whatever residuals say",
        "return comparison.gain > comparison.gain_error",
        "return True",
        ("test_structures.py", "residuals_say_nothing"),
    ),
    Mutant(
        "predictions chosen at a mode that meets its targets",
        'if approximation_of(likelihood) == "variational":  # a mode is what meets its targets, or sits on kinks',
        "if False:",
        ("test_structures.py", "varies_is_noticed"),
    ),
    # ------------------------------------------------------------------ certificate
    Mutant(
        "certificate a hundred times too loose",
        "return 0.5 * self.norm_squared",
        "return 50.0 * self.norm_squared",
        ("test_laws.py", "as_tight"),
    ),
    Mutant(
        "certificate ten times too tight",
        "return 0.5 * self.norm_squared",
        "return 0.05 * self.norm_squared",
        ("test_laws.py", "as_tight"),
    ),
    Mutant(
        "certificate of a step without its gain",
        "max(norm_squared + problem.entry_rounding(residual) - 2.0 * gain, 0.0)",
        "norm_squared + problem.entry_rounding(residual)",
        ("test_laws.py", "as_tight"),
    ),
    Mutant(
        "certificate not renewed by the covariance's pass",
        "norm_squared = min(state.norm_squared, renewed)",
        "norm_squared = state.norm_squared",
        ("test_laws.py", "as_tight"),
    ),
    # ------------------------------------------------------------------ plan
    Mutant(
        "plan: two nodes of the quadrature",
        "nodes = size.num_nodes if size.variational else 1",
        "nodes = 2 if size.variational else 1",
        ("test_planning.py", "memory"),
    ),
    Mutant(
        "plan: both halves of a symmetric matrix are kept and evaluated",
        "return self.entries_of_pass // 2",
        "return self.entries_of_pass",
        ("test_planning.py", "matrix"),
    ),
    Mutant(
        "plan: a matrix that is kept is evaluated in every pass",
        "(min(demand.passes, 1) if kept else demand.passes) * evaluated",
        "demand.passes * evaluated",
        ("test_planning.py", "matrix"),
    ),
    Mutant(
        "plan: actions of one latent function",
        '"covariance": arrays * size.array(latents * actions)',
        '"covariance": arrays * size.array(actions)',
        ("test_planning.py", "memory"),
    ),
    Mutant(
        "products that do not fit are kept",
        "return _ARRAYS * rank * one > memory_budget",
        "return _ARRAYS * rank * one > 1000 * memory_budget",
        ("test_by_columns.py", "memory"),
    ),
    Mutant(
        "a CSV column has the type of its first rows",
        "kinds = {name: _joined(kinds.get(name), kind) for name, kind in found.items()}",
        "kinds = found | kinds",
        ("test_files.py", "types"),
    ),
    Mutant(
        "kernel columns from a copy of all inputs",
        "entries = self._block(self.features(own[..., i, :]), taken)",
        "entries = self._block(self.features(own)[..., i, :], taken)",
        ("test_memory_maps.py", "memory"),
    ),
    # ------------------------------------------------------------------ line search
    Mutant(
        "line search accepts any trial near the resolution",
        "(near & (value <= start + resolution))",
        "near",
        ("test_solvers.py", "line_search"),
    ),
    # ------------------------------------------------------------------ calibration
    Mutant(
        "calibration ignores the standard error",
        "float(difference.mean()) <= min(max(error, least), most)",
        "float(difference.mean()) <= least",
        ("test_posterior.py", "humblest"),
    ),
    Mutant(
        "calibration gives up any share for a large standard error",
        "float(difference.mean()) <= min(max(error, least), most)",
        "float(difference.mean()) <= max(error, least)",
        ("test_posterior.py", "humblest"),
    ),
    Mutant(
        "calibration trains on the rows that it holds out",
        "torch.cat([*folds[:k], *folds[k + 1 :]]), folds[k])",
        "torch.cat(folds), folds[k])",
        ("test_learning.py", "held_out_rows"),
    ),
    Mutant(
        "a variational posterior need not be a standard error better",
        'kept = "variational" if lead > LEAD else "laplace"',
        'kept = "variational" if lead > 0.0 else "laplace"',
        ("test_learning.py", "standard_error_better"),
    ),
    Mutant(
        "an approximation that is behind is looked at again",
        "if lead is not None and lead < (least if judged >= _TELLING else -LEAD):",
        "if lead is not None and lead < -99.0:",
        ("test_learning.py", "falls_behind"),
    ),
    # ------------------------------------------------------------------ learning: averaging, keep-best
    Mutant(
        "the whole trajectory is averaged",
        "return visited[-max(1, round(_AVERAGED_SHARE * len(visited))) :]",
        "return visited",
        ("test_learning.py", "last_quarter"),
    ),
    Mutant(
        "L-BFGS ends at its last evaluation",
        "if -value > best:",
        "if -value > -math.inf:",
        ("test_learning.py", "best_of"),
    ),
    Mutant(
        "the best along the path is forgotten",
        "path = [learner.best] if learner.best and not _are_equal(learner.best, ended) else []",
        "path: list[list[Tensor]] = []",
        ("test_learning.py", "best_of"),
    ),
    Mutant(
        "the start is forgotten",
        "_keep_best(learner, stages[-1].objective, [start, given], settings.seed)",
        "_keep_best(learner, stages[-1].objective, [], settings.seed)",
        ("test_posterior.py", "never_ends_below"),
    ),
    # ------------------------------------------------------------------ stopping
    Mutant(
        "no pass is kept for the covariance",
        "own = int(self.solver.gives_covariance) + int(self.final and run.refines)",
        "own = 0",
        ("test_solvers.py", "budget_of_passes"),
    ),
    Mutant(
        "a local mode counts as certified",
        "per_row = 0.5 * state.norm_squared / problem.num_rows\n"
        '        detail = f"gap {per_row:.2g} nats per row, tolerance {self.tolerance:.2g}"\n'
        "        if per_row <= self.tolerance:\n            return Status(Reason.CONVERGED if problem.site.log_concave",
        "per_row = 0.5 * state.norm_squared / problem.num_rows\n"
        '        detail = f"gap {per_row:.2g} nats per row, tolerance {self.tolerance:.2g}"\n'
        "        if per_row <= self.tolerance:\n            return Status(Reason.CONVERGED if True",
        ("test_solvers.py", "log_concave"),
    ),
    Mutant(
        "a policy with nothing more to say counts as converged",
        "if exhausted and per_row <= tolerance:",
        "if exhausted:",
        ("test_policies.py", "nothing_more"),
    ),
    # ------------------------------------------------------------------ identity
    Mutant(
        "identity ignores the data",
        "return Identity(describe_prior(model), model.data_digests(), method)",
        "return Identity(describe_prior(model), {}, method)",
        ("test_identity.py", "any_change and shuffled"),
    ),
    Mutant(
        "digests ignore the order of entries",
        "values = part.clone(memory_format=torch.contiguous_format).cpu().reshape(-1)",
        "values = part.clone(memory_format=torch.contiguous_format).cpu().reshape(-1).sort().values",
        ("test_identity.py", "any_change and shuffled"),
    ),
    Mutant(
        "lent data are not read again",
        "self._digests = None\n        return self._tensors",
        "return self._tensors",
        ("test_identity.py", "change_them or any_change"),
    ),
    # ------------------------------------------------------------------ resolution, thresholds for dropping
    Mutant(
        "unresolved directions are kept",
        "keep = (values > 0.0) & (values * largest * _RESOLUTION * torch.finfo(block.dtype).eps <= 1.0)",
        "keep = values > 0.0",
        ("test_solvers.py", "resolve_are_left_out"),
    ),
    Mutant(
        "dependent actions are kept",
        "floor = thresholds(directions.dtype).dependent_action",
        "floor = 0.0",
        ("test_solvers.py", "no_further_actions"),
    ),
    Mutant(
        "compression counts dependent coordinates",
        "held = held[:, sizes > _DEPENDENT * sizes.max()]",
        "held = held[:, sizes >= 0.0]",
        ("test_solvers.py", "compression"),
    ),
    # ------------------------------------------------------------------ rounds
    Mutant(
        "rounds are never damped",
        "return marginals if self.share == 1.0 else (1.0 - self.share) * site + self.share * marginals",
        "return marginals",
        ("test_posterior.py", "oscillate"),
    ),
    Mutant(
        "rows that compete for curvature are not damped",
        "ratio = 1.0 / (1.0 + care * growth * (now / mean.shape[1]).clamp_max(1.0))",
        "ratio = torch.ones_like(growth)",
        ("test_posterior.py", "compete_for_curvature"),
    ),
    Mutant(
        "rounds ignore changes of deviations",
        "residual = max(shift, widening)",
        "residual = shift",
        ("test_posterior.py", "while_deviations_change"),
    ),
    Mutant(
        "twenty nodes for any marginal",
        "scale = self._wide(offsets, weights)",
        "scale = None",
        ("test_likelihoods.py", "fine_rule"),
    ),
    Mutant(
        "rounds end without a certificate",
        "finished = advance is None or solver.certain(problem, state)",
        "finished = True",
        ("test_posterior.py", "rounds_that_converged"),
    ),
    # ------------------------------------------------------------------ local actions
    Mutant(
        "pseudo-observations have half their noise",
        "return 1.0 + _ROUNDING * torch.finfo(gram.dtype).eps * (1.0 + signal)",
        "return 0.5 + _ROUNDING * torch.finfo(gram.dtype).eps * (1.0 + signal)",
        ("test_posterior.py", "joint_actions"),
    ),
    Mutant(
        "local actions forget what global ones explain",
        "gram.baddbmm_(known, known.mT, alpha=-1.0)",
        "gram.baddbmm_(known, known.mT, alpha=0.0)",
        ("test_posterior.py", "joint_actions or all_rows_as_neighbours"),
    ),
    # ------------------------------------------------------------------ tempering
    Mutant(
        "tempering by one of the latent functions",
        "total = prior_variance.sum(-1).clamp_min(torch.finfo(variance.dtype).tiny)",
        "total = prior_variance.amax(-1).clamp_min(torch.finfo(variance.dtype).tiny)",
        ("test_posterior.py", "tempering"),
    ),
    Mutant(
        "the tempering of held-out rows is not the model's",
        "model.approximation, model.tempering = calibration.approximation, calibration.tempering",
        "model.approximation = calibration.approximation",
        ("test_learning.py", "calibration_chooses"),
    ),
    # ------------------------------------------------------------------ kernels that forward implies
    Mutant(
        "fractions are rows of a table",
        "wrong = (rows < 0) | (rows >= size) | (rows != values)",
        "wrong = (rows < 0) | (rows >= size)",
        ("test_gpytorch_kernels.py", "are_their_table"),
    ),
    Mutant(
        "blocks that were evaluated again are all kept",
        "self._block.free()",
        "pass",
        ("test_gpytorch_kernels.py", "recomputation"),
    ),
    Mutant(
        "entries of a table are not turned back",
        "return entries.mT if turned else entries",
        "return entries",
        ("test_gpytorch_kernels.py", "not_known"),
    ),
    # ------------------------------------------------------------------ the preconditioner of additive kernels
    Mutant(
        "functions are only ever fitted by themselves",
        "return fine[0] + coarse[0], fine[1] + coarse[1]",
        "return fine",
        ("test_binned.py", "go_together_take_few_steps"),
    ),
    Mutant(
        "preconditioned directions are searched as roughly as gradients",
        "inner_tolerance = _PRECONDITIONED_SHARE * norm_squared",
        "pass",
        ("test_binned.py", "every_pass_moves"),
    ),
    Mutant(
        "bins do not follow what the data say",
        "if information / count * varied <= _UNRESOLVED:",
        "if True:",
        ("test_binned.py", "number_of_bins"),
    ),
    # ------------------------------------------------------------------ checkpoints
    Mutant(
        "a resumed dense solve counts its kernel matrix twice",
        "self.before.passes += self.counts.passes - then.passes",
        "self.before.passes += 0",
        ("test_checkpoint.py", "same_posterior and dense and bernoulli"),
    ),
    Mutant(
        "arrays come back in another order of memory",
        '_in_order(arrays, about["orders"]), ',
        '{k: v.contiguous() for k, v in _in_order(arrays, about["orders"]).items()}, ',
        ("test_checkpoint.py", "order_of_memory"),
    ),
    # ------------------------------------------------------------------ Newton's method
    Mutant(
        "a curvature that stays is factorised in every step",
        "if known is None or partition.all_reduce_any(not torch.equal(known[0], curvature)):",
        "if True:",
        ("test_solvers.py", "factorised_once"),
    ),
    Mutant(
        "a step with the factor of another curvature",
        "if known is None or partition.all_reduce_any(not torch.equal(known[0], curvature)):",
        "if known is None:",
        ("test_solvers.py", "factorised_once"),
    ),
    # ------------------------------------------------------------------ sharding
    Mutant(
        "opposite processes both evaluate all of their rectangle",
        "columns = slice(columns.start, middle)",
        "columns = slice(columns.start, columns.stop)",
        ("test_distributed.py", "evaluated_once"),
    ),
    Mutant(
        "processes may have other data",
        'rows.require_same("training data", self.data)',
        "pass",
        ("test_identity.py", "processes_must_agree"),
    ),
    # ------------------------------------------------------------------ samples of several functions
    Mutant(
        "samples are no antithetic pairs",
        "return torch.cat([half, -half]), like.new_full((2 * pairs,), 0.5 / pairs)",
        "return torch.cat([half, half]), like.new_full((2 * pairs,), 0.5 / pairs)",
        ("test_likelihoods.py", "nodes_are_standard_normal"),
    ),
    Mutant(
        "samples keep the second moments that they were drawn with",
        "part.copy_(_matched(part.double()))",
        "part.copy_(part.double())",
        ("test_likelihoods.py", "nodes_are_standard_normal"),
    ),
    Mutant(
        "few samples for wide marginals",
        "return (deviation / _FEW_PAIRS_REACH).log2().clamp(0, _MOST_LEVELS)",
        "return (deviation / _FEW_PAIRS_REACH).log2().clamp(0, 0)",
        ("test_likelihoods.py", "samples_are_more"),
    ),
    Mutant(
        "averages of rows come back by their levels",
        "torch.cat([group.rows for group in groups]).argsort()",
        "torch.arange(sum(len(group.rows) for group in groups))",
        ("test_likelihoods.py", "samples_are_more"),
    ),
    Mutant(
        "a row's samples become more at once",
        "yield int(level), fineness[some] - (level - 1) if mixed else None, some",
        "yield int(level), None, some",
        ("test_likelihoods.py", "do_not_jump"),
    ),
    Mutant(
        "a shift of all functions counts as width",
        "about = covariance - covariance.mean(-1, keepdim=True)\n    about = about - about.mean(-2, keepdim=True)",
        "about = covariance",
        ("test_likelihoods.py", "functions_share"),
    ),
    Mutant(
        "finer samples are kept beyond their nodes",
        "version = None if offsets.is_inference() else offsets._version",
        "version = None",
        ("test_likelihoods.py", "finer_nodes_are_made_once"),
    ),
    Mutant(
        "a softmax's terms forget its largest probability",
        "values.amax(-2).double() - probs.amax(-2).log().double()",
        "values.amax(-2).double()",
        ("test_likelihoods.py", "terms_found_together"),
    ),
    Mutant(
        "few samples end where a site within asks for nothing",
        "token = _few.set(few or _few.get())",
        "token = _few.set(few)",
        ("test_likelihoods.py", "few_samples_stay_few"),
    ),
    # ------------------------------------------------------------------ bins
    Mutant(
        "equal values lie in several bins",
        "first = torch.where(fresh, number, 0).cummax(0).values",
        "first = number",
        ("test_binned.py", "ties_share_theirs"),
    ),
    Mutant(
        "systems of bins are solved roughly",
        "_TOLERANCE = 1e-5  # of conjugate gradients",
        "_TOLERANCE = 1e-1  # of conjugate gradients",
        ("test_binned.py", "systems_are_solved"),
    ),
    Mutant(
        "a sample of the rows stands for itself",
        "curvature[rows], size / wanted",
        "curvature[rows], 1.0",
        ("test_binned.py", "stands_for_all"),
    ),
    Mutant(
        "functions go together by the curvature of one",
        "weights = share * curvature[:, first.latent, second.latent]",
        "weights = share * curvature[:, first.latent, first.latent]",
        ("test_binned.py", "data_say_most_about"),
    ),
    # ------------------------------------------------------------------ what single rows say of weights
    Mutant(
        "another precision of all weights is forgotten",
        "self.gram().mul_(ratio), self.multiple * ratio)",
        "self.gram().mul_(ratio), self.multiple)",
        ("test_network_gp.py", "another_precision"),
    ),
    Mutant(
        "rounding may narrow the variance of a function",
        "((prior.double() - known).clamp_min(0.0) + ROUNDING * eps * prior.double()).to(prior)",
        "(prior.double() - known).clamp_min(0.0).to(prior)",
        ("test_network_gp.py", "narrows_no_variance"),
    ),
    Mutant(
        "rounding may narrow the variance of a weight",
        "return ((1.0 - known).clamp_min(0.0) + ROUNDING * eps).to(self.actions)",
        "return (1.0 - known).clamp_min(0.0).to(self.actions)",
        ("test_network_gp.py", "narrows_no_variance"),
    ),
    Mutant(
        "samples of weights know what was observed without noise",
        "seen = (root * self._transposed(weights) + own).double()",
        "seen = (root * self._transposed(weights)).double()",
        ("test_network_gp.py", "posterior_of_the_weights"),
    ),
    Mutant(
        "a group's share of the information is all actions",
        "pairwise(self.rows.scaled(mask), self.actions * mask.unsqueeze(-1))",
        "pairwise(self.rows.scaled(mask), self.actions)",
        ("test_network_gp.py", "groups_of_weights"),
    ),
    Mutant(
        "rows of a last layer are those that say least",
        "kept = curvature.topk(min(most, informative)).indices",
        "kept = curvature.topk(min(most, informative), largest=False).indices",
        ("test_network_gp.py", "fewer_rows_of_a_last_layer"),
    ),
    Mutant(
        "directions of a last layer that are looked at one by one are among the others too",
        "all_of_a_row = self.single or not self.overview.num_single",
        "all_of_a_row = True",
        ("test_network_gp.py", "a_last_layer_is_never_below_exact"),
    ),
    Mutant(
        "the first rows choose how many classes are tempered",
        "kept = [one for one in kept if one[0] % step == 0]",
        "kept = kept[:most]",
        ("test_network_gp.py", "rows_of_all_the_data"),
    ),
    Mutant(
        "many classes are tempered as much as there is",
        "TEMPERINGS[int(allowed.nonzero()[0])]",
        "TEMPERINGS[int(allowed.nonzero()[-1])]",
        ("test_network_gp.py", "tempered_by_the_training_rows"),
    ),
    Mutant(
        "gradients are found again for every product",
        "            self._kept = [RowGradients.stacked(",
        "            yield from [RowGradients.stacked(",
        ("test_network_gp.py", "through_the_network_once"),
    ),
    # ------------------------------------------------------------------ gradients by layers
    Mutant(
        "a layer is believed to be what it seems",
        "if self._layers and not self._agrees(probe):",
        "if False:",
        ("test_layer_gradients.py", "those_of_the_linearisation"),
    ),
    Mutant(
        "a layer may be called another time",
        "if any(len(calls) != 1 for calls in seen):",
        "if any(len(calls) < 1 for calls in seen):",
        ("test_layer_gradients.py", "called_another_time"),
    ),
    Mutant(
        "what comes out of a layer may be changed in place",
        "return end.clone()",
        "return end",
        ("test_layer_gradients.py", "those_of_the_linearisation"),
    ),
    Mutant(
        "what goes through a convolution takes no memory",
        "most = max(self.layout.width, self._positions)",
        "most = self.layout.width",
        ("test_layer_gradients.py", "rows_at_once"),
    ),
    # ------------------------------------------------------------------ deadlines
    Mutant(
        "time is never up",
        "return time.perf_counter() >= self.at",
        "return False",
        ("test_objectives.py", "deadline or time_is_up"),
    ),
    Mutant(
        "an objective has a value after its deadline",
        "self.deadline.check()\n        model: NonConjugateGP = self.model",
        "model: NonConjugateGP = self.model",
        ("test_objectives.py", "time_is_up"),
    ),
    Mutant(
        "an adjoint goes on after the deadline",
        "deadline.check()\n        if residual.norm() <= tolerance * size:",
        "if residual.norm() <= tolerance * size:",
        ("test_objectives.py", "gives_up"),
    ),
    # ------------------------------------------------------------------ what rounding explains
    Mutant(
        "a thousandth of the largest eigenvalue is rounding in float64",
        "        negative_eigenvalue=1e-5,",
        "        negative_eigenvalue=1e-3,",
        ("test_bad_input.py", "by_little"),
    ),
    Mutant(
        "a negative variance of the training inputs is none",
        "if problem.rows.all_reduce_any(negative):",
        "if False:",
        ("test_bad_input.py", "on_the_sample_only"),
    ),
    Mutant(
        "a negative variance of new inputs is none",
        "_require_variances(marginals, whitened)\n        return cls",
        "return cls",
        ("test_bad_input.py", "on_the_training_inputs_only"),
    ),
    # ------------------------------------------------------------------ leaves
    Mutant(
        "errors of leaves are taken for independent",
        "spread.index_add_(0, which, weight / root * found.flatten(1))",
        "spread.index_add_(0, which, weight.square() / root * found.flatten(1))",
        ("test_leaf_gp.py", "bound_holds"),
    ),
    Mutant(
        "weights of leaves have kinks",
        "return share.square() * (3.0 - 2.0 * share)",
        "return share",
        ("test_median_tree.py", "slope"),
    ),
    Mutant(
        "leaves know nothing of rows beyond their border",
        "half = int(0.5 * overlap * size)",
        "half = 0",
        ("test_median_tree.py", "share_of_rows"),
    ),
    Mutant(
        "leaves are found anew although nothing has changed",
        "start = None if self._known is None else self._known.own",
        "start = None",
        ("test_leaf_gp.py", "go_on"),
    ),
    Mutant(
        "rows that are censored from the left want larger values",
        "sign = torch.where(events == LEFT, -1.0, 1.0).to(z)",
        "sign = torch.ones_like(z)",
        ("test_likelihood_members.py", "log-normal-intervals"),
    ),
    # ------------------------------------------------------------------ dense factors
    Mutant(
        "modes without a Hessian are found by passes, however few the rows",
        "return rows <= (_DENSE_ROWS if newton else _DENSE_ROWS_WITHOUT_HESSIAN)",
        "return newton and rows <= _DENSE_ROWS",
        ("test_objectives.py", "modes_without_a_hessian"),
    ),
    Mutant(
        "secants are added with the wrong sign",
        "missing = share - float(",
        "missing = share + float(",
        ("test_secants.py", "as_many_steps"),
    ),
    Mutant(
        "the posterior of Student-t noise begins without a dense mode",
        "slow = likelihood.majorises and likelihood.has_smooth_mode",
        "slow = False and likelihood.has_smooth_mode",
        ("test_solvers.py", "begin_with_dense"),
    ),
    Mutant(
        "a dense mode brings no directions for the covariance",
        "wanted = min(rank + _BEYOND_ACTIONS, self.initial_rank(problem) - 1) if rank else 0",
        "wanted = 0",
        ("test_solvers.py", "begin_with_dense"),
    ),
    Mutant(
        "kept blocks are evaluated again for a dense matrix",
        "        evaluate = self._evaluator()\n        matrix",
        "        evaluate = super()._evaluator()\n        matrix",
        ("test_operators.py", "put_together_from_kept_blocks"),
    ),
    Mutant(
        "the noise does not move the covariance",
        "torch.where(held > 0.0, held / torch.where(held > 0.0, curvature, 1.0), 1.0)",
        "torch.ones_like(held)",
        ("test_objectives.py", "exact_in_every_hyperparameter"),
    ),
    Mutant(
        "variances at the training rows do not move with hyperparameters",
        "surrogate = surrogate + (slope * mode.spread.known).sum()",
        "surrogate = surrogate + 0.0",
        ("test_objectives.py", "dense_factors_give or variational_predictive"),
    ),
    Mutant(
        "columns of two values that say nothing about what differs",
        "return torch.baddbmm(of_first - of_second, weighted, self.second.mT, alpha=2.0)",
        "return (of_first - of_second).contiguous()",
        ("test_forms.py", "two_values"),
    ),
)
